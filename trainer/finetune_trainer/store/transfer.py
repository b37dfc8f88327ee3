"""Downloads and uploads of files in parallel parts, by s3transfer.

The classic transfer manager is always used, because the native (CRT) one ignores a custom endpoint.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig, create_transfer_manager
from s3transfer.subscribers import BaseSubscriber

from ..errors import BadConfigError
from .faults import disk_errors
from .retry import Meter, RetryPolicy
from .uri import S3Address

_CONFIG = TransferConfig(
    multipart_threshold=16 << 20,
    multipart_chunksize=16 << 20,
    max_concurrency=16,
    preferred_transfer_client="classic",
)

_COPY_CONFIG = TransferConfig(
    multipart_threshold=256 << 20,
    multipart_chunksize=256 << 20,
    max_concurrency=8,
    preferred_transfer_client="classic",
)
"""One request can copy 5 GiB, but it would time out: a server may send nothing until it has copied them."""


def inside(folder: Path, relative: str) -> Path:
    """Return `folder/relative`. Use it for every path that comes from a server.

    Raises BadConfigError if the key is not a path within the folder: if it has `..`, `.` or empty parts, or a character
    that file names cannot contain.
    """
    if "\0" in relative or any(part in ("", ".", "..") for part in relative.split("/")):
        raise BadConfigError(f"the key {relative!r} must be a path within its folder", advice="rename the object")
    return folder / relative


def download(client: Any, retry: RetryPolicy, endpoint: str, jobs: Sequence[tuple[S3Address, Path]]) -> None:
    """Download every object of `jobs` to its path. Files are created atomically. Raises DiskFullError."""
    pending, meter = list(jobs), Meter()
    if pending:
        retry.run(lambda: _download_pending(client, pending, meter), lambda: pending[0][0], endpoint, meter)


class _Counter(BaseSubscriber):  # type: ignore[misc]  # s3transfer has no types
    """Counts the bytes of transfers. s3transfer reports a negative number if a part is transferred again."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_progress(self, future: Any, bytes_transferred: int, **_: Any) -> None:
        self._meter.add(bytes_transferred)


def _download_pending(client: Any, pending: list[tuple[S3Address, Path]], meter: Meter) -> None:
    """Remove completed files from `pending`, so that a retry downloads only the rest."""
    meter.begin(meter.done)
    partials = {path: _partial(path) for _, path in pending}
    reader = _ClosingReader(client)
    try:
        with create_transfer_manager(reader, _CONFIG) as manager:
            futures = [_start(manager, address, path, partials[path], meter) for address, path in pending]
            for future in futures:
                _, path = pending[0]
                with disk_errors(path):
                    future.result()
                    os.replace(partials[path], path)
                meter.done += path.stat().st_size
                del pending[0]
    finally:
        reader.close()
        for partial in partials.values():
            partial.unlink(missing_ok=True)


class _ClosingReader:
    """A client that closes the bodies of its responses in `close`.

    A transfer that fails does not close those that it has not read completely, and each keeps a connection open until
    it is garbage-collected.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._bodies: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_object(self, **request: Any) -> Any:
        answer = self._client.get_object(**request)
        self._bodies.append(answer["Body"])
        return answer

    def close(self) -> None:
        for body in self._bodies:
            body.close()


def _start(manager: Any, address: S3Address, path: Path, partial: Path, meter: Meter) -> Any:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return manager.download(address.bucket, address.key, str(partial), subscribers=[_Counter(meter)])


def _partial(path: Path) -> Path:
    """Return a temporary path that no other process or thread uses, as several may download the same file."""
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")


def upload(client: Any, retry: RetryPolicy, endpoint: str, jobs: Sequence[tuple[Path, S3Address]]) -> None:
    """Upload every file of `jobs` to its address."""
    pending, meter = list(jobs), Meter()
    if pending:
        retry.run(lambda: _upload_pending(client, pending, meter), lambda: pending[0][1], endpoint, meter)


def _upload_pending(client: Any, pending: list[tuple[Path, S3Address]], meter: Meter) -> None:
    meter.begin(meter.done)
    with create_transfer_manager(client, _CONFIG) as manager:
        futures = [
            manager.upload(str(path), address.bucket, address.key, subscribers=[_Counter(meter)])
            for path, address in pending
        ]
        for future in futures:
            future.result()
            meter.done += pending[0][0].stat().st_size
            del pending[0]


def copy(client: Any, retry: RetryPolicy, endpoint: str, source: S3Address, target: S3Address) -> None:
    """Copy an object within the server."""
    meter = Meter()

    def request() -> None:
        meter.begin()
        with create_transfer_manager(client, _COPY_CONFIG) as manager:
            place = {"Bucket": source.bucket, "Key": source.key}
            manager.copy(place, target.bucket, target.key, subscribers=[_Counter(meter)]).result()

    retry.run(request, lambda: source, endpoint, meter)
