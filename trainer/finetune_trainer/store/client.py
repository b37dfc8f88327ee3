"""ObjectStore, the only client of object storage in the trainer.

A store is thread-safe. Create it after a fork, not before: processes must not share sockets.
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
from .faults import code_of, http_status, missing_bucket, refused_key
from .paced import PacedBody
from .retry import DEFAULT_RETRY, Meter, RetryPolicy
from .uri import S3Address, is_pattern, join, literal_prefix, matches, parse

T = TypeVar("T")

_CONNECT_SECONDS = 5
READ_SECONDS = 30
"""Timeout for the next bytes of a response, in seconds."""
_POOL = 32
_NO_ETAG = f'"{"0" * 32}"'
"""ETag that no object has."""
_KEYS_PER_DELETE = 1000
"""Limit of S3."""
_PARALLEL_DELETES = 16
_READ_CHUNK = 1 << 20
"""Bytes. urllib3 copies every read once; the copy is cheap if the chunk fits into the processor's cache."""


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Older S3-compatible servers require this header to delete many objects; boto3 sends a CRC32 instead."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


@dataclass(frozen=True)
class ObjectInfo:
    """Metadata of an object. The ETag is not a hash of the content if the object was uploaded in parts."""

    uri: str
    size: int
    etag: str
    modified: datetime


@dataclass(frozen=True)
class StoredVersion:
    """Content of an object, and the ETag that `put_if_match` replaces it by."""

    content: bytes
    etag: str


class Conditions(StrEnum):
    """How a server handles a conditional write (`If-None-Match: *`, `If-Match`)."""

    HONOURED = "honours"
    IGNORED = "ignores"
    """The server replaces an existing object."""
    REFUSED = "refuses"
    """The server rejects the header."""


