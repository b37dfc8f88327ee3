"""Optional steps of preparation, one module each: a module that has a `STEP` (see `pipeline.DataStep`) takes part.

docs/decisions/0017-preparation-is-a-list-of-steps.md shows what such a module looks like.
"""
