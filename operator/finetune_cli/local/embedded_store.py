"""An S3 server for one machine: SeaweedFS on free loopback ports, with its data in one folder.

The folder keeps data and credentials between invocations. One process at a time owns the server of a folder and holds
a file lock; other processes use the server through `open_store`. The server ends with its owner, also if the owner is
killed.

S3 requests need the credentials of the folder. The internal ports of SeaweedFS (master, volume, filer, admin) need none
and are bound to 127.0.0.1, so every user of this machine can reach them. Do not store secrets in it on a shared
machine.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from finetune_api.files import replace_file

from ..locks import try_lock
from . import seaweed
from .seaweed import EmbeddedStoreError, Ports

if TYPE_CHECKING:
    from filelock import FileLock

REGION = "us-east-1"

_START_SECONDS = 60.0
_TRIES = 4
_TRY_AGAIN_SECONDS = 0.5
"""Pause between tries. A free port can be taken before the server binds it, and a server whose owner was killed keeps
the data locked for a second or two while it ends."""

_AWS_CONFIG = f"[default]\nregion = {REGION}\n"


class StoreInUseError(EmbeddedStoreError):
    """Another process owns the server of this folder."""


@dataclass(frozen=True)
class StoreAccess:
    """Endpoint and credentials of the server of a folder."""

    endpoint: str
    """`http://127.0.0.1:<port>`."""
    access_key: str
    secret_key: str
    config_file: str
    """Path of an AWS configuration that contains only the region, so that the user's profile has no effect."""

    @property
    def port(self) -> int:
        """Port of the endpoint."""
        return int(self.endpoint.rsplit(":", 1)[1])

    def env(self) -> dict[str, str]:
        """Return the environment for child processes. It overrides the user's settings for other S3 servers."""
        no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": "",
            "AWS_PROFILE": "default",
            "AWS_CONFIG_FILE": self.config_file,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": ",".join(filter(None, [no_proxy, "127.0.0.1"])),
        }

    def create_bucket(self, name: str) -> None:
        """Create a bucket if it does not exist."""
        client = self._client(attempts=4)
        if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=name)

    def buckets(self) -> list[str]:
        """Return the names of all buckets, sorted."""
        return sorted(bucket["Name"] for bucket in self._client(attempts=4).list_buckets()["Buckets"])

    def is_reachable(self) -> bool:
        """Whether the server answers and accepts these credentials."""
        if not seaweed.is_listening(self.port):
            return False
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client(attempts=1).list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True

    def _client(self, *, attempts: int) -> Any:
        import boto3
        import botocore.session
        from botocore.config import Config

        # The user's profile must have no effect in this process either. It may even name a profile that does not exist.
        own = {"profile": (None, None, "default", None), "config_file": (None, None, self.config_file, None)}
        return boto3.session.Session(botocore_session=botocore.session.Session(own)).client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": attempts},
                connect_timeout=2,
                read_timeout=20,
                proxies={},
            ),
        )


class EmbeddedStore:
    """The server of a folder, owned by this process. A context manager; `stop` may be called more than once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._lock: FileLock | None = None
        self._ports: Ports | None = None
        self._access: StoreAccess | None = None

    @property
    def access(self) -> StoreAccess:
        """Endpoint and credentials, while the server is running."""
        assert self._access is not None, "the store is not running"
        return self._access

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return self.access.endpoint

    @property
    def access_key(self) -> str:
        """AWS_ACCESS_KEY_ID."""
        return self.access.access_key

    @property
    def secret_key(self) -> str:
        """AWS_SECRET_ACCESS_KEY."""
        return self.access.secret_key

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._process is not None, "the store is not running"
        return self._process.pid

    def env(self) -> dict[str, str]:
        """Return the environment for child processes."""
        return self.access.env()

    def create_bucket(self, name: str) -> None:
        """Create a bucket if it does not exist."""
        self.access.create_bucket(name)

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises StoreInUseError if another process owns the folder, EmbeddedStoreError if the server does not start.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self._folder)
        try:
            _terminate_orphan(self._folder)
            self._start_on_free_ports()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Terminate the server: SIGTERM, then SIGKILL."""
        self._end_processes()
        self._access = None
        if self._lock is not None:
            seaweed.unlink([_record_file(self._folder)])
            self._lock.release()
            self._lock = None

    def check(self) -> None:
        """Raise EmbeddedStoreError if the server has exited by itself."""
        if self._process is not None and (status := self._process.poll()) is not None:
            raise EmbeddedStoreError(
                f"the object store exited unexpectedly with status {status}; end of {seaweed.log_tail(self._folder)}"
            )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_on_free_ports(self) -> None:
        config_file = self._folder / "aws-config"
        config_file.write_text(_AWS_CONFIG)
        keys = seaweed.credentials(self._folder)
        for _ in range(_TRIES):
            self._ports = Ports.free()
            self._access = StoreAccess(f"http://127.0.0.1:{self._ports.s3}", *keys, config_file=str(config_file))
            self._process = seaweed.spawn(self._folder, self._ports)
            self._watcher = seaweed.start_watcher(self._process.pid)
            if self._wait_until_ready(self._process):
                record = {"pid": self.pid, "access": asdict(self._access), "ports": asdict(self._ports)}
                replace_file(_record_file(self._folder), json.dumps(record))
                return
            self._end_processes()
            time.sleep(_TRY_AGAIN_SECONDS)
        raise EmbeddedStoreError(f"the object store failed to start; end of {seaweed.log_tail(self._folder)}")

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Return whether the server is ready. It exits if a port is in use, and then the result is False."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if self.access.is_reachable():
                return True
            time.sleep(0.03)
        return False

    def _end_processes(self) -> None:
        if self._watcher is not None:
            seaweed.stop_watcher(self._watcher)
            self._watcher = None
        if self._process is not None:
            seaweed.terminate(self._process)
            self._process = None
        if self._ports is not None:
            seaweed.unlink(self._ports.unix_sockets())
            self._ports = None


@contextmanager
def open_store(folder: Path) -> Iterator[StoreAccess]:
    """Use the server of a folder: that of another process, or one that is started for the duration of the block."""
    store = EmbeddedStore(folder)
    deadline = time.monotonic() + _START_SECONDS
    while (running := running_store(folder)) is None:
        try:
            store.start()
            break
        except StoreInUseError:  # the other process is starting or stopping it
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    try:
        yield running or store.access
    finally:
        store.stop()


def running_store(folder: Path) -> StoreAccess | None:
    """Return the server that another process runs on this folder, or None. A stale record of a server is ignored."""
    record = _read_record(folder.resolve())
    if record is None:
        return None
    access = StoreAccess(**record["access"])
    return access if access.is_reachable() else None


def _lock(folder: Path) -> "FileLock":
    lock = try_lock(folder / "lock")
    if lock is None:
        raise StoreInUseError(
            f"another process is using the object store in {folder}; wait for it, or set another --work-dir"
        )
    return lock


def _terminate_orphan(folder: Path) -> None:
    """Terminate a server that is still running although its owner is not: the data must have one writer."""
    record = _read_record(folder)
    if record is None:
        return
    if StoreAccess(**record["access"]).is_reachable():  # the process id still belongs to the server
        seaweed.terminate_pid(record["pid"])
    seaweed.unlink([*Ports(**record["ports"]).unix_sockets(), _record_file(folder)])


def _record_file(folder: Path) -> Path:
    return folder / "endpoint.json"


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(_record_file(folder).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return record if isinstance(record, dict) and {"pid", "access", "ports"} <= record.keys() else None
