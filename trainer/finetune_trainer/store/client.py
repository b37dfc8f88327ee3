"""ObjectStore: the one way to object storage.

Safe to use from many threads. To be made after a fork, not before it: sockets must not be shared between processes.
"""

import base64
import builtins
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from finetune_api.clock import utc_now
from finetune_api.trainer_config import StorageSettings

from ..errors import BadConfigError, ObjectMissingError, StorageProtocolError
from . import transfer
from .credentials import rotating_session
from .faults import http_status, missing_bucket, refused_key
from .paced import PacedBody
from .retry import DEFAULT_RETRY, Meter, RetryPolicy
from .uri import S3Address, is_pattern, join, literal_prefix, matches, parse

T = TypeVar("T")

_CONNECT_SECONDS = 5
READ_SECONDS = 30
"""How long storage may say nothing to a request."""
_POOL = 32
_KEYS_PER_DELETE = 1000
"""S3 takes no more."""
_PARALLEL_DELETES = 16
_READ_CHUNK = 1 << 20
"""urllib3 copies every read once; a chunk that stays in the processor's cache makes that copy cheap."""


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Older S3-compatible servers remove many objects only for this header; boto3 sends a CRC32 in its place."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


@dataclass(frozen=True)
class ObjectInfo:
    """What storage says of an object. The etag is no content hash: multipart uploads have another one."""

    uri: str
    size: int
    etag: str
    modified: datetime


class Conditions(StrEnum):
    """What a server does with a put that must not replace anything (`If-None-Match: *`)."""

    HONOURED = "honours"
    IGNORED = "ignores"
    """It replaces what is there."""
    REFUSED = "refuses"
    """It answers that it knows no such thing."""


