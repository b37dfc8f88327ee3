"""Where children live: the Cluster protocol and its adapters. All of the operator's I/O is here."""

from .base import Cluster

__all__ = ["Cluster"]
