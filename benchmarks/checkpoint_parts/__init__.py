"""Modules of checkpoints.py: a link with a limited rate, two training ranks, and the measurements."""
