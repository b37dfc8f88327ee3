"""Exponential back-off. Pure."""


def backoff_seconds(failures: int, first: float, longest: float) -> float:
    """Return the wait after `failures` earlier failures: `first`, doubled each time, at most `longest`. In seconds."""
    # After 30 doublings, a first wait of a millisecond exceeds a week. The limit avoids an overflow.
    return min(first * 2.0 ** min(failures, 30), longest)
