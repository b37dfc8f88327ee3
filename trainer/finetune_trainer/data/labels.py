"""Label names and ids: the same label gets the same name, whatever wrote the file. Pure."""

import difflib
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal

from ..errors import BadDataError
from .problems import RecordProblem, listed, shown

MAX_CLASSES = 10_000
MAX_LABEL_LENGTH = 256
"""Maximum characters of a label. Longer values are texts from another column."""

_FEW_CLASSES = 20
"""Up to this number of classes, the ratio of classes to rows is not checked: tiny datasets are legitimate."""
_EXACT = 2**53
"""From here on, neighbouring integers have the same float."""

_BOOLEANS = frozenset({"true", "false"})
_FLOAT_OF_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)\.0")
"""How pandas writes integers of a column with missing values."""
_DECIMAL = re.compile(r"-?[0-9]+\.[0-9]+")
_FRACTION = re.compile(r"-?[0-9]+\.[0-9]*[1-9][0-9]*")


def label_name(value: object) -> str:
    """A label as text: `3` and `3.0` are "3", `1.5` is "1.5", `true` is "true"; spaces around text are removed.

    Raises RecordProblem for a value that is not a label. `canonical_names` unifies different spellings in texts.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        raise _missing()
    if isinstance(value, str):
        return _text_label(value)
    if isinstance(value, int):
        return _text_label(str(value))
    if isinstance(value, float | Decimal) and -_EXACT < value < _EXACT:
        return str(int(value)) if value == int(value) else _fraction(value)
    what = f"the label is {type(value).__name__} {shown(value)}, but must be text or a number between -2^53 and 2^53"
    raise RecordProblem("wrong type", what, "write labels as text or numbers")


def _fraction(number: float | Decimal) -> str:
    """The shortest text with the value of the number, as CSV writers use it."""
    shortest = repr(float(number))
    return shortest if isinstance(number, float) or Decimal(shortest) == number else str(number.normalize())


def _text_label(text: str) -> str:
    name = text.strip()
    if not name:
        raise _missing()
    if len(name) > MAX_LABEL_LENGTH:
        what = f"the label has {len(name):,} characters, but must have at most {MAX_LABEL_LENGTH}: {shown(name)}"
        raise RecordProblem("label too long", what, "set spec.data.columns.label to the column with the class names")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        what = f"the label contains an unpaired surrogate, {name[error.start]!r}"
        raise RecordProblem("undecodable bytes", what, "write characters beyond U+FFFF without escapes") from None
    return name


def _missing() -> RecordProblem:
    return RecordProblem("missing label", "the label is empty", "fill it or remove the record")


def canonical_names(spellings: Collection[str]) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Spelling -> name, for the spellings that get a different name; and remarks for the user.

    - `True`, `TRUE` and `true` are "true", likewise "false": CSV writers differ, JSON and Parquet have a boolean type.
    - `-0` is "0".
    - `1.0` is "1", unless the labels include fractions such as `1.5` and no plain `1`: then they are identifiers or
      grades, and are kept as text.
    - Equal characters in different Unicode compositions are the same (NFC).

    Everything else keeps its spelling: `01` and `1`, `1.10` and `1.1`, or `A` and `a`, may be different classes. A
    remark lists such pairs.
    """
    names = {unicodedata.normalize("NFC", spelling) for spelling in spellings}
    whole = {canonical_name(name, floats_are_whole=True) for name in names if _FLOAT_OF_WHOLE.fullmatch(name)}
    has_grades = any(_FRACTION.fullmatch(name) for name in names) and names.isdisjoint(whole)
    changed = {
        spelling: name
        for spelling in spellings
        if (name := canonical_name(spelling, floats_are_whole=not has_grades)) != spelling
    }
    remarks = []
    if changed:
        pairs = [f"{shown(spelling)} is {shown(name)}" for spelling, name in sorted(changed.items())]
        remarks.append(f"labels were renamed to the form that other file types use: {listed(pairs, most=4)}")
    kept = {changed.get(spelling, spelling) for spelling in spellings}
    if similar := _similar_names(kept):
        groups = [" and ".join(map(shown, group)) for group in similar]
        remarks.append(f"labels that look similar are different classes: {listed(groups, most=4)}")
    return changed, tuple(remarks)


def canonical_name(spelling: str, *, floats_are_whole: bool) -> str:
    """The name of one spelling. Whether `1.0` is `1` (`floats_are_whole`) depends on all labels of a dataset."""
    name = unicodedata.normalize("NFC", spelling)
    if floats_are_whole and _FLOAT_OF_WHOLE.fullmatch(name):
        return str(int(name.removesuffix(".0")))
    if name == "-0":
        return "0"
    folded = name.casefold()
    return folded if folded in _BOOLEANS else name


def _similar_names(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in case, spaces, width, leading zeros or the zeros at the end of a fraction."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        key = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if _DECIMAL.fullmatch(key):
            key = key.rstrip("0").removesuffix(".")
        groups[key.lstrip("0") or "0" if key.isdecimal() else key].append(name)
    return [group for group in groups.values() if len(group) > 1]


def label_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct names; the index of a name is its id. Integers are sorted by value: 2 comes before 10."""
    names = set(labels)
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def check_label_column(
    labels: Sequence[str], rows: int, things: str = "training records", field: str = "label"
) -> None:
    """Raise BadDataError if the `labels` of `rows` training `things` cannot be the classes of a classifier.

    `field`: the field of `spec.data.columns` that names their column.
    """
    classes = len(labels)
    advice = (
        f"set spec.data.columns.{field} to the column with the class names; to train on the texts themselves, "
        "set spec.data.format"
    )
    if classes > MAX_CLASSES:
        raise BadDataError(
            f"the {rows:,} {things} have {classes:,} different labels, but a classifier can have at most "
            f"{MAX_CLASSES:,} classes; the first: {listed([shown(label) for label in labels], most=3)}",
            advice=advice,
        )
    if classes > _FEW_CLASSES and classes > rows / 2:
        raise BadDataError(
            f"the {rows:,} {things} have {classes:,} different labels, so most labels occur once; the first: "
            f"{listed([shown(label) for label in labels], most=3)}",
            advice=f"{advice}; if these are the classes, add records so that each class has at least two",
        )


def unknown_label(label: str, known: Sequence[str], *, with_nearest: bool = True) -> RecordProblem:
    """The problem of a held-out record whose label does not occur in training.

    `with_nearest`: find the most similar known label, which is slow with thousands of labels.
    """
    folded = {name.casefold(): name for name in known} if with_nearest else {}
    close = difflib.get_close_matches(label.casefold(), list(folded), n=1)
    nearest = f"; the nearest is {folded[close[0]]!r}" if close else ""
    return RecordProblem(
        "unknown label",
        f"label {label!r} is not among the {len(known)} labels of the training files{nearest}",
        "correct the label, or add records that have it to spec.data.train",
    )
