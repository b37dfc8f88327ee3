"""`finetune` commands for tests, as processes that are forked from a server which has imported the modules of commands.

A new interpreter imports for half a second, and for five seconds if the command reads a model. Whether a command
imports what it needs is tested with `CommandLine.fresh`.
"""

import gc
import importlib
import json
import os
import pkgutil
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import finetune_cli.commands
from finetune_trainer.supervisor.forkclient import ForkClient
from finetune_trainer.supervisor.forkserver import ForkServer, listen, watch_lifeline
from finetune_trainer.supervisor.preload import prepare_environment
from process_support import SUPPORT, base_environment

_TARGET = "command_line:run_command"
_MODULES = (
    "boto3.s3.transfer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "finetune_trainer.checkpoint.archive",
    "finetune_trainer.checkpoint.stored.safetensors_export",
    "finetune_trainer.data.first_look",
    "finetune_trainer.evaluate.lm_eval",
    "finetune_trainer.evaluate.run_comparison_page",
    "finetune_trainer.forecast",
    "finetune_trainer.promotion.by_hand",
    "finetune_trainer.store",
)


class CommandLine:
    """Runs commands in the environment of the tests, with 80 columns."""

    def __init__(self, server: Path) -> None:
        self._server = server

    def run(
        self, *arguments: str | Path, cwd: Path, within: float = 120.0, **environ: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in a forked process."""
        env = _environment(environ)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "arguments").write_text(json.dumps([str(argument) for argument in arguments]))
            with (folder / "start").open("wb") as output:
                process = ForkClient(self._server).start_rank(
                    env, folder, output.fileno(), target=_TARGET, cwd=cwd.absolute()
                )
            try:
                status = process.wait(within)
            finally:
                process.kill()
            assert not process.error, process.error
            assert not (text := (folder / "start").read_text()), text
            out, err = ((folder / stream).read_text() for stream in ("out", "err"))
        return subprocess.CompletedProcess(["finetune", *map(str, arguments)], status, out, err)

    @staticmethod
    def fresh(
        *arguments: str | Path, cwd: Path, within: float = 120.0, **environ: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in a new interpreter."""
        return subprocess.run(
            [sys.executable, "-m", "finetune_cli", *map(str, arguments)],
            cwd=cwd,
            env=_environment(environ),
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {**base_environment(), "COLUMNS": "80", **environ}


@contextmanager
def command_line(folder: Path) -> Iterator[CommandLine]:
    """Start the server, which listens in this folder. Commands may be run at once: they wait for its imports."""
    path = folder / "commands.sock"
    with listen(path) as listener, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "command_line.py"), str(listener.fileno())],
            env=base_environment(),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
    with process:
        yield CommandLine(path)
        process.terminate()


def run_command(folder: Path) -> int:
    """Become the command whose arguments are in `folder`. Its output is written to files there."""
    for stream, descriptor in (("out", 1), ("err", 2)):
        file = os.open(folder / stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv = ["finetune", *json.loads((folder / "arguments").read_text())]
    runpy.run_module("finetune_cli", run_name="__main__", alter_sys=True)
    return 0


def main() -> None:
    """Import and serve until the test process ends."""
    watch_lifeline(0)
    prepare_environment("cpu")
    gc.disable()
    found = pkgutil.iter_modules(finetune_cli.commands.__path__, "finetune_cli.commands.")
    for name in (*_MODULES, *(module.name for module in found)):
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    ForkServer(socket.socket(fileno=int(sys.argv[1])), lifeline=0).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
