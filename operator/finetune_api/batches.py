"""Micro-batch sizes of a spec without `training.microBatchSize`. Pure."""

from .v1alpha1 import Spec

_LARGEST_DEFAULT_MICRO_BATCH = 16


def default_micro_batch(spec: Spec, processes: int) -> int:
    """Return the micro-batch size if memory does not limit it: at most 16, for this number of training processes.

    With fewer processes than the spec has, it does not grow; the number of micro-batches does.
    """
    total = spec.training.global_batch_size
    all_processes = spec.workers.nodes * max(1, spec.workers.gpus_per_node)
    most = largest_divisor(total // all_processes, _LARGEST_DEFAULT_MICRO_BATCH)
    return largest_divisor(total // processes, most)


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit`."""
    return max(size for size in range(1, min(number, limit) + 1) if number % size == 0)
