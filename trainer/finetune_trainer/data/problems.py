"""Unusable records: collected while reading, so that one error lists many of them."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

from finetune_api.v1alpha1 import BadRecordAction

from ..errors import BadDataError

_LISTED = 10
"""Enough to see a pattern. Reading stops there, because a file of the wrong type could give millions."""
_SHOWN = 80


class RecordProblem(ValueError):  # noqa: N818 - a finding about one record, not a program error
    """One record cannot be used. `rule` is the kind of problem, `remedy` is how to fix it."""

    def __init__(self, rule: str, what: str, remedy: str) -> None:
        super().__init__(what)
        self.rule = rule
        self.what = what
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["RecordProblem"], tuple[str, str, str]]:
        return RecordProblem, (self.rule, self.what, self.remedy)


@dataclass(frozen=True, slots=True)
class Place:
    """Location of a record: its file, and its line (text files) or row (Parquet), from 1."""

    uri: str
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.uri} {self.unit} {self.number}"


class BadRecords:
    """Problems found while reading. `Fail`: raised after ten of them or at the end; `Skip`: they are counted."""

    def __init__(self, action: BadRecordAction) -> None:
        self.skips = action is BadRecordAction.SKIP
        self.found: list[tuple[str, RecordProblem]] = []
        """Place and problem of each record, in the order of the records; empty with `Skip`."""
        self.dropped: Counter[str] = Counter()
        """Rule -> number of records that were skipped."""

    def add(self, place: str, problem: RecordProblem, records: int = 1) -> None:
        """Report that the record at `place` cannot be used; `records` is the number of records that this loses.

        Raises BadDataError when the limit is reached.
        """
        if self.skips:
            self.dropped[problem.rule] += records
            return
        self.found.append((place, problem))
        if len(self.found) >= _LISTED:
            self.raise_if_any()

    def merge(self, later: "BadRecords") -> None:
        """Add the problems of the records that follow. Raises BadDataError when the limit is reached."""
        self.dropped.update(later.dropped)
        for place, problem in later.found:
            self.add(place, problem)

    def raise_if_any(self) -> None:
        """Raise BadDataError with the list of problems, and one remedy for each kind of problem."""
        if not self.found:
            return
        lines = [f"{place}: {problem.what}" for place, problem in self.found]
        remedies = list(dict.fromkeys(problem.remedy for _, problem in self.found))
        more = " (reading stopped here)" if len(lines) >= _LISTED else ""
        head = f"{len(lines)} record{'s' if len(lines) > 1 else ''} cannot be used{more}:\n  "
        raise BadDataError(
            head + "\n  ".join(lines),
            advice="; ".join([*remedies, "or set spec.data.onBadRecord: Skip to drop such records"]),
        )


def shown(value: object) -> str:
    """Format a value for an error message: quoted, truncated to 80 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number with too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def listed(names: Collection[str], *, most: int = 20) -> str:
    """Join names with commas for an error message: the first `most`, and how many more there are."""
    first = [name if len(name) <= _SHOWN else name[: _SHOWN - 3] + "..." for name in islice(names, most)]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(first) or "none") + more
