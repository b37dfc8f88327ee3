"""(stage configuration, settings, owner) -> manifests. Pure: no I/O, clock, randomness or Kopf."""

from .event import render_event
from .stage import gang_size, render_all, render_stage

__all__ = ["gang_size", "render_all", "render_event", "render_stage"]
