"""Records that cannot be used: collected while reading, so that one error lists many of them."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

from finetune_api.v1alpha1 import BadRecordAction

from ..errors import BadDataError

_LISTED = 10
"""Enough to see a pattern; reading stops there, since a file of the wrong kind would give millions."""
_SHOWN = 80


class RecordProblem(ValueError):  # noqa: N818 - not an error of the program but a finding about one record
    """One record cannot be used. `rule` names the kind of problem, `remedy` what to do about it."""

    def __init__(self, rule: str, what: str, remedy: str) -> None:
        super().__init__(what)
        self.rule = rule
        self.what = what
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["RecordProblem"], tuple[str, str, str]]:
        return RecordProblem, (self.rule, self.what, self.remedy)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands: its file and its line (text files) or row (Parquet), from 1."""

    uri: str
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.uri} {self.unit} {self.number}"


class BadRecords:
    """Findings of one reading. `Fail`: the error comes after ten of them or at the end; `Skip`: they are counted."""

    def __init__(self, action: BadRecordAction) -> None:
        self.skips = action is BadRecordAction.SKIP
        self.found: list[tuple[str, RecordProblem]] = []
        """Place and problem of each record, in the order of the records; empty with `Skip`."""
        self.dropped: Counter[str] = Counter()
        """Rule -> records that were skipped."""

    def add(self, place: str, problem: RecordProblem, records: int = 1) -> None:
        """Note that the record at `place` cannot be used, and how many are lost by it.

        Raises BadDataError when enough were found.
        """
        if self.skips:
            self.dropped[problem.rule] += records
            return
        self.found.append((place, problem))
        if len(self.found) >= _LISTED:
            self.raise_if_any()

    def merge(self, later: "BadRecords") -> None:
        """Add the findings of the records that follow. Raises BadDataError when enough were found."""
        self.dropped.update(later.dropped)
        for place, problem in later.found:
            self.add(place, problem)

    def raise_if_any(self) -> None:
        """Raise BadDataError listing what was found, with one remedy for each kind of problem."""
        if not self.found:
            return
        lines = [f"{place}: {problem.what}" for place, problem in self.found]
        remedies = list(dict.fromkeys(problem.remedy for _, problem in self.found))
        more = " (reading stopped there)" if len(lines) >= _LISTED else ""
        head = f"{len(lines)} record{'s' if len(lines) > 1 else ''} cannot be used{more}:\n  "
        raise BadDataError(
            head + "\n  ".join(lines),
            advice="; ".join([*remedies, "or set spec.data.onBadRecord: Skip to leave such records out"]),
        )


def shown(value: object) -> str:
    """A value as an error message shows it: quoted, cut to 80 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number with too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def listed(names: Collection[str], *, most: int = 20) -> str:
    """Names with commas between them as an error message shows them: the first ones, and how many more there are."""
    first = [name if len(name) <= _SHOWN else name[: _SHOWN - 3] + "..." for name in islice(names, most)]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(first) or "none") + more