class ObjectStore:
    """Client of one S3-compatible server. Methods raise only subclasses of TrainerError, see `faults.translate`."""

    def __init__(self, client: Any, endpoint: str, retry: RetryPolicy) -> None:
        self._client = client
        self._endpoint = endpoint
        self._retry = retry
        self._known_buckets: set[str] = set()
        self._deletes_many = True
        """Whether the server supports DeleteObjects; False after it has rejected a request."""

    @classmethod
    def connect(
        cls, settings: StorageSettings, *, retry: RetryPolicy = DEFAULT_RETRY, sign_bodies: bool = True
    ) -> "ObjectStore":
        """Create a client for `settings` without sending a request.

        Credentials come from mounted files, otherwise from boto3's chain. If the files change, the next request uses
        the new credentials.

        `sign_bodies=False` signs only the headers of requests. Use it for objects that are named by their digest, whose
        content would otherwise be hashed twice. Raises BadConfigError for settings that boto3 rejects.
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
            # boto3's checksums fail on some S3-compatible servers (boto3#4392). Callers verify digests end to end.
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
        """Name of the server in messages."""
        return self._endpoint

    def _run(self, address: S3Address, request: Callable[[], T]) -> T:
        return self._retry.run(request, lambda: address, self._endpoint)

    # Single objects

    def get(self, uri: str) -> bytes:
        """Return the object's bytes. Raises ObjectMissingError if it does not exist."""
        address = parse(uri)
        return self._run(address, lambda: self._read(address))

    def _read(self, address: S3Address) -> bytes:
        content: bytes = self._client.get_object(Bucket=address.bucket, Key=address.key)["Body"].read()
        return content

    def get_json(self, uri: str) -> Any:
        """Return the object's JSON value. Raises ObjectMissingError, and StorageProtocolError if it is not JSON."""
        try:
            return json.loads(self.get(uri))
        except ValueError as error:
            raise StorageProtocolError(f"{uri} must be JSON: {error}") from error

    def put(
        self,
        uri: str,
        data: bytes | memoryview,
        *,
        content_type: str | None = None,
        pace: Callable[[int], None] | None = None,
    ) -> None:
        """Write the whole object, replacing an existing one.

        `pace` is called with the number of bytes of each chunk before it is sent, and may block.
        """
        address = parse(uri)
        extra = {} if content_type is None else {"ContentType": content_type}

        def request() -> Any:
            body = bytes(data) if pace is None else PacedBody(data, pace)  # a retry sends it from the start
            return self._client.put_object(Bucket=address.bucket, Key=address.key, Body=body, **extra)

        self._run(address, request)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Create the object atomically. Returns False if it already exists.

        If a try gets no response, it may have succeeded, so its retry is rejected. In this case the stored bytes are
        compared with `data`, which should therefore contain something that only this writer writes.
        """
        return self._put_if(parse(uri), data, IfNoneMatch="*")

    def put_if_match(self, uri: str, data: bytes, etag: str) -> bool:
        """Replace the object atomically if it still has this ETag. Returns False if it was replaced or deleted.

        A retry is handled as by `put_if_absent`. If another writer replaces the object between a try without a response
        and its retry, the result is False, although `data` was stored for a moment.
        """
        return self._put_if(parse(uri), data, IfMatch=etag)

    def _put_if(self, address: S3Address, data: bytes, **condition: str) -> bool:
        tries = 0

        def put() -> bool:
            nonlocal tries
            tries += 1
            try:
                self._client.put_object(Bucket=address.bucket, Key=address.key, Body=data, **condition)
            except ClientError as error:
                if "IfMatch" in condition and code_of(error) == "NoSuchKey":
                    return False
                if http_status(error) != 412:
                    raise
                if "IfMatch" in condition:
                    self._check_bucket(address)  # some servers report a missing bucket as an unmet condition
                unanswered = tries > 1 or error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                return unanswered and self._read(address) == data
            return True

        return self._run(address, put)

    def conditions(self, prefix_uri: str) -> Conditions:
        """Test how this server handles `put_if_absent`, with an object under `prefix_uri`. Sends three requests."""
        probe = _probe(prefix_uri)
        try:
            self.put_if_absent(probe, b"first")
            is_honoured = not self.put_if_absent(probe, b"second")
        except StorageProtocolError:
            return Conditions.REFUSED
        self.delete(probe)
        return Conditions.HONOURED if is_honoured else Conditions.IGNORED

    def swap_conditions(self, prefix_uri: str) -> Conditions:
        """Test how this server handles `put_if_absent` and `put_if_match`. Sends up to six requests.

        Some servers support only the former.
        """
        probe = _probe(prefix_uri)
        try:
            is_honoured = (
                self.put_if_absent(probe, b"first")
                and not self.put_if_absent(probe, b"second")
                and not self.put_if_match(probe, b"third", _NO_ETAG)
                and self.put_if_match(probe, b"fourth", self._etag(probe))
            )
            found = Conditions.HONOURED if is_honoured else Conditions.IGNORED
        except StorageProtocolError:
            found = Conditions.REFUSED
        self.delete(probe)
        return found

    def _etag(self, uri: str) -> str:
        found = self.head(uri)
        return "" if found is None else found.etag

    def get_version(self, uri: str, *, most_bytes: int) -> StoredVersion | None:
        """Return the object's bytes and ETag, or None if it does not exist.

        Raises StorageProtocolError if it has more than `most_bytes`.
        """
        address = parse(uri)

        def read() -> StoredVersion:
            answer = self._client.get_object(Bucket=address.bucket, Key=address.key)
            if answer["ContentLength"] > most_bytes:
                answer["Body"].close()
                raise StorageProtocolError(
                    f"{address} has {answer['ContentLength']:,} bytes, and must have at most {most_bytes:,}"
                )
            return StoredVersion(answer["Body"].read(), answer["ETag"])

        try:
            return self._run(address, read)
        except ObjectMissingError:
            return None

    def sha256(self, uri: str) -> str:
        """Return the SHA-256 of the object's bytes in hexadecimal digits. Holds one chunk in memory."""
        address, meter = parse(uri), Meter()
        return self._retry.run(lambda: self._hash(address, meter), lambda: address, self._endpoint, meter)

    def _hash(self, address: S3Address, meter: Meter) -> str:
        meter.begin()
        digest = hashlib.sha256()
        for chunk in self._client.get_object(Bucket=address.bucket, Key=address.key)["Body"].iter_chunks(_READ_CHUNK):
            digest.update(chunk)
            meter.add(len(chunk))
        return digest.hexdigest()

    def head(self, uri: str) -> ObjectInfo | None:
        """Return the object's metadata, or None if it does not exist."""
        address = parse(uri)
        try:
            answer = self._run(address, lambda: self._client.head_object(Bucket=address.bucket, Key=address.key))
        except ObjectMissingError:
            self._check_bucket(address)
            return None
        return ObjectInfo(uri, int(answer["ContentLength"]), answer["ETag"], answer["LastModified"])

    def _check_bucket(self, address: S3Address) -> None:
        """Raise if the bucket is missing: a HEAD response has no body that distinguishes it from a missing object."""
        if address.bucket in self._known_buckets:
            return
        try:
            self._run(address, lambda: self._client.head_bucket(Bucket=address.bucket))
        except ObjectMissingError:
            raise missing_bucket(address, self._endpoint) from None
        self._known_buckets.add(address.bucket)

    def exists(self, uri: str) -> bool:
        """Whether the object exists."""
        return self.head(uri) is not None

    def delete(self, uri: str) -> None:
        """Delete the object if it exists."""
        address = parse(uri)
        self._run(address, lambda: self._client.delete_object(Bucket=address.bucket, Key=address.key))

    def read_into(self, uri: str, buffer: memoryview) -> None:
        """Read the object into `buffer` (writable, contiguous bytes), which must have exactly the object's length.

        Raises ObjectMissingError, and StorageProtocolError if the lengths differ.
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
        """Yield all objects whose address starts with `prefix_uri`, ordered by key."""
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
        """Return the objects that match the pattern, sorted by address; `*`, `?` and `[...]` do not match a slash.

        The address of an existing object returns that object even if it contains wildcards, because keys such as
        `export[final].jsonl` are common.
        """
        found = self.head(pattern_uri)
        if found is not None or not is_pattern(pattern_uri):
            return [] if found is None else [found]
        return [info for info in self.list(literal_prefix(pattern_uri)) if matches(pattern_uri, info.uri)]

    def delete_many(self, uris: Sequence[str]) -> None:
        """Delete objects of one bucket, in requests of up to 1000 objects. Missing objects are ignored.

        Objects are deleted one by one if the server does not support DeleteObjects, for example Google Cloud Storage.
        If objects cannot be deleted, all others are deleted first; then the error of the first one is raised.
        """
        for start in range(0, len(uris), _KEYS_PER_DELETE):
            batch = uris[start : start + _KEYS_PER_DELETE]
            if not self._deletes_many or not self._delete_together(batch):
                self._delete_singly(batch)

    def _delete_together(self, uris: Sequence[str]) -> bool:
        """Send one request. Returns False if the server does not support it."""
        try:
            self._delete_batch([parse(uri) for uri in uris])
        except StorageProtocolError as error:
            # The error of a single object has no HTTP status. With a status, the server rejected the whole request, and
            # a missing bucket or missing permissions would have raised another error.
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
        assert all(address.bucket == bucket for address in addresses), "all objects must be in one bucket"

        def delete() -> None:
            nonlocal failed
            answer = self._client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            if (error := refused_key(answer)) is not None:
                failed = S3Address(bucket, error.response["Error"]["Key"])
                raise error

        self._retry.run(delete, lambda: failed, self._endpoint)

    def now(self, uri: str) -> datetime:
        """Return the server's time, from the same clock as `ObjectInfo.modified`.

        Sends a list request for `uri`, because a policy may not allow listing the whole bucket.
        """
        address = parse(uri)
        answer = self._run(
            address,
            lambda: self._client.list_objects_v2(Bucket=address.bucket, Prefix=address.key, MaxKeys=1),
        )
        stated = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(stated) if stated else utc_now()

    def copy(self, source_uri: str, target_uri: str) -> None:
        """Copy an object within the server, without its bytes passing through this process; large ones in parts.

        Raises ObjectMissingError for a missing source, and StorageProtocolError if the server cannot copy.
        """
        source = parse(source_uri)
        try:
            transfer.copy(self._client, self._retry, self._endpoint, source, parse(target_uri))
        except ObjectMissingError:
            self._check_bucket(source)
            raise

    # Files

    def download(self, uri: str, path: Path) -> None:
        """Download the object to `path`, atomically. Large objects are downloaded in parallel ranges."""
        transfer.download(self._client, self._retry, self._endpoint, [(parse(uri), path)])

    def upload(self, path: Path, uri: str) -> None:
        """Upload the file. Large files are uploaded in parallel parts."""
        transfer.upload(self._client, self._retry, self._endpoint, [(path, parse(uri))])

    def upload_files(self, jobs: Sequence[tuple[Path, str]]) -> None:
        """Upload every file to its address."""
        transfer.upload(self._client, self._retry, self._endpoint, [(path, parse(uri)) for path, uri in jobs])

    def download_folder(self, prefix_uri: str, folder: Path) -> builtins.list[Path]:
        """Download all objects under `prefix_uri` into `folder`, keeping subfolders.

        Returns the files, sorted. Raises ObjectMissingError if there are no objects under the prefix.
        """
        prefix = join(prefix_uri) + "/"
        names = [info.uri.removeprefix(prefix) for info in self.list(prefix) if not info.uri.endswith("/")]
        if not names:
            raise ObjectMissingError(f"no objects exist under {prefix} at {self._endpoint}")
        return self.download_files(prefix_uri, names, folder)

    def download_files(self, prefix_uri: str, names: Sequence[str], folder: Path) -> builtins.list[Path]:
        """Download the objects `names`, relative to `prefix_uri`, into `folder`, keeping subfolders.

        Returns the files, sorted. Raises BadConfigError before any download if a name points outside the folder.
        """
        prefix = join(prefix_uri) + "/"
        jobs = [(parse(prefix + name), transfer.inside(folder, name)) for name in names]
        transfer.download(self._client, self._retry, self._endpoint, jobs)
        return sorted(path for _, path in jobs)

    def upload_folder(self, folder: Path, prefix_uri: str) -> builtins.list[str]:
        """Upload all files under `folder` to `prefix_uri`, keeping subfolders. Returns the addresses, sorted."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        jobs = [(path, parse(join(prefix_uri, path.relative_to(folder).as_posix()))) for path in files]
        transfer.upload(self._client, self._retry, self._endpoint, jobs)
        return sorted(str(address) for _, address in jobs)

    def check_read_write(self, prefix_uri: str) -> None:
        """Write an object under `prefix_uri`, read it back and delete it. Raises the error of the first failure."""
        probe = join(prefix_uri, f".preflight-{uuid.uuid4().hex}")
        self.put(probe, probe.encode())
        if self.get(probe) != probe.encode():
            raise StorageProtocolError(f"{self._endpoint} returned different bytes for {probe} than were written")
        self.delete(probe)


def _probe(prefix_uri: str) -> str:
    return join(prefix_uri, f".conditions-{uuid.uuid4().hex}")
