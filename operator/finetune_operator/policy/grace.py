"""How long pods get to save their state after SIGTERM: by what saving was measured to take, not by a guess."""

import math
from dataclasses import dataclass

from finetune_api.v1alpha1 import Status

from ..observed import ObservedStage
from ..settings import GraceLimits

_SAVES = 2.0
"""A stop may come in the middle of a save; then that one is finished, and the state of the stop is saved after it."""

_STEPS = 2.0
"""The step that is under way, and the one at whose end the ranks agree to stop."""

_ENDING_SECONDS = 15.0
"""Processes end, and rank 0 waits up to five seconds to be asked for its last word."""


@dataclass(frozen=True)
class Verdict:
    """Whether the pods of an attempt can be stopped without losing work."""

    is_safe: bool
    message: str


def grace_seconds(status: Status, limits: GraceLimits) -> int:
    """terminationGracePeriodSeconds of the next attempt's pods."""
    return max(limits.least_seconds, min(limits.most_seconds, _needed(status) or 0))


def verdict(status: Status, stage: ObservedStage, limits: GraceLimits) -> Verdict | None:
    """Of a running attempt; None until a save has been measured."""
    needed, given = _needed(status), stage.grace_seconds
    if needed is None:
        return None
    needs = f"saving the state takes about {needed} s in all"
    if needed <= given:
        return Verdict(True, f"{needs}, and pods get {given} s after SIGTERM")
    told = f"{needs}, but the pods of attempt {stage.attempt} get {given} s after SIGTERM: an eviction loses the work "
    told += "since the last checkpoint"
    if needed <= limits.most_seconds:
        return Verdict(False, f"{told}; the next attempt gets {needed} s")
    remedy = "raise the operator's --max-termination-grace, spread the state over more workers, or train fewer weights"
    return Verdict(False, f"{told}, and the operator allows {limits.most_seconds} s at most; {remedy}")


def _needed(status: Status) -> int | None:
    """Seconds from SIGTERM to the end of the last process, rounded up to ten, so that small changes change nothing."""
    checkpoint, progress = status.run.last_checkpoint, status.run.progress
    if checkpoint is None or checkpoint.save_seconds is None:
        return None
    step = (progress.step_seconds if progress else None) or 0.0
    return 10 * math.ceil((_SAVES * checkpoint.save_seconds + _STEPS * step + _ENDING_SECONDS) / 10)
