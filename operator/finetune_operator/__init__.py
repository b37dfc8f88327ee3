"""The operator: one idempotent reconcile over two clusters, a real one and local processes.

`policy`, `render` and `observed` are pure; `clusters` do the I/O; `reconcile` is the only story.
"""
