"""Formats numbers and times for the report and the model card. Pure."""

from datetime import UTC, datetime

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def count_text(number: int) -> str:
    """`12,345`."""
    return f"{number:,}"


def size_text(number: float) -> str:
    """Number of parameters or tokens, rounded: `22.7 M`, `135 M`, `980`."""
    for factor, unit in _UNITS:
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:g}"


def megabytes(number: int) -> str:
    """Size of files: `90.9 MB`."""
    return f"{number / 1e6:,.1f} MB"


def duration_text(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def time_text(text: str) -> str:
    """RFC 3339 -> `2026-03-01 12:05:33 UTC`."""
    return f"{moment(text):%Y-%m-%d %H:%M:%S} UTC"


def moment(text: str) -> datetime:
    """Parse RFC 3339 to a time in UTC. Raises ValueError for other text."""
    return datetime.fromisoformat(text).astimezone(UTC)


def short_digest(digest: str) -> str:
    """The first twelve digits, enough to compare by eye."""
    return digest.removeprefix("sha256:")[:12]
