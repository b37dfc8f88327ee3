"""(stage configuration, settings, owner) -> manifests. Pure: no I/O, clock, randomness or Kopf."""

from .event import render_event
from .stage import render_all, render_stage

__all__ = ["render_all", "render_event", "render_stage"]
