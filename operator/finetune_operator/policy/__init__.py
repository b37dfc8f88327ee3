"""Decisions, one a file: (spec, observed, now) -> decision. Pure: no I/O, clock, randomness or Kopf."""
