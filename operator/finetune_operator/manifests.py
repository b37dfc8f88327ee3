"""The one type that crosses from pure rooms to clusters: a Kubernetes object as a plain mapping."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

Manifest = dict[str, Any]


def rfc3339(moment: datetime) -> str:
    """As the API server writes times, to the millisecond: `2026-01-31T12:00:00.000Z`."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class JobKey:
    """Namespace and name of a FineTuneJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
