"""Decisions, and the plan of a reconcile that follows from them. Pure: no I/O, clock, randomness or Kopf."""
