"""The operator: one idempotent reconcile function for Kubernetes and for local processes.

`policy`, `render` and `observed` are pure, `clusters` do the I/O, and `reconcile` combines them.
"""
