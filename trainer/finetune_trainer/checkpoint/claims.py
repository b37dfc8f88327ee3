"""Claims: which attempt owns the run. The highest claimed attempt does; every other one must not write any more."""

import json
import socket
import uuid

from ..errors import FencedError
from ..store import ObjectStore, join
from .clock import now


class Claims:
    """The claims under `runs/<run>/attempts`, as one attempt sees them. To be used on rank 0 alone."""

    def __init__(self, store: ObjectStore, uri: str, *, attempt: int) -> None:
        self._store = store
        self._uri = uri
        self._attempt = attempt

    def claim(self, *, world_size: int) -> None:
        """Create this attempt's claim. Raises FencedError if it, or a newer one, is there already."""
        self.check()
        claim = {
            "attempt": self._attempt,
            "time": now(),
            "world": world_size,
            "host": socket.gethostname(),
            "token": uuid.uuid4().hex,  # tells two claims of one attempt apart
        }
        uri = join(self._uri, f"{self._attempt}.json")
        if not self._store.put_if_absent(uri, json.dumps(claim).encode()):
            raise FencedError(f"attempt {self._attempt} is claimed already: {uri}")

    def check(self) -> None:
        """Raises FencedError if a newer attempt has claimed the run."""
        newest = newest_claim(self._store, self._uri)
        if newest > self._attempt:
            raise FencedError(f"attempt {newest} has claimed the run; attempt {self._attempt} must not write any more")


def newest_claim(store: ObjectStore, uri: str) -> int:
    """The highest attempt with a claim under `uri`; 0 if there is none."""
    return max((_attempt_of(info.uri) for info in store.list(uri + "/")), default=0)


def _attempt_of(uri: str) -> int:
    """Number of the attempt whose claim this is; 0 for anything else."""
    stem = uri.rpartition("/")[2].removesuffix(".json")
    return int(stem) if stem.isdecimal() else 0
