"""Decisions, one per module: (spec, observed, now) -> decision. Pure: no I/O, clock, randomness or Kopf."""
