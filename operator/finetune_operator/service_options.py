"""Settings of the operator's process."""

from dataclasses import dataclass
from pathlib import Path

SHORTEST_LEASE_SECONDS = 5
"""With less, the leader would lose its Lease when the API server or the node is busy for a moment."""


@dataclass(frozen=True)
class LeaseOptions:
    """The Lease that the leader of several replicas holds."""

    namespace: str
    name: str
    seconds: int = 15
    """Time without a renewal after which another replica takes over."""


@dataclass(frozen=True)
class ServiceOptions:
    """Settings of the process. OperatorSettings has the settings of jobs."""

    namespaces: tuple[str, ...] = ()
    """Namespaces to watch; empty: the whole cluster."""
    kubeconfig: Path | None = None
    """None: the default, or the service account of the pod."""
    workers: int = 24
    """Number of concurrent reconciles."""
    host: str = ""
    """Address of metrics and probes. Empty: all addresses, IPv4 and IPv6."""
    port: int = 8081
    """Port of metrics and probes."""
    resync_seconds: float = 300
    """Seconds between two lists of all objects."""
    watch_silence_seconds: float = 70
    """Seconds without an event after which a watch is opened again. API servers send bookmarks once a minute."""
    lease: LeaseOptions | None = None
    """None: no leader election; this process always reconciles."""
