"""The names of claims, and whose a run is where storage cannot say it in one step. Pure.

<attempt>.json           with conditional writes: storage lets one of all claimants create it
<attempt>-<token>.json   without: each claimant writes a name of its own, and looks who else is there
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, order=True)
class ClaimKey:
    """A claim's name. Sorts by attempt, then by token; one without a token comes first."""

    attempt: int
    token: str = ""
    """Of lower-case letters and digits, another one for each claimant."""

    @property
    def name(self) -> str:
        """`3.json`, or `3-5f0c.json`."""
        return f"{self.attempt}-{self.token}.json" if self.token else f"{self.attempt}.json"

    @classmethod
    def of(cls, name: str) -> "ClaimKey | None":
        """None for the name of anything else."""
        attempt, _, token = name.removesuffix(".json").partition("-")
        key = cls(int(attempt), token) if attempt.isascii() and attempt.isdecimal() else None
        return key if key is not None and key.name == name else None


class Verdict(Enum):
    """What a claimant that has written its key does next."""

    OURS = "ours"
    """Go on: the run is ours."""
    WAIT = "wait"
    """Look again: others are here that have to withdraw for us, or the own key is not listed yet."""
    LOST = "lost"
    """Withdraw."""


def keys_of(names: Iterable[str]) -> list[ClaimKey]:
    """The claims among the names."""
    return [key for key in map(ClaimKey.of, names) if key is not None]


def verdict(mine: ClaimKey, listed: Collection[ClaimKey]) -> Verdict:
    """What a listing means that was asked for after `mine` was written.

    Only who sees nobody else of its attempt, and no newer attempt, has the run, and its key stays. So of two claimants
    at most one ever has it: the listing of the one who wrote later shows the other. Those who come at the same time
    settle it by their tokens: the smallest waits, the others withdraw.
    """
    rivals = [key for key in listed if key.attempt >= mine.attempt and key != mine]
    if any(key.attempt > mine.attempt or key < mine for key in rivals):
        return Verdict.LOST
    return Verdict.WAIT if rivals or mine not in listed else Verdict.OURS
