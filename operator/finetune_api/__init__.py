"""The contract between users, the operator and the trainer.

Imports pydantic and the standard library only; no I/O, clock or randomness. The only place where a field
name, a label, an environment variable or an exit code is spelled.
"""
