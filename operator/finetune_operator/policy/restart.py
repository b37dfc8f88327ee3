"""After a failed attempt: another one, or the end."""

from dataclasses import dataclass

from finetune_api.constants import Reason
from finetune_api.exit_codes import FailureClass
from finetune_api.v1alpha1 import Restart as RestartSpec

_FIRST_BACKOFF_SECONDS = 10.0


@dataclass(frozen=True)
class Retry:
    """Start the next attempt, this long after the failed one ended."""

    delay_seconds: float


@dataclass(frozen=True)
class GiveUp:
    """The run is over."""

    reason: Reason
    message: str


def decide(
    failure: FailureClass, *, restarts: int, disruptions: int, limits: RestartSpec, max_backoff_seconds: float
) -> Retry | GiveUp:
    """`restarts` and `disruptions` count this failure already.

    The first restart is immediate: most failures are a lost process, not a broken input. Then 10 s, doubling.
    """
    if failure is FailureClass.PERMANENT:
        return GiveUp(Reason.PERMANENT_FAILURE, "the same input would fail again")
    if failure is FailureClass.DISRUPTION:
        if disruptions > limits.max_disruptions:
            return GiveUp(Reason.DISRUPTIONS_EXHAUSTED, f"disrupted {disruptions} times")
        return Retry(0.0)
    if restarts > limits.max_restarts:
        return GiveUp(Reason.RESTARTS_EXHAUSTED, f"failed {restarts} times without a new checkpoint in between")
    return Retry(0.0 if restarts <= 1 else min(max_backoff_seconds, _FIRST_BACKOFF_SECONDS * 2.0 ** (restarts - 2)))