class ObjectStore:
    """One S3-compatible server. Every method raises our own errors only, see `faults.translate`."""

    def __init__(self, client: Any, endpoint: str, retry: RetryPolicy) -> None:
        self._client = client
        self._endpoint = endpoint
        self._retry = retry
        self._known_buckets: set[str] = set()
        self._deletes_many = True
        """The server has requests that delete many objects; False once it has refused one."""

    @classmethod
    def connect(
        cls, settings: StorageSettings, *, retry: RetryPolicy = DEFAULT_RETRY, sign_bodies: bool = True
    ) -> "ObjectStore":
        """A client for `settings`. Credentials come from mounted files, else by boto3's chain. Nothing is sent yet.

        Credentials that are replaced in their files are used from the next request on.

        Without `sign_bodies` only the headers of requests are signed: for objects whose names are their digests, which
        would be computed a second time.
        """
        config = Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=_POOL,
            tcp_keepalive=True,
            retries={"mode": "standard", "total_max_attempts": retry.attempts_per_request},
            s3={
                "addressing_style": "path" if settings.path_style else "virtual",
                "payload_signing_enabled": None if sign_bodies else False,
            },
            # boto3's own checksums break S3-compatible servers (boto3#4392); ours are end to end.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        endpoint = settings.endpoint or f"AWS S3 ({settings.region})"
        try:
            botocore_session, credentials = rotating_session()
            session = boto3.session.Session(botocore_session=botocore_session)
            client = session.client("s3", endpoint_url=settings.endpoint, region_name=settings.region, config=config)
        except (BotoCoreError, ValueError) as error:
            raise BadConfigError(f"object storage at {endpoint} cannot be used: {error}") from error
        client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
        return cls(client, endpoint, replace(retry, credentials=credentials))

    @property
    def endpoint(self) -> str:
        """The server, as messages name it."""
        return self._endpoint

    def _run(self, address: S3Address, request: Callable[[], T]) -> T:
        return self._retry.run(request, lambda: address, self._endpoint)

    # Single objects

    def get(self, uri: str) -> bytes:
        """The object's bytes. Raises ObjectMissingError if there is none."""
        address = parse(uri)
        return self._run(address, lambda: self._read(address))

    def _read(self, address: S3Address) -> bytes:
        content: bytes = self._client.get_object(Bucket=address.bucket, Key=address.key)["Body"].read()
        return content

    def get_json(self, uri: str) -> Any:
        """The object's JSON value. Raises ObjectMissingError, and StorageProtocolError if it is not JSON."""
        try:
            return json.loads(self.get(uri))
        except ValueError as error:
            raise StorageProtocolError(f"{uri} does not hold JSON: {error}") from error

    def put(
        self,
        uri: str,
        data: bytes | memoryview,
        *,
        content_type: str | None = None,
        pace: Callable[[int], None] | None = None,
    ) -> None:
        """Write the object whole, replacing what is there.

        `pace` is called with each number of bytes before these are sent, and may wait.
        """
        address = parse(uri)
        extra = {} if content_type is None else {"ContentType": content_type}

        def request() -> Any:
            body = bytes(data) if pace is None else PacedBody(data, pace)  # another try begins with its first byte
            return self._client.put_object(Bucket=address.bucket, Key=address.key, Body=body, **extra)

        self._run(address, request)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Create the object in one atomic step; False if it exists already.

        A refusal that follows an unanswered try may come from that try itself having succeeded. Then the stored bytes
        decide, so `data` should hold something that only this writer writes.
        """
        address = parse(uri)
        tries = 0

        def create() -> bool:
            nonlocal tries
            tries += 1
            try:
                self._client.put_object(Bucket=address.bucket, Key=address.key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                if http_status(error) != 412:
                    raise
                unanswered = tries > 1 or error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                return unanswered and self._read(address) == data
            return True

        return self._run(address, create)

    def conditions(self, prefix_uri: str) -> Conditions:
        """Try what `put_if_absent` does on this server, with an object under `prefix_uri`: three requests."""
        probe = join(prefix_uri, f".conditions-{uuid.uuid4().hex}")
        try:
            self.put_if_absent(probe, b"first")
            is_honoured = not self.put_if_absent(probe, b"second")
        except StorageProtocolError:
            return Conditions.REFUSED
        self.delete(probe)
        return Conditions.HONOURED if is_honoured else Conditions.IGNORED

    def head(self, uri: str) -> ObjectInfo | None:
        """What storage says of the object; None if there is none."""
        address = parse(uri)
        try:
            answer = self._run(address, lambda: self._client.head_object(Bucket=address.bucket, Key=address.key))
        except ObjectMissingError:
            self._check_bucket(address)
            return None
        return ObjectInfo(uri, int(answer["ContentLength"]), answer["ETag"], answer["LastModified"])

    def _check_bucket(self, address: S3Address) -> None:
        """A HEAD answer has no body, so a missing object and a missing bucket look the same in it."""
        if address.bucket in self._known_buckets:
            return
        try:
            self._run(address, lambda: self._client.head_bucket(Bucket=address.bucket))
        except ObjectMissingError:
            raise missing_bucket(address, self._endpoint) from None
        self._known_buckets.add(address.bucket)

    def exists(self, uri: str) -> bool:
        """Whether the object is there."""
        return self.head(uri) is not None

    def delete(self, uri: str) -> None:
        """Remove the object; nothing happens if there is none."""
        address = parse(uri)
        self._run(address, lambda: self._client.delete_object(Bucket=address.bucket, Key=address.key))

    def read_into(self, uri: str, buffer: memoryview) -> None:
        """Fill `buffer` (writable, contiguous bytes) with the object, which must be exactly as long.

        Raises ObjectMissingError, and StorageProtocolError for another length.
        """
        address, meter = parse(uri), Meter()
        self._retry.run(lambda: self._fill(address, buffer, meter), lambda: address, self._endpoint, meter)

    def _fill(self, address: S3Address, buffer: memoryview, meter: Meter) -> None:
        meter.begin()
        answer = self._client.get_object(Bucket=address.bucket, Key=address.key)
        body = answer["Body"]
        if answer["ContentLength"] != len(buffer):
            body.close()
            raise StorageProtocolError(f"{address} has {answer['ContentLength']} bytes, expected {len(buffer)}")
        filled = 0
        while filled < len(buffer):
            count = body.readinto(buffer[filled : filled + _READ_CHUNK])
            if not count:
                raise ConnectionError(f"{address} ended after {filled} of {len(buffer)} bytes")
            filled += count
            meter.add(count)

    # Many objects

    def list(self, prefix_uri: str) -> Iterator[ObjectInfo]:
        """All objects whose address starts with `prefix_uri`, in the order of their keys."""
        address = parse(prefix_uri)
        more: dict[str, str] = {}
        while True:
            page = self._page(address, more)
            for entry in page.get("Contents", ()):
                uri = str(S3Address(address.bucket, entry["Key"]))
                yield ObjectInfo(uri, int(entry["Size"]), entry["ETag"], entry["LastModified"])
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, address: S3Address, more: dict[str, str]) -> dict[str, Any]:
        def request() -> dict[str, Any]:
            page: dict[str, Any] = self._client.list_objects_v2(Bucket=address.bucket, Prefix=address.key, **more)
            return page

        return self._run(address, request)

    def glob(self, pattern_uri: str) -> builtins.list[ObjectInfo]:
        """Objects that fit the pattern, sorted by address; `*`, `?` and `[...]` do not cross a slash.

        The address of an object gives that object, also where it has wildcards: keys such as `export[final].jsonl` are
        common. Nothing fits: an empty list.
        """
        found = self.head(pattern_uri)
        if found is not None or not is_pattern(pattern_uri):
            return [] if found is None else [found]
        return [info for info in self.list(literal_prefix(pattern_uri)) if matches(pattern_uri, info.uri)]

    def delete_many(self, uris: Sequence[str]) -> None:
        """Remove objects of one bucket, in requests of up to 1000; what is not there is as good as removed.

        One by one where the server has no such request, as Google Cloud Storage. Raises the error of the first object
        that storage will not remove, once all others are.
        """
        for start in range(0, len(uris), _KEYS_PER_DELETE):
            batch = uris[start : start + _KEYS_PER_DELETE]
            if not self._deletes_many or not self._delete_together(batch):
                self._delete_singly(batch)

    def _delete_together(self, uris: Sequence[str]) -> bool:
        """One request; False where the server knows no such request."""
        try:
            self._delete_batch([parse(uri) for uri in uris])
        except StorageProtocolError as error:
            # Refused as a whole (an object's refusal has no status), neither for want of rights nor of the bucket.
            if not isinstance(error.__cause__, ClientError) or not http_status(error.__cause__):
                raise
            self._deletes_many = False
        return self._deletes_many

    def _delete_singly(self, uris: Sequence[str]) -> None:
        with ThreadPoolExecutor(_PARALLEL_DELETES) as pool:
            futures = [pool.submit(self.delete, uri) for uri in uris]
        for future in futures:
            future.result()

    def _delete_batch(self, addresses: Sequence[S3Address]) -> None:
        keys = [{"Key": address.key} for address in addresses]
        bucket, failed = addresses[0].bucket, addresses[0]
        assert all(address.bucket == bucket for address in addresses), "one bucket at a time"

        def delete() -> None:
            nonlocal failed
            answer = self._client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            if (error := refused_key(answer)) is not None:
                failed = S3Address(bucket, error.response["Error"]["Key"])
                raise error

        self._retry.run(delete, lambda: failed, self._endpoint)

    def now(self, uri: str) -> datetime:
        """The time of the server, the clock that writes `modified`.

        It comes with a list of the address, not of the whole bucket, which a policy may refuse.
        """
        address = parse(uri)
        answer = self._run(
            address,
            lambda: self._client.list_objects_v2(Bucket=address.bucket, Prefix=address.key, MaxKeys=1),
        )
        stated = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(stated) if stated else utc_now()

    # Files

    def download(self, uri: str, path: Path) -> None:
        """Write the object to `path`, which appears whole or not at all; large ones in parallel ranges."""
        transfer.download(self._client, self._retry, self._endpoint, [(parse(uri), path)])

    def upload(self, path: Path, uri: str) -> None:
        """Write the file to the object; large ones in parallel parts."""
        transfer.upload(self._client, self._retry, self._endpoint, [(path, parse(uri))])

    def upload_files(self, jobs: Sequence[tuple[Path, str]]) -> None:
        """Write every file to its object."""
        transfer.upload(self._client, self._retry, self._endpoint, [(path, parse(uri)) for path, uri in jobs])

    def download_folder(self, prefix_uri: str, folder: Path) -> builtins.list[Path]:
        """Write every object under `prefix_uri` into `folder`, keeping sub-folders.

        Returns the files, sorted. Raises ObjectMissingError if there is nothing under the prefix.
        """
        prefix = join(prefix_uri) + "/"
        names = [info.uri.removeprefix(prefix) for info in self.list(prefix) if not info.uri.endswith("/")]
        if not names:
            raise ObjectMissingError(f"there is nothing under {prefix} at {self._endpoint}")
        return self.download_files(prefix_uri, names, folder)

    def download_files(self, prefix_uri: str, names: Sequence[str], folder: Path) -> builtins.list[Path]:
        """Write the objects `names`, relative to `prefix_uri`, into `folder`, keeping sub-folders.

        Returns the files, sorted. Raises BadConfigError for a name that leads out of the folder, before any download.
        """
        prefix = join(prefix_uri) + "/"
        jobs = [(parse(prefix + name), transfer.inside(folder, name)) for name in names]
        transfer.download(self._client, self._retry, self._endpoint, jobs)
        return sorted(path for _, path in jobs)

    def upload_folder(self, folder: Path, prefix_uri: str) -> builtins.list[str]:
        """Write every file under `folder` to `prefix_uri`, keeping sub-folders. Returns the addresses, sorted."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        jobs = [(path, parse(join(prefix_uri, path.relative_to(folder).as_posix()))) for path in files]
        transfer.upload(self._client, self._retry, self._endpoint, jobs)
        return sorted(str(address) for _, address in jobs)

    def check_read_write(self, prefix_uri: str) -> None:
        """Write an object under `prefix_uri`, read it back and delete it, or raise the error that says why not."""
        probe = join(prefix_uri, f".preflight-{uuid.uuid4().hex}")
        self.put(probe, probe.encode())
        if self.get(probe) != probe.encode():
            raise StorageProtocolError(f"{probe} reads back other bytes than were written to {self._endpoint}")
        self.delete(probe)
