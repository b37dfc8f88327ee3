"""A real MLflow server, in a virtual environment of its own: it requires an older pyarrow than the trainer."""

import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from environments import environment
from process_support import ROOT, free_port, until
from testcluster.binaries import Say

LOCK_FILE = ROOT / "requirements" / "mlflow.txt"
START_SECONDS = 180.0
"""The server imports for 8 s of CPU time, and this machine may have other work."""


def interpreter(say: Say = print) -> Path:
    """The Python interpreter with MLflow. Raises MissingError if its environment cannot be created."""
    return environment("mlflow", LOCK_FILE, title="the MLflow server", say=say)


@contextmanager
def running(python: Path, folder: Path) -> Iterator[str]:
    """A server with a database in the folder; yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "MLFLOW_"))}
    command = [str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.sqlite'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    log = folder / "mlflow.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(url, server, log)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # the command starts uvicorn as a child
        server.wait()


def _wait(url: str, server: "subprocess.Popen[Any]", log: Path) -> None:
    def is_ready() -> bool:
        assert server.poll() is None, log.read_text()
        return _is_healthy(url)

    until(is_ready, within=START_SECONDS, what=f"the MLflow server answers, see {log}")


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
