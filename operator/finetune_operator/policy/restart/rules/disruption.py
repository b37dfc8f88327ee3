"""A disruption: an eviction, a drain, a lost node, a pod that a kubelet rejected. Limit: `restart.maxDisruptions`."""

from finetune_api.constants import Reason
from finetune_api.v1alpha1 import Outcome

from ..rule import Action, Failure, GiveUp, Rule, disruptions_in_a_row


def _decide(failure: Failure) -> Action | None:
    if failure.attempt.outcome not in {Outcome.DISRUPTION, Outcome.REJECTED}:
        return None
    disruptions = failure.status.run.disruptions
    if disruptions > failure.limits.max_disruptions:
        return GiveUp(Reason.DISRUPTIONS_EXHAUSTED, f"disrupted {disruptions} times")
    return failure.retry(disruptions_in_a_row(failure.status.run.attempts))


RULE = Rule("disruption", 200, _decide)
