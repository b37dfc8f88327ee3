"""Claims: the highest claimed attempt owns the run, and every other one must not write any more."""

import json
import socket
import time
import uuid

from ...errors import FencedError
from ...store import Conditions, ObjectStore, join
from ..format.manifest import utc_now
from .claim_keys import ClaimKey, Verdict, keys_of, verdict

_RIVALS_SECONDS = 30.0
"""How long others of the same attempt are waited for to withdraw: as long as their requests may be tried again."""
_LOOK_SECONDS = 0.2


class Claims:
    """The claims under `runs/<run>/attempts`, as one attempt sees them. Used on rank 0 only."""

    def __init__(self, store: ObjectStore, uri: str, *, attempt: int) -> None:
        self._store = store
        self._uri = uri
        self._attempt = attempt
        self.has_conditions = True
        """Whether storage has conditional writes; `claim` finds it out."""

    def claim(self, *, world_size: int) -> str:
        """Create this attempt's claim. Raises FencedError if it, or a newer one, is there already.

        Returns what a user should know of the storage; empty: nothing.
        """
        self._check_ours(self._listed())
        conditions = self._store.conditions(self._uri)
        self.has_conditions = conditions is Conditions.HONOURED
        token = uuid.uuid4().hex  # tells two claims of one attempt apart
        claim = {
            "attempt": self._attempt,
            "time": utc_now(),
            "world": world_size,
            "host": socket.gethostname(),
            "token": token,
        }
        content = json.dumps(claim).encode()
        if self.has_conditions:
            self._create(ClaimKey(self._attempt), content)
            return ""
        self._contend(ClaimKey(self._attempt, token), content)
        return (
            f"storage at {self._store.endpoint} {conditions} conditional writes (If-None-Match): who may write to the "
            "run is found out by listing"
        )

    def check(self) -> None:
        """Raises FencedError if a newer attempt has claimed the run."""
        self._check_newer(self._listed())

    def _listed(self) -> list[ClaimKey]:
        return _claims_under(self._store, self._uri)

    def _check_newer(self, listed: list[ClaimKey]) -> None:
        newest = _newest_of(listed)
        if newest > self._attempt:
            raise FencedError(f"attempt {newest} has claimed the run; attempt {self._attempt} must not write any more")

    def _check_ours(self, others: list[ClaimKey]) -> None:
        self._check_newer(others)
        for key in others:
            if key.attempt == self._attempt:
                raise FencedError(f"attempt {self._attempt} is claimed already: {join(self._uri, key.name)}")

    def _create(self, key: ClaimKey, content: bytes) -> None:
        """In one step, of which storage makes sure that it succeeds once."""
        uri = join(self._uri, key.name)
        if not self._store.put_if_absent(uri, content):
            raise FencedError(f"attempt {self._attempt} is claimed already: {uri}")

    def _contend(self, key: ClaimKey, content: bytes) -> None:
        """Write a key that nobody else wants, and see who else is there; docs/decisions/0006."""
        uri = join(self._uri, key.name)
        self._store.put(uri, content)
        deadline = time.monotonic() + _RIVALS_SECONDS
        while (found := verdict(key, listed := self._listed())) is not Verdict.OURS:
            if found is Verdict.WAIT and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
                continue
            self._store.delete(uri)
            self._check_ours([each for each in listed if each != key])
            raise FencedError(f"the claim of attempt {self._attempt} is not there after it was written: {uri}")


def newest_claim(store: ObjectStore, uri: str) -> int:
    """The highest attempt with a claim under `uri`; 0 if there is none."""
    return _newest_of(_claims_under(store, uri))


def _claims_under(store: ObjectStore, uri: str) -> list[ClaimKey]:
    prefix = uri + "/"
    return keys_of(info.uri.removeprefix(prefix) for info in store.list(prefix))


def _newest_of(claims: list[ClaimKey]) -> int:
    return max(claims, default=ClaimKey(0)).attempt
