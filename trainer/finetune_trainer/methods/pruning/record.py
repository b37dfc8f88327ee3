"""The format of `pruning.json`."""

from finetune_api.trainer_config import Message


class PrunedKind(Message):
    """The same linear layer of all transformer layers."""

    name: str
    """Within a transformer layer, such as `self_attn.q_proj`."""
    weights: int
    zeros: int


class PruningRecord(Message):
    """`pruning.json` in the run's folder, if weights become zero."""

    masks: str
    """SHA-256 of the stored masks."""
    kinds: tuple[PrunedKind, ...]
