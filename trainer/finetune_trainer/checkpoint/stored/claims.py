"""Claims: the process with the newest claim owns the run; all other processes must not write.

A claim is for an attempt and a generation: the processes of an attempt can be restarted with a higher generation,
which fences the older one like a newer attempt does. A process can repeat its own claim.
"""

import json
import socket
import time
import uuid
from dataclasses import replace

from finetune_api.clock import rfc3339, utc_now

from ...errors import FencedError, ObjectMissingError
from ...store import Conditions, ObjectStore, join
from .claim_keys import ClaimDecision, ClaimKey, decide_claim, keys_of

_WITHDRAWAL_SECONDS = 30.0
"""How long to wait for other claimants of the same attempt to withdraw: as long as their requests may be retried."""
_LOOK_SECONDS = 0.2


class Claims:
    """The claims under `runs/<run>/attempts`, as one process of an attempt sees them. Used on rank 0 only."""

    def __init__(self, store: ObjectStore, uri: str, *, attempt: int, generation: int = 0) -> None:
        """`generation`: how often the processes of the attempt were started before."""
        self._store = store
        self._uri = uri
        self._token = uuid.uuid4().hex
        """Identifies this process among several that claim the same attempt and generation."""
        self._key = ClaimKey(attempt, generation)
        self.has_conditions = True
        """Whether storage honours conditional writes; set by `claim`."""

    def claim(self, *, world_size: int) -> str:
        """Claim the run. The same process can repeat the claim, for example if a response of storage was lost.

        Raises FencedError if another process made this claim, or a newer one exists. Returns a warning about the
        storage; empty: none.
        """
        self._check_ours(self._listed())
        conditions = self._store.conditions(self._uri)
        self.has_conditions = conditions is Conditions.HONOURED
        claim = {
            "attempt": self._key.attempt,
            "generation": self._key.generation,
            "time": rfc3339(utc_now(), "seconds"),
            "world": world_size,
            "host": socket.gethostname(),
            "token": self._token,
        }
        content = json.dumps(claim).encode()
        if self.has_conditions:
            self._create(self._key, content)
            return ""
        self._contend(replace(self._key, token=self._token), content)
        return (
            f"storage at {self._store.endpoint} {conditions} conditional writes (If-None-Match): ownership of the "
            "run is determined by listing claims"
        )

    def check(self) -> None:
        """Raise FencedError if there is a newer claim."""
        self._check_newer(self._listed())

    def _listed(self) -> list[ClaimKey]:
        return _claims_under(self._store, self._uri)

    def _check_newer(self, listed: list[ClaimKey]) -> None:
        newest = max(listed, key=lambda key: key.rank, default=self._key)
        if newest.rank > self._key.rank:
            newer = replace(newest, token="")
            raise FencedError(f"{newer} has claimed the run; {self._key} must not write anymore")

    def _check_ours(self, others: list[ClaimKey]) -> None:
        self._check_newer(others)
        for key in others:
            if key.rank == self._key.rank and not self._is_own(key):
                raise FencedError(f"{self._key} is already claimed: {join(self._uri, key.name)}")

    def _is_own(self, key: ClaimKey) -> bool:
        """Whether this process made the claim."""
        if key.token:
            return key.token == self._token
        try:
            claim = self._store.get_json(join(self._uri, key.name))
        except ObjectMissingError:
            return False
        return isinstance(claim, dict) and claim.get("token") == self._token

    def _create(self, key: ClaimKey, content: bytes) -> None:
        """Create the claim by one conditional write, which succeeds for one process only."""
        if not self._store.put_if_absent(join(self._uri, key.name), content) and not self._is_own(key):
            raise FencedError(f"{self._key} is already claimed: {join(self._uri, key.name)}")

    def _contend(self, key: ClaimKey, content: bytes) -> None:
        """Write a key of this process, then list the others; see docs/decisions/0006."""
        uri = join(self._uri, key.name)
        self._store.put(uri, content)
        deadline = time.monotonic() + _WITHDRAWAL_SECONDS
        while (found := decide_claim(key, listed := self._listed())) is not ClaimDecision.OURS:
            if found is ClaimDecision.WAIT and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
                continue
            self._store.delete(uri)
            self._check_ours([each for each in listed if each != key])
            raise FencedError(f"the claim of {self._key} is missing after it was written: {uri}")


def newest_claim(store: ObjectStore, uri: str) -> ClaimKey:
    """The newest claim under `uri`, without its token; attempt 0 if there is none."""
    newest = max(_claims_under(store, uri), key=lambda key: key.rank, default=ClaimKey(0))
    return replace(newest, token="")


def _claims_under(store: ObjectStore, uri: str) -> list[ClaimKey]:
    prefix = uri + "/"
    return keys_of(info.uri.removeprefix(prefix) for info in store.list(prefix))
