"""How often the state is saved, from what a crash may cost and what a save does cost. Pure."""

import math
from dataclasses import dataclass

OVERHEAD = 0.035
"""Largest share of the time that saves may take from the training, by stopping it and by slowing steps down: the bound
that CheckFreq (FAST '21) is judged by."""

AIM = 0.9
"""Of what a crash may cost. Steps are not all as long as those that were measured: of a hundred kills, with all of it
aimed at, the worst five cost up to 11 % more."""

SPREAD_SHARE = 1 / 3
"""Of an interval, that an upload is spread over: slow enough not to be felt, and done long before the next one."""

LATE_FACTOR, LATE_LEAST_SECONDS = 1.25, 60.0
"""What a crash may cost, exceeded by so much, is told."""


@dataclass(frozen=True)
class SaveCosts:
    """As measured, in seconds; 0: not yet."""

    step: float = 0.0
    stall: float = 0.0
    """How long the training stands still for a save."""
    drag: float = 0.0
    """How much longer the steps beside its upload take, all together."""
    landing: float = 0.0
    """From a snapshot until its checkpoint exists."""

    @property
    def training(self) -> float:
        """What a save takes from the training."""
        return self.stall + self.drag


def interval_seconds(max_lost_seconds: float, costs: SaveCosts) -> float:
    """Time from one snapshot to the next, so that a crash at any moment costs no more than `max_lost_seconds` of work.

    The worst moment is just before a checkpoint exists: an interval is lost, and what was done while it was stored.
    Added are what the save takes from the training, and a step, for the next chance to save comes one later. Where
    saves cost more than OVERHEAD of that, or are not stored before the next one, they come less often, and a crash
    costs more.
    """
    beside = costs.training + costs.step
    wanted = AIM * max_lost_seconds - max(costs.landing, allowed_spread(max_lost_seconds)) - beside
    return max(wanted, costs.training / OVERHEAD, costs.landing)


def interval_steps(max_lost_seconds: float, costs: SaveCosts) -> int:
    """The same in optimizer steps, at least one. Raises ValueError before a step was measured."""
    if costs.step <= 0:
        raise ValueError("no step was measured yet")
    return max(1, math.floor(interval_seconds(max_lost_seconds, costs) / costs.step))


def lost_seconds(max_lost_seconds: float, costs: SaveCosts) -> float:
    """What a crash may cost with this interval: more than was asked for only where saves cost too much."""
    interval = interval_seconds(max_lost_seconds, costs)
    return max(max_lost_seconds, interval + costs.landing + costs.training + costs.step)


def why_lost_is_more(max_lost_seconds: float, costs: SaveCosts) -> str:
    """Why a crash may cost clearly more than was asked for; empty where it does not."""
    lost = lost_seconds(max_lost_seconds, costs)
    if lost <= LATE_FACTOR * max_lost_seconds:
        return ""
    told = f"a crash may cost {lost:.0f} s of work, not the {max_lost_seconds:g} s of spec.checkpoint.maxLostWork"
    if costs.training / OVERHEAD > costs.landing:
        return f"{told}: a save costs {costs.training:.1f} s, and all of them {OVERHEAD:.1%} of the time at most"
    return f"{told}: a checkpoint takes {costs.landing:.0f} s until it is stored"


def late_seconds(promised: float) -> float:
    """Age of the state behind the last checkpoint from which it is called late.

    `promised` is what a crash may cost. A step that takes longer, or a last save that is near, is no reason for a
    warning, and neither is anything that is made good within a minute.
    """
    return max(LATE_FACTOR * promised, LATE_LEAST_SECONDS)


def spread_seconds(interval: float) -> float:
    """How long an upload may take."""
    return interval * SPREAD_SHARE


def allowed_spread(max_lost_seconds: float) -> float:
    """The same where the interval is not known yet: with it, interval and upload make what is aimed at together."""
    return spread_seconds(AIM * max_lost_seconds / (1 + SPREAD_SHARE))
