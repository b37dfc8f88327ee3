"""Durations and quantities as numbers. Pure."""

import re

_DURATION_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SUFFIX_FACTOR = {
    "": 1.0,
    "n": 1e-9,
    "u": 1e-6,
    "m": 0.001,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "E": 1e18,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
    "Ei": 2.0**60,
}


def seconds(duration: str) -> float:
    """`1h30m` -> 5400.0. Raises ValueError for text that is not a duration."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"{duration!r} must be a duration, such as 90s, 10m or 1h30m")
    return sum(float(number) * _DURATION_SECONDS[unit] for number, unit in parts)


def short_duration(duration_seconds: float) -> str:
    """Format a duration in its two largest units, as `kubectl get` does: `45s`, `2m14s`, `3h5m`, `2d4h`."""
    whole = max(0, round(duration_seconds))
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    first = next((index for index, (_, size) in enumerate(units) if whole >= size), len(units) - 1)
    parts = []
    for unit, size in units[first : first + 2]:
        parts.append(f"{whole // size}{unit}")
        whole %= size
    return "".join(part for index, part in enumerate(parts) if index == 0 or not part.startswith("0"))


def amount(quantity: str) -> float:
    """`64Gi` -> 68719476736.0, `500m` -> 0.5, `1e9` -> 1e9. Raises ValueError for text that is not a quantity."""
    match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+|[a-zA-Z]*)", quantity)
    if match is None:
        raise ValueError(f"{quantity!r} must be a quantity, such as 500m, 0.5, 2 or 64Gi")
    number, suffix = match.groups()
    if suffix in _SUFFIX_FACTOR:
        return float(number) * _SUFFIX_FACTOR[suffix]
    try:
        return float(number + suffix)
    except ValueError:
        raise ValueError(f"{quantity!r} must be a quantity, such as 500m, 0.5, 2 or 64Gi") from None


def gib(size_bytes: float) -> str:
    """Format a size for a message: `68719476736` -> `64.0 GiB`."""
    return f"{size_bytes / 2**30:.1f} GiB"
