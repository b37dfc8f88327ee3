"""What a method adds to a training, for the estimate of memory. Importable without torch and transformers."""

from typing import NamedTuple


class ActivationCounts(NamedTuple):
    """Numbers of values that the modules of a method add to those of the base model, for the estimate of memory."""

    kept: int = 0
    """For each token, over all layers: kept for the backward pass, with gradient checkpointing those of one layer."""
    temporary: int = 0
    """In one module, independent of the number of tokens."""
    flags: int = 0
    """Of one byte each, whole on every process at every ZeRO stage."""
