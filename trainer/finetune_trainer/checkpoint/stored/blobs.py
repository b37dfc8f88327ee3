"""Content-addressed blobs: the name of each is the SHA-256 of its bytes."""

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
from .host import HostCopies

T = TypeVar("T")
R = TypeVar("R")
Content = TypeVar("Content", bytes, memoryview)

THREADS = 4
"""hashlib and sockets release the GIL; more threads than this gain nothing on one network card."""


@dataclass(frozen=True)
class Origin:
    """How many bytes were read where."""

    host: int = 0
    storage: int = 0

    def __add__(self, other: "Origin") -> "Origin":
        return Origin(self.host + other.host, self.storage + other.storage)

    def __sub__(self, other: "Origin") -> "Origin":
        return Origin(self.host - other.host, self.storage - other.storage)

    def __str__(self) -> str:
        """`own host (510.0 MB) and storage (0.1 MB)`."""
        places = (("own host", self.host), ("storage", self.storage))
        return " and ".join(f"{place} ({size / 1e6:.1f} MB)" for place, size in places if size)


class Blobs:
    """The blobs of a run. What is there already is not uploaded again; data is read from the own host where it is."""

    def __init__(self, store: ObjectStore, uri: str, copies: HostCopies) -> None:
        self._store = store
        self._uri = uri
        self._copies = copies
        self._lock = threading.Lock()
        self.read = Origin()
        """Verified bytes so far."""
        self.suspect: set[str] = set()
        """Digests whose stored bytes were found to be others; they are uploaded again when they come up."""

    def uri_of(self, digest: str) -> str:
        """Address of a blob."""
        return join(self._uri, digest)

    def put(self, data: bytes | memoryview, *, pace: Callable[[int], None] | None = None, keep: bool = False) -> str:
        """Store the bytes, and return their digest. `pace` is called before each few of them are sent, and may wait.

        `keep`: on the own host too, and there first: a pace makes up for the time that takes, if any of it is left.
        """
        digest = hashlib.sha256(data).hexdigest()
        if keep:
            self._copies.keep(digest, data)
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
        """Fill `buffer` with the verified bytes, from the own host if it has them. Raises CorruptCheckpointError."""
        if self._copies.read_into(digest, buffer):
            self._count(Origin(host=len(buffer)))
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
        """Bytes may also break on their way, so what is wrong is read a second time before it is called so."""
        uri, fault = self.uri_of(digest), "its bytes have another SHA-256 than its name"
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
        """Every object that storage has among the blobs."""
        for info in self._store.list(self._uri + "/"):
            yield StoredBlob(info.uri.rpartition("/")[2], info.size, info.modified)

    def remove(self, digests: Sequence[str]) -> None:
        """Delete blobs; those that are not there are no error."""
        self._store.delete_many([self.uri_of(digest) for digest in digests])

    def sizes(self) -> dict[str, int]:
        """Every blob that storage has, with its bytes."""
        return {blob.digest: blob.size for blob in self.listed()}


def parallel(action: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`action` of every item, in order, on a few threads; the first failure ends it."""
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
