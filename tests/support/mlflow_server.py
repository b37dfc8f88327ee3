"""A real MLflow server, in a virtual environment of its own: it requires an older pyarrow than the trainer.

The environment is created once from `requirements/mlflow.txt`, with hashes, and kept in the cache of the tests.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from process_support import ROOT, free_port, until
from testcluster.binaries import Say, cache_folder, locked
from testcluster.missing import MissingError

LOCK_FILE = ROOT / "requirements" / "mlflow.txt"
START_SECONDS = 180.0
"""The server imports for 8 s of CPU time, and this machine may have other work."""


def environment(say: Say = print) -> Path:
    """The Python interpreter of the environment. Raises MissingError if it cannot be created."""
    key = hashlib.sha256(LOCK_FILE.read_bytes() + sys.version.encode()).hexdigest()[:16]
    target = cache_folder() / f"mlflow-{key}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent / "mlflow.lock", say):
            if not target.is_dir():
                _create(target, say)
    return target / "bin" / "python"


def _create(target: Path, say: Say) -> None:
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        raise MissingError("uv is not installed, which creates the environment of the MLflow server")
    say(f"installing the MLflow server into {target}; this takes about a minute")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".mlflow-") as scratch:
        folder = Path(scratch) / "venv"
        _run(uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, str(folder))
        python = str(folder / "bin" / "python")
        packages = ("--require-hashes", "--only-binary", ":all:", "--compile-bytecode", "--requirement", str(LOCK_FILE))
        _run(uv, "pip", "install", "--quiet", "--python", python, *packages)
        folder.rename(target)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingError(f"{' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")


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
