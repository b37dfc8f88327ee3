"""Durations and quantities as numbers. Pure."""

import re

_DURATION_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SUFFIX_FACTOR = {
    "": 1.0,
    "m": 0.001,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
}


def seconds(duration: str) -> float:
    """`1h30m` -> 5400.0. Raises ValueError for text that is not a duration."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"{duration!r} is not a duration; write for example 90s, 10m or 1h30m")
    return sum(float(number) * _DURATION_SECONDS[unit] for number, unit in parts)


def amount(quantity: str) -> float:
    """`64Gi` -> 68719476736.0, `500m` -> 0.5. Raises ValueError for text that is not a quantity."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([a-zA-Z]*)", quantity)
    if match is None or match.group(2) not in _SUFFIX_FACTOR:
        raise ValueError(f"{quantity!r} is not a quantity; write for example 500m, 2 or 64Gi")
    return float(match.group(1)) * _SUFFIX_FACTOR[match.group(2)]
