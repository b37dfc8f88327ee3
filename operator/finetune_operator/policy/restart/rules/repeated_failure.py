"""The same failure again without a new checkpoint in between: one retry shows whether the first was transient."""

from collections.abc import Mapping

from finetune_api.constants import Reason
from finetune_api.exit_codes import ExitCode, name_of, out_of_memory_advice, resources_field
from finetune_api.v1alpha1 import AttemptStatus

from ....observed import EVICTED
from ..rule import Failure, GiveUp, Rule, identical_failures

_MOST_IDENTICAL = 2
_REMEDIES: Mapping[str, str] = {
    name_of(ExitCode.DIVERGED): "lower spec.training.learningRate, add a warmup, or correct the data",
}
_ANY_REMEDY = "correct what status.run.failure names"


def _decide(failure: Failure) -> GiveUp | None:
    count = identical_failures(failure.status)
    if count < _MOST_IDENTICAL:
        return None
    return GiveUp(
        Reason.REPEATED_FAILURE,
        f"failed {count} times with {failure.attempt.reason} and no new checkpoint in between; another attempt would "
        f"fail the same way: {_remedy(failure.attempt)}",
    )


def _remedy(attempt: AttemptStatus) -> str:
    if attempt.reason == name_of(ExitCode.OUT_OF_MEMORY):
        return out_of_memory_advice(attempt.stage)
    if attempt.reason == EVICTED:
        return f"raise what status.run.failure names in {resources_field(attempt.stage)}, or use less of it"
    return _REMEDIES.get(attempt.reason, _ANY_REMEDY)


RULE = Rule("repeated failure", 400, _decide)
