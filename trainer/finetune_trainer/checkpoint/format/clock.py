"""The time, as checkpoints and claims write it."""

from datetime import UTC, datetime


def now() -> str:
    """RFC 3339, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
