"""Label names and ids. Pure."""

import difflib
from collections.abc import Iterable, Sequence

from .problems import RecordProblem


def label_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct names; a name's place is its id. Sorted, whole numbers by value: 2 comes before 10."""
    names = set(labels)
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def unknown_label(label: str, known: Sequence[str]) -> RecordProblem:
    """The finding for a held-out record whose label training never shows."""
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(label.casefold(), list(folded), n=1, cutoff=0.0)
    nearest = folded[close[0]] if close else known[0]
    return RecordProblem(
        "unknown label",
        f"label {label!r} is not among the {len(known)} labels of the training files; nearest is {nearest!r}",
        "correct the label, or add records that have it to spec.data.train",
    )
