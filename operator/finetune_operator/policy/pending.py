"""What a user has changed while an attempt runs, and that attempt does not know of."""

from finetune_api.v1alpha1 import Spec

from ..observed import ObservedStage
from .runs import TECHNICAL_FIELDS, Fields, hash_of

ATTEMPT_FIELDS: Fields = {"checkpoint": True, "storage": True, "workers": True, **TECHNICAL_FIELDS}
"""What an attempt is started with. Other fields start a new run, or are heeded at once."""
_NAMES = "spec.checkpoint, storage, workers, zeroStage, offload, microBatchSize or gradientCheckpointing"


def attempt_hash(spec: Spec) -> str:
    """Of what an attempt is started with; written on its Job."""
    return hash_of(spec, ATTEMPT_FIELDS)


def pending_change(spec: Spec, stage: ObservedStage) -> str:
    """Why a change shows no effect yet; empty where all of the spec is in force."""
    if stage.spec_hash in {"", attempt_hash(spec)}:
        return ""
    return (
        f"{_NAMES} was changed after {stage.stage} attempt {stage.attempt} had begun; it counts from the next attempt "
        "on (to have one now, set spec.suspend to true and back: the state is saved)"
    )
