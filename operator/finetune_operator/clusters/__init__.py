"""The Cluster protocol and its implementations, which do all I/O of the operator."""

from .base import Cluster

__all__ = ["Cluster"]
