"""Content-addressed blobs: the name of a blob is the SHA-256 of its bytes."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from ...errors import CorruptCheckpointError, ObjectMissingError, StorageProtocolError
from ...store import ObjectStore, join
from ..format.retention import StoredBlob
from .node_local_cache import NodeLocalCache

T = TypeVar("T")
R = TypeVar("R")
Content = TypeVar("Content", bytes, memoryview)

THREADS = 4
"""hashlib and sockets release the GIL; more threads do not help with a single network card."""


@dataclass(frozen=True)
class Origin:
    """Number of bytes read, by origin."""

    node_cache: int = 0
    storage: int = 0

    def __add__(self, other: "Origin") -> "Origin":
        return Origin(self.node_cache + other.node_cache, self.storage + other.storage)

    def __sub__(self, other: "Origin") -> "Origin":
        return Origin(self.node_cache - other.node_cache, self.storage - other.storage)

    def __str__(self) -> str:
        """`node-local cache (510.0 MB) and storage (0.1 MB)`."""
        places = (("node-local cache", self.node_cache), ("storage", self.storage))
        return " and ".join(f"{place} ({size / 1e6:.1f} MB)" for place, size in places if size)


class Blobs:
    """The blobs of a run. Existing blobs are not uploaded again; data is read from the node-local cache first."""

    def __init__(self, store: ObjectStore, uri: str, node_cache: NodeLocalCache) -> None:
        self._store = store
        self._uri = uri
        self._node_cache = node_cache
        self._lock = threading.Lock()
        self.read = Origin()
        """Verified bytes read so far."""
        self.suspect: set[str] = set()
        """Digests whose stored bytes were damaged; they are uploaded again when they are saved again."""

    def uri_of(self, digest: str) -> str:
        """Address of a blob."""
        return join(self._uri, digest)

    def put(self, data: bytes | memoryview, *, pace: Callable[[int], None] | None = None, cache: bool = False) -> str:
        """Store the bytes and return their digest. `pace` is called before each chunk is sent, and may block.

        `cache`: also write them to the node-local cache, before the upload; the pace compensates for that time.
        """
        digest = hashlib.sha256(data).hexdigest()
        if cache:
            self._node_cache.add(digest, data)
        uri = self.uri_of(digest)
        present = None if digest in self.suspect else self._store.head(uri)
        if present is None or present.size != len(data):
            self._store.put(uri, data, pace=pace)
            self.suspect.discard(digest)
        return digest

    def put_json(self, value: Any) -> str:
        """Store a JSON value."""
        return self.put(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())

    def get(self, digest: str) -> bytes:
        """The verified bytes, from storage. Raises CorruptCheckpointError."""
        content = self._verified(digest, self._store.get)
        self._count(Origin(storage=len(content)))
        return content

    def read_into(self, digest: str, buffer: memoryview) -> None:
        """Fill `buffer` with the verified bytes, from the node-local cache if it has them.

        Raises CorruptCheckpointError.
        """
        if self._node_cache.read_into(digest, buffer):
            self._count(Origin(node_cache=len(buffer)))
            return

        def fill(uri: str) -> memoryview:
            self._store.read_into(uri, buffer)
            return buffer

        self._verified(digest, fill)
        self._count(Origin(storage=len(buffer)))

    def _count(self, more: Origin) -> None:
        with self._lock:
            self.read += more

    def _verified(self, digest: str, read: Callable[[str], Content]) -> Content:
        """Read twice before reporting an error, because bytes may also be damaged in transit."""
        uri, fault = self.uri_of(digest), "the SHA-256 of its content does not match its name"
        for _ in range(2):
            try:
                content = read(uri)
            except ObjectMissingError as error:
                raise CorruptCheckpointError(f"{uri} is missing") from error
            except StorageProtocolError as error:
                fault = str(error)
            else:
                if hashlib.sha256(content).hexdigest() == digest:
                    return content
        self.suspect.add(digest)
        raise CorruptCheckpointError(f"{uri} is damaged: {fault}")

    def listed(self) -> Iterator[StoredBlob]:
        """List all objects in the folder of the blobs."""
        for info in self._store.list(self._uri + "/"):
            yield StoredBlob(info.uri.rpartition("/")[2], info.size, info.modified)

    def remove(self, digests: Sequence[str]) -> None:
        """Delete blobs; missing ones are ignored."""
        self._store.delete_many([self.uri_of(digest) for digest in digests])

    def sizes(self) -> dict[str, int]:
        """Digest and size in bytes of every stored blob."""
        return {blob.digest: blob.size for blob in self.listed()}


def parallel(action: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply `action` to every item on a few threads; results in order. The first error is raised."""
    work: Sequence[T] = list(items)
    if len(work) <= 1:
        return [action(item) for item in work]
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(action, item) for item in work]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
