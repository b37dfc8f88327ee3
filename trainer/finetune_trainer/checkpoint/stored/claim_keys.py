"""Names of claims, and who owns a run if storage has no conditional writes. Pure.

<attempt>[.<generation>].json           with conditional writes: storage lets only one claimant create it
<attempt>[.<generation>]-<token>.json   without: each claimant writes its own name and lists the others

A generation counts how often the processes of one attempt were started; generation 0 is not written.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

_NAME = re.compile(r"(0|[1-9][0-9]*)(?:\.([1-9][0-9]*))?(?:-([0-9a-z]+))?\.json")


@dataclass(frozen=True, order=True)
class ClaimKey:
    """Name of a claim. Sorts by attempt, generation and token; no token sorts first."""

    attempt: int
    generation: int = 0
    token: str = ""
    """Lower-case letters and digits, different for each claimant."""

    @property
    def name(self) -> str:
        """`3.json`, `3.1.json`, or `3.1-5f0c.json`."""
        generation = f".{self.generation}" if self.generation else ""
        token = f"-{self.token}" if self.token else ""
        return f"{self.attempt}{generation}{token}.json"

    @property
    def rank(self) -> tuple[int, int]:
        """Attempt and generation: the claim with the highest rank owns the run."""
        return self.attempt, self.generation

    def __str__(self) -> str:
        """`attempt 3`, or `generation 1 of attempt 3`."""
        return (
            f"generation {self.generation} of attempt {self.attempt}" if self.generation else f"attempt {self.attempt}"
        )

    @classmethod
    def of(cls, name: str) -> "ClaimKey | None":
        """Parse a name; None if it is not that of a claim."""
        match = _NAME.fullmatch(name)
        return None if match is None else cls(int(match[1]), int(match[2] or 0), match[3] or "")


class ClaimDecision(Enum):
    """What a claimant does after writing its key."""

    OURS = "ours"
    """Continue: it owns the run."""
    WAIT = "wait"
    """List again: other claimants must withdraw first, or its own key is not listed yet."""
    LOST = "lost"
    """Withdraw."""


def keys_of(names: Iterable[str]) -> list[ClaimKey]:
    """The claims among the names."""
    return [key for key in map(ClaimKey.of, names) if key is not None]


def decide_claim(mine: ClaimKey, listed: Collection[ClaimKey]) -> ClaimDecision:
    """Interpret a listing that was requested after `mine` was written.

    A claimant owns the run only if it sees no other claim of its attempt and generation and no newer one; its key
    stays. So at most one of two claimants can own the run: the listing of the one that wrote later shows the other.
    Concurrent claimants are ordered by their tokens: the smallest waits, the others withdraw.
    """
    rivals = [key for key in listed if key.rank >= mine.rank and key != mine]
    if any(key.rank > mine.rank or key < mine for key in rivals):
        return ClaimDecision.LOST
    return ClaimDecision.WAIT if rivals or mine not in listed else ClaimDecision.OURS
