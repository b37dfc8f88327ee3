"""An S3 server that a test can kill and restart with the same folder, ports and credentials."""

import subprocess
import time
from pathlib import Path

from finetune_api.trainer_config import StorageSettings
from finetune_cli.local import seaweed
from finetune_cli.local.embedded_store import StoreAccess

BUCKET = "killable"


class KillableStore:
    """A context manager; its server has one bucket, `BUCKET`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = seaweed.Ports.free()
        keys = seaweed.credentials(folder)
        config = folder / "aws-config"
        config.write_text("[default]\nregion = us-east-1\n")
        self.access = StoreAccess(f"http://127.0.0.1:{self._ports.s3}", *keys, config_file=str(config))
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def settings(self) -> StorageSettings:
        return StorageSettings(endpoint=self.access.endpoint, path_style=True)

    def start(self) -> None:
        self.kill()
        self._process = seaweed.spawn(self._folder, self._ports)
        self._watcher = seaweed.start_watcher(self._process.pid)
        deadline = time.monotonic() + 60
        while not self.access.is_reachable():
            assert time.monotonic() < deadline, seaweed.log_tail(self._folder)
            time.sleep(0.03)
        self.access.create_bucket(BUCKET)

    def kill(self) -> None:
        """Send SIGKILL to the server, if it is running."""
        if self._watcher is not None:
            seaweed.stop_watcher(self._watcher)
            self._watcher = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        seaweed.unlink(self._ports.unix_sockets())

    def __enter__(self) -> "KillableStore":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
