"""Sizes of DeepSpeed's buffers in elements, which the train stage sets and the estimate of memory counts. Pure."""

MAX_BUCKET_ELEMENTS = 50_000_000
"""Elements per reduction: 200 MB in 32 bit. Larger buckets save no latency, and their buffer costs memory."""

MIN_BUCKET_ELEMENTS = 1_000_000

GATHERED_ELEMENTS = 1_000_000_000
"""DeepSpeed's default of `stage3_max_live_parameters` and `stage3_max_reuse_distance`, which share it: parameters that
stage 3 keeps gathered between their forward and backward pass."""

ALL_REDUCE_ELEMENTS = 500_000_000
"""Elements per reduction at stage 0, which DeepSpeed's engine fixes."""


def bucket_elements(parameters: int) -> int:
    """Return the elements of a bucket of gradients at stages 1 to 3, for a model with so many parameters."""
    return min(max(parameters, MIN_BUCKET_ELEMENTS), MAX_BUCKET_ELEMENTS)


def prefetch_elements(parameters: int, largest_matrix: int = 0) -> int:
    """Return the elements that stage 3 gathers ahead.

    On GPUs at least the largest matrix of a layer, `largest_matrix` elements: with less, the next projection of a large
    model (58.7 million elements in Llama 3 8B) is not complete when it is needed. On the CPU 0, because nothing is
    gathered in the background there.
    """
    return max(bucket_elements(parameters) // 10, largest_matrix)
