"""Measures in a child process which micro-batch fits the memory.

The child takes optimizer steps with the longest rows and ever larger micro-batches. It may be killed: by the kernel, or
by this process before the kernel would. With `memory.oom.group`, which kubelets from 1.28 on set with cgroup v2, the
kernel kills all processes of a container at once, so that its kill is no answer.

The fork server forks the child, because a process with the threads of a process group must not fork.
"""

import logging
import os
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetune_api.constants import Env
from finetune_api.exit_codes import ExitCode
from finetune_api.trainer_config import Message, PreparedConfig
from finetune_api.v1alpha1.quantities import amount

from ..memory import memory_kills, memory_limit, own_bytes, record_probe_kills, resident_bytes
from ..micro_batch import CPU_SHARE, GPU_SHARE, MeasuredMicroBatch, MeasuredStep, divisors, next_size, result
from ..model.estimate import STATE_BYTES, UPLOADER_BYTES
from ..model.gpu_estimate import CONTEXT_BYTES, NCCL_BYTES
from ..runtime import RuntimeEnv
from ..stop import StopFlag
from ..supervisor.forkclient import ForkClient, RankProcess
from .world import gpu_bytes

log = logging.getLogger("finetune")

CHILD = "finetune_trainer.train.probe_child:run_probe"

WATCH_SECONDS = 0.005
"""Interval of the samples of the child's memory. It grows by at most 10 GB/s, so by 50 MB in between."""

MAX_SECONDS = 1800.0
"""Time after which a measurement is given up."""

_SUPERVISOR_BYTES = 64 << 20
"""Assumed for the supervisor: Python without training libraries."""
_LAST_CHARACTERS = 300


class ProbeRequest(Message):
    """The argument of the child: a file."""

    config: PreparedConfig
    """With the world and batch that is measured."""
    base: Path
    """Folder of the base model."""
    sizes: tuple[int, ...]
    """Micro-batch sizes, ascending."""
    usable_bytes: int

    @property
    def world(self) -> int:
        """Number of processes between which ZeRO divides the state."""
        return self.config.world.size


def memory_of_process(config: PreparedConfig, runtime: RuntimeEnv) -> int | None:
    """Return the memory of a worker, or with GPUs that of the GPU of this rank, in bytes. None: it is not limited."""
    if config.world.gpus:
        declared = config.spec.workers.gpu_memory
        present = gpu_bytes(config, runtime)
        return present if declared is None else min(present, int(amount(declared)))
    declared = config.spec.workers.resources.limits.get("memory")
    known = [limit for limit in (memory_limit(), declared and int(amount(declared))) if limit]
    return min(known, default=None)


def measure_micro_batch(
    config: PreparedConfig, runtime: RuntimeEnv, base: Path, *, most: int, stop: StopFlag
) -> MeasuredMicroBatch:
    """Return the largest micro-batch of at most `most` that fits on this worker.

    `config` has the smallest world that the training may run on. No error ends the training: the result says what has
    failed. After a requested stop, it is not complete.
    """
    started, limit = time.monotonic(), memory_of_process(config, runtime)
    server = os.environ.get(Env.FORK_SERVER)
    if limit is None or server is None:
        return MeasuredMicroBatch(problem="the memory of the worker, or its fork server, is not known")
    sizes = divisors(config.batch.global_size // config.world.size, most)
    usable = _usable_bytes(config, limit)
    folder = runtime.scratch / f"probe-{runtime.rank}"
    try:
        folder.mkdir(exist_ok=True)
        request = ProbeRequest(config=config.with_micro_batch(1), base=base, sizes=sizes, usable_bytes=usable)
        steps_file(folder).unlink(missing_ok=True)
        request_file(folder).write_text(request.model_dump_json())
        child = _Child.start(folder, Path(server), request)
        kills = memory_kills()
        code = child.wait(usable if not config.world.gpus else None, stop)
        record_probe_kills(runtime.scratch, memory_kills() - kills)
    except OSError as error:
        return MeasuredMicroBatch(problem=f"the measuring process could not be started: {error}"[:_LAST_CHARACTERS])
    seconds = time.monotonic() - started
    steps = read_steps(folder)
    if code not in (ExitCode.DONE, -9, ExitCode.OUT_OF_MEMORY) or child.is_late:
        return MeasuredMicroBatch(seconds=round(seconds, 1), problem=child.problem(code))
    return result(sizes, steps, usable=usable, limit=limit, seconds=seconds)


def _usable_bytes(config: PreparedConfig, limit: int) -> int:
    """Return how much of the memory the child may use: what is left for the process that trains."""
    if config.world.gpus:
        return int(GPU_SHARE * limit) - CONTEXT_BYTES - (NCCL_BYTES if config.world.size > 1 else 0)
    snapshot = STATE_BYTES * config.prepared.trained_parameters // config.world.size
    # The fork server, whose memory the others share, and this process as it is while the child runs.
    present = resident_bytes(os.getppid()) + own_bytes(os.getpid()) + _SUPERVISOR_BYTES + UPLOADER_BYTES
    return max(0, int(CPU_SHARE * limit) - present - snapshot)


def request_file(folder: Path) -> Path:
    """Return the file with the request."""
    return folder / "request.json"


def steps_file(folder: Path) -> Path:
    """Return the file to which the child appends a line for each step."""
    return folder / "steps.jsonl"


def read_steps(folder: Path) -> tuple[MeasuredStep, ...]:
    """Read the completed steps. The last line may be cut off."""
    steps = []
    with suppress(FileNotFoundError, ValueError):
        for line in steps_file(folder).read_text().splitlines():
            steps.append(MeasuredStep.model_validate_json(line))
    return tuple(steps)


@dataclass
class _Child:
    folder: Path
    process: RankProcess
    is_late: bool = False

    @classmethod
    def start(cls, folder: Path, server: Path, request: ProbeRequest) -> "_Child":
        environ = dict(os.environ) | {Env.RANK: "0", Env.WORLD_SIZE: str(request.world)}
        with (folder / "log").open("wb") as output:
            process = ForkClient(server).start_rank(environ, request_file(folder), output.fileno(), target=CHILD)
        return cls(folder, process)

    def wait(self, usable: int | None, stop: StopFlag) -> int:
        """Return the exit code; -9: it was killed. Kill it if it uses more than `usable` bytes, or when it is late."""
        deadline = time.monotonic() + MAX_SECONDS
        while (code := self.process.poll()) is None:
            self.is_late = time.monotonic() > deadline
            if self.is_late or stop.requested or (usable is not None and self._uses_more_than(usable)):
                self.process.kill()
                return -9
            select.select([self.process], [], [], WATCH_SECONDS)
        return code

    def _uses_more_than(self, usable: int) -> bool:
        """The exact number takes longer, so it is read only if an upper bound is too large."""
        pid = self.process.pid
        return pid is not None and resident_bytes(pid) > usable and own_bytes(pid) > usable

    def problem(self, code: int) -> str:
        if self.is_late:
            return f"it took more than {MAX_SECONDS / 60:.0f} min"
        text = (self.folder / "log").read_text(errors="replace").strip()[-_LAST_CHARACTERS:]
        reason = self.process.error or text
        return f"the measuring process has failed with status {code}: {reason}"


def next_of(request: ProbeRequest, steps: Sequence[MeasuredStep]) -> int | None:
    """Return the size that the child measures next."""
    return next_size(request.sizes, steps, request.usable_bytes)
