"""Exponential back-off. Pure."""


def backoff_seconds(failures: int, first: float, longest: float) -> float:
    """How long to wait after `failures` earlier failures: `first`, then twice as long each time, at most `longest`."""
    # Beyond 30 doublings every first wait of a millisecond or more exceeds a week.
    return min(first * 2.0 ** min(failures, 30), longest)
