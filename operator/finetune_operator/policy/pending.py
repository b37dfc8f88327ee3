"""What a user has changed while an attempt runs, and that attempt does not know of."""

from finetune_api.v1alpha1 import Spec

from ..observed import ObservedStage
from .runs import hash_of

_ATTEMPT_BLOCKS = ("checkpoint", "storage", "workers")
"""What an attempt is started with. Other blocks start a new run, or are heeded at once."""


def attempt_hash(spec: Spec) -> str:
    """Of what an attempt is started with; written on its Job."""
    return hash_of(spec, _ATTEMPT_BLOCKS)


def pending_change(spec: Spec, stage: ObservedStage) -> str:
    """Why a change shows no effect yet; empty where all of the spec is in force."""
    if stage.spec_hash in {"", attempt_hash(spec)}:
        return ""
    return (
        f"spec.{', spec.'.join(_ATTEMPT_BLOCKS[:-1])} or spec.{_ATTEMPT_BLOCKS[-1]} was changed after {stage.stage} "
        f"attempt {stage.attempt} had begun; it counts from the next attempt on (to have one now, set spec.suspend to "
        "true and back: the state is saved)"
    )
