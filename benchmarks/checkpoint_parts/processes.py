"""Run a function of the benchmark on all ranks, each in its own process.

Like a pod, each rank has its own folder, and one thread. Results must be JSON values.
"""

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.constants import Env
from process_support import base_environment, free_port

_RESULT = "result.json"
_SHOWN_LOG_BYTES = 3000
_POLL_SECONDS = 0.2
_RANK = re.compile(r"^\[rank\d+\]:\s*|^\s+")
_ERROR = re.compile(r"(\w+\.)*\w*(Error|Exception)\b")


class JobFailedError(Exception):
    """A rank has failed. The message is the end of its log."""

    @property
    def reason(self) -> str:
        """The line of the log with the error."""
        lines = [_RANK.sub("", line) for line in str(self).splitlines() if line.strip()]
        return next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1] if lines else "no log")


@dataclass(frozen=True)
class Jobs:
    """Runs jobs one after another."""

    script: Path
    """Script that calls `rank_main` when run with `--rank-job FILE`."""
    folder: Path

    def run(self, name: str, target: str, arguments: dict[str, Any], *, world: int) -> list[Any]:
        """Run `target`, `module:function`, with keyword arguments. Return the results in order of ranks.

        Raises JobFailedError if a rank fails.
        """
        folder = self.folder / name
        folder.mkdir()
        job = folder / "job.json"
        job.write_text(json.dumps({"target": target, "arguments": arguments}))
        port = free_port()
        with contextlib.ExitStack() as started:
            ranks = [started.enter_context(self._rank(rank, world, port, folder, job)) for rank in range(world)]
            failed = _first_failed(ranks)
        if failed is not None:
            raise JobFailedError((folder / f"rank-{failed}.log").read_text(errors="replace")[-_SHOWN_LOG_BYTES:])
        return [json.loads((folder / f"scratch-{rank}" / _RESULT).read_text()) for rank in range(world)]

    @contextlib.contextmanager
    def _rank(self, rank: int, world: int, port: int, folder: Path, job: Path) -> Iterator["subprocess.Popen[bytes]"]:
        scratch = folder / f"scratch-{rank}"
        scratch.mkdir()
        environment = base_environment() | {
            Env.RANK: str(rank),
            Env.LOCAL_RANK: "0",
            Env.WORLD_SIZE: str(world),
            Env.LOCAL_WORLD_SIZE: "1",
            Env.MASTER_ADDR: "127.0.0.1",
            Env.MASTER_PORT: str(port),
            Env.SCRATCH: str(scratch),
            Env.CACHE: str(self.folder / "cache"),
            # Set by DeepSpeed's launcher and read by its checkpoint writers: number and index of nodes.
            "CROSS_SIZE": str(world),
            "CROSS_RANK": str(rank),
            Env.DS_ACCELERATOR: "cpu",
            "TRANSFORMERS_VERBOSITY": "error",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with (folder / f"rank-{rank}.log").open("wb") as log:
            command = [sys.executable, str(self.script), "--rank-job", str(job)]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _first_failed(ranks: list["subprocess.Popen[bytes]"]) -> int | None:
    """Wait until all ranks have ended or one has failed. The others would wait for a failed one until a time-out."""
    while True:
        codes = [process.poll() for process in ranks]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None or None not in codes:
            return failed
        time.sleep(_POLL_SECONDS)


def rank_main(job_file: Path) -> None:
    """Run the job in the process of a rank."""
    job = json.loads(job_file.read_text())
    module, _, function = job["target"].partition(":")
    result = getattr(importlib.import_module(module), function)(**job["arguments"])
    (Path(os.environ[Env.SCRATCH]) / _RESULT).write_text(json.dumps(result))
