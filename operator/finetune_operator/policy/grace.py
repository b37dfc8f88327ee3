"""Termination grace period of the pods, derived from the measured duration of saves."""

import math
from dataclasses import dataclass

from finetune_api.v1alpha1 import Status

from ..observed import ObservedAttempt
from ..settings import GraceLimits

_SAVES = 2.0
"""Saves after SIGTERM: one may be in progress, which is completed before the state is saved again."""

_STEPS = 2.0
"""Steps after SIGTERM: the current step, and the step at whose end the ranks agree to stop."""

_ENDING_SECONDS = 15.0
"""Time for the processes to end, and for rank 0 to wait up to five seconds until its last progress is read."""


@dataclass(frozen=True)
class StopSafety:
    """Whether the pods of an attempt can be stopped without losing work."""

    is_safe: bool
    message: str


def grace_seconds(status: Status, limits: GraceLimits) -> int:
    """Return terminationGracePeriodSeconds of the pods of the next attempt."""
    return max(limits.least_seconds, min(limits.most_seconds, _needed(status) or 0))


def stop_safety(status: Status, child: ObservedAttempt, limits: GraceLimits) -> StopSafety | None:
    """Return whether a running attempt can be stopped safely; None until a save has been measured."""
    needed, given = _needed(status), child.grace_seconds
    if needed is None:
        return None
    needs = f"saving a checkpoint after SIGTERM takes about {needed} s in total"
    if needed <= given:
        return StopSafety(True, f"{needs}, and the grace period of the pods is {given} s")
    problem = f"{needs}, but the grace period of the pods of attempt {child.attempt} is {given} s: an eviction loses "
    problem += "the work since the last checkpoint"
    if needed <= limits.most_seconds:
        return StopSafety(False, f"{problem}; that of the next attempt is {needed} s")
    remedy = "raise pods.terminationGrace.maximumSeconds of the chart (--max-termination-grace of the operator), "
    remedy += "use more workers, or train fewer parameters"
    return StopSafety(False, f"{problem}, and the operator allows at most {limits.most_seconds} s; {remedy}")


def _needed(status: Status) -> int | None:
    """Seconds from SIGTERM to the end of the last process, rounded up to a multiple of ten to avoid frequent
    changes."""
    checkpoint, progress = status.run.last_checkpoint, status.run.progress
    if checkpoint is None or checkpoint.save_seconds is None:
        return None
    step = (progress.step_seconds if progress else None) or 0.0
    return 10 * math.ceil((_SAVES * checkpoint.save_seconds + _STEPS * step + _ENDING_SECONDS) / 10)
