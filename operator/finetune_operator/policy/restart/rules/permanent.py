"""A permanent failure: invalid data or spec, access denied."""

from finetune_api.constants import Reason
from finetune_api.v1alpha1 import Outcome

from ..rule import Failure, GiveUp, Rule


def _decide(failure: Failure) -> GiveUp | None:
    if failure.attempt.outcome is not Outcome.PERMANENT:
        return None
    return GiveUp(Reason.PERMANENT_FAILURE, "the same input would fail again")


RULE = Rule("permanent failure", 100, _decide)
