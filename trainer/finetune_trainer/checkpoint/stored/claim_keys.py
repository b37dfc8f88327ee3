"""Names of claims, and who owns a run if storage has no conditional writes. Pure.

<attempt>[.<generation>].json           with conditional writes: storage lets one of all claimants create it
<attempt>[.<generation>]-<token>.json   without: each claimant writes a name of its own, and lists the others

A generation counts how often the processes of one attempt were started; generation 0 is not written.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

_NAME = re.compile(r"(0|[1-9][0-9]*)(?:\.([1-9][0-9]*))?(?:-([0-9a-z]+))?\.json")


@dataclass(frozen=True, order=True)
class ClaimKey:
    """Name of a claim. Sorts by attempt, generation and token; one without a token comes first."""

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


class Verdict(Enum):
    """What a claimant that has written its key does next."""

    OURS = "ours"
    """Continue: it owns the run."""
    WAIT = "wait"
    """List again: other claimants have to withdraw, or its own key is not listed yet."""
    LOST = "lost"
    """Withdraw."""


def keys_of(names: Iterable[str]) -> list[ClaimKey]:
    """The claims among the names."""
    return [key for key in map(ClaimKey.of, names) if key is not None]


def verdict(mine: ClaimKey, listed: Collection[ClaimKey]) -> Verdict:
    """What a listing means that was requested after `mine` was written.

    A claimant owns the run only if it sees nobody else of its attempt and generation, and no newer one; its key stays.
    So at most one of two claimants ever owns it: the listing of the one that wrote later shows the other. Claimants
    that come at the same time decide by their tokens: the smallest waits, the others withdraw.
    """
    rivals = [key for key in listed if key.rank >= mine.rank and key != mine]
    if any(key.rank > mine.rank or key < mine for key in rivals):
        return Verdict.LOST
    return Verdict.WAIT if rivals or mine not in listed else Verdict.OURS
