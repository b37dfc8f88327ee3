"""Changes of the spec that the running attempt does not use because it was started before them."""

from finetune_api.constants import Stage
from finetune_api.scopes import paths, spec_hash
from finetune_api.v1alpha1 import Scope, Spec

from ..observed import ObservedAttempt

AWAITS_END = (
    "the spec describes another run, which starts when the current run has ended, because spec.updatePolicy is Ignore; "
    "set it to Restart to start the other run now"
)


def attempt_hash(spec: Spec) -> str:
    """Return the hash of the fields that an attempt is started with, an annotation of its Job."""
    return spec_hash(spec, {Scope.ATTEMPT})


def evaluation_hash(spec: Spec) -> str:
    """Return the hash of the fields that determine evaluation and exported formats, an annotation of an evaluate
    Job."""
    return spec_hash(spec, {Scope.EVALUATION})


def pending_change(spec: Spec, child: ObservedAttempt) -> str:
    """Return why a change has no effect yet; empty if the whole spec is in effect."""
    if child.spec_hash not in {"", attempt_hash(spec)}:
        return (
            f"one of {', '.join(paths(Scope.ATTEMPT))} was changed after {child.stage} attempt {child.attempt} "
            "started; it takes effect with the next attempt (to start one now, set spec.suspend to true and back to "
            "false: a checkpoint is saved)"
        )
    if child.stage is Stage.EVALUATE and child.evaluation_hash not in {"", evaluation_hash(spec)}:
        return (
            f"one of {', '.join(paths(Scope.EVALUATION))} was changed after evaluate attempt {child.attempt} started; "
            "the model is evaluated again after it"
        )
    return ""
