"""Texts of records in logs and reports: short, on one line, without control characters and without personal data."""

import re

from .redaction import redacted

MOST_EXAMPLES = 3
"""Records that a rule shows."""
_MOST_CHARACTERS = 80
_LINE = 400
"""Characters in which personal data and secrets are searched: more than are shown, so that none is shown in part."""
_SCANNED = 20_000
_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]{0,32}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,400}(?:\x07|\x1b\\)?)")
"""Control sequences of terminals: colors, cursor movements, titles and links."""
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
"""Control characters, and characters that are invisible or change the direction of the text."""
_SECRET = re.compile(
    r"\b(?:sk-|hf_|gh[opsu]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA|AIza|eyJ)[A-Za-z0-9_.=-]{12,}|"
    r"(?i:\b(?:password|passwd|secret|token|api[_-]?key)[\"']?\s{0,2}[:=]\s{0,2}[\"']?)[^\s\"']{4,}"
)
"""Keys with a known prefix, and values that are named as passwords."""


def shown_text(text: str) -> str:
    """The start of a text of a record."""
    line = _line(text[:_SCANNED])
    if len(text) > _SCANNED and len(line) < _LINE:  # what is cut off may be a part of personal data
        return "..."
    return _cut(_redacted(line[:_LINE]) + line[_LINE:])


def _line(text: str) -> str:
    return " ".join(_INVISIBLE.sub("", _ESCAPE.sub("", text)).split())


def _redacted(line: str) -> str:
    return _SECRET.sub("[SECRET]", redacted(line))


def _cut(line: str) -> str:
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 3] + "..."


_SPACED = re.compile(r"\s*([^\w\s])\s*")
"""Punctuation with white space around it, which decoded tokens may have where the text has none."""


def is_private(text: str) -> bool:
    """Whether examples must not show the text even after some of its words or characters are changed, because personal
    data and secrets would not be found any more."""
    if len(text) > _SCANNED:
        return True
    unspaced = _SPACED.sub(r"\1", text)
    # Tokenizers may write all letters in lower case: account numbers and some keys are in capitals.
    return any(redacted(each) != each or _SECRET.search(each) for each in (text, unspaced, unspaced.upper()))


_BEFORE = 20
"""Characters shown before the first difference of two texts."""


def shown_change(before: str, after: str) -> str | None:
    """Both texts, from shortly before their first difference. None: no difference can be shown.

    Personal data and secrets are replaced before anything is cut off, because a part of them would not be found.
    """
    one, other = (_redacted(_line(text[:_SCANNED])) for text in (before, after))
    if max(len(before), len(after)) > _SCANNED:  # the text ends with what may be a part of personal data
        one, other = one[:-_LINE], other[:-_LINE]
    places = (index for index, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    start = max(0, next(places, min(len(one), len(other))) - _BEFORE)
    start = one.rfind(" ", 0, start + 1) + 1
    one, other = _cut(one[start:]), _cut(other[start:])
    return None if one == other else f"{one!r} is now {other!r}"
