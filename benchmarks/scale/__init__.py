"""Modules of operator_scale.py: a simple client, resource usage, and the variants that are compared."""
