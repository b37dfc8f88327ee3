"""A real trackio server, in a virtual environment of its own: it requires an older pillow than the trainer."""

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from environments import environment
from process_support import ROOT, free_port, until
from testcluster.binaries import Say

LOCK_FILE = ROOT / "requirements" / "trackio.txt"
TOKEN = "token-of-the-tests"
START_SECONDS = 120.0
_SERVE = (
    "import sys, trackio; trackio.show(open_browser=False, block_thread=True, host='127.0.0.1', "
    "server_port=int(sys.argv[1]), share=False)"
)


def interpreter(say: Say = print) -> Path:
    """The Python interpreter with trackio. Raises MissingError if its environment cannot be created."""
    return environment("trackio", LOCK_FILE, title="the trackio server", say=say)


@contextmanager
def running(python: Path, folder: Path) -> Iterator[str]:
    """A server that keeps its projects in the folder; yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "TRACKIO_"))}
    environ |= {"TRACKIO_DIR": str(folder), "TRACKIO_WRITE_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}
    log = folder / "trackio.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [str(python), "-c", _SERVE, str(port)], cwd=folder, env=environ, stdout=output, stderr=subprocess.STDOUT
        )

    def is_ready() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/version", timeout=2):
                return True
        except OSError:
            return False

    try:
        until(is_ready, within=START_SECONDS, what=f"the trackio server answers, see {log}")
        yield url
    finally:
        server.kill()
        server.wait()


def read(url: str, function: str, **arguments: Any) -> Any:
    """What a function of the server returns, as its dashboard reads it."""
    request = urllib.request.Request(
        f"{url}/api/{function}",
        data=json.dumps({"args": [], "kwargs": arguments}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())["data"]
