"""Optional steps of data preparation, one module each. A module that defines `STEP` (see `pipeline.DataStep`) is used.

docs/decisions/0017-preparation-steps.md describes how to write one.
"""
