"""Trackers get the metrics of a run while it trains, and its result. One file per tracker; `TRACKERS[name]` finds it.

A tracker is a class that derives from `Tracker` and is registered with `@TRACKERS.register`. Its settings are its block
in `finetune_api.v1alpha1.tracking`. Its library is imported only by the thread that uses it.
"""

from .base import TRACKERS, Tracker

__all__ = ["TRACKERS", "Tracker"]
