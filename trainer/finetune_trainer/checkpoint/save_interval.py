"""How often the state is saved, from what a crash may cost and what a save costs. Pure."""

import math
import statistics
from collections import deque
from dataclasses import dataclass

from finetune_api.v1alpha1 import Checkpoint
from finetune_api.v1alpha1.quantities import seconds
from finetune_api.v1alpha1.results import DEFAULT_MAX_LOST_WORK

MAX_OVERHEAD = 0.035
"""Maximum share of the time that saves may take from training, by stopping it and by slowing steps down: the bound that
CheckFreq (Mohan et al., FAST '21) uses."""

TARGET_SHARE = 0.9
"""Share of `max_lost_seconds` that the interval targets. Steps sometimes take longer than measured: without a margin,
the worst five of a hundred kills cost up to 11 % more."""

UPLOAD_SHARE = 1 / 3
"""Share of an interval that an upload is spread over: slow enough not to slow training down, and finished well before
the next save."""

LATE_FACTOR, LATE_LEAST_SECONDS = 1.25, 60.0
"""A crash that would cost more than this multiple of the promised work, and more than a minute, causes a warning."""

NEAR_END_SHARE = 0.1
"""A save that is due by time is skipped if the final save follows within this share of `max_lost_seconds`."""


@dataclass(frozen=True)
class SavePolicy:
    """When a run saves, from `spec.checkpoint`."""

    total_steps: int
    """Optimizer steps of the whole run. The state is always saved after the last one."""
    every_steps: int = 0
    """0: by time, according to `max_lost_seconds`."""
    max_lost_seconds: float = seconds(DEFAULT_MAX_LOST_WORK)
    max_stale_seconds: float = math.inf
    """Maximum duration of storing a state."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, total_steps: int) -> "SavePolicy":
        """The policy of a job."""
        return cls(
            total_steps=total_steps,
            every_steps=checkpoint.every_steps or 0,
            max_lost_seconds=seconds(checkpoint.max_lost_work or DEFAULT_MAX_LOST_WORK),
            max_stale_seconds=seconds(checkpoint.upload_timeout) if checkpoint.upload_timeout else math.inf,
        )

    def saves_at(self, step: int) -> bool:
        """Whether the step number alone requires a save."""
        return step >= self.total_steps or (self.every_steps > 0 and step % self.every_steps == 0)

    def ends_soon(self, step: int, *, step_seconds: float) -> bool:
        """Whether the final save follows so soon that a save that is due by time is not worth its cost."""
        return (self.total_steps - step) * step_seconds <= NEAR_END_SHARE * self.max_lost_seconds


@dataclass(frozen=True)
class SaveCosts:
    """Measured costs in seconds; 0: not measured yet."""

    step: float = 0.0
    stall: float = 0.0
    """How long a save stops the training."""
    upload_overhead: float = 0.0
    """Total slowdown of the steps during an upload."""
    commit_latency: float = 0.0
    """From a snapshot until its checkpoint is committed."""

    @property
    def training(self) -> float:
        """Time that a save takes from the training."""
        return self.stall + self.upload_overhead


def interval_seconds(max_lost_seconds: float, costs: SaveCosts) -> float:
    """Seconds from one snapshot to the next such that a crash costs at most `max_lost_seconds` of work.

    The worst time for a crash is just before a commit: it costs one interval and the commit latency. The cost of the
    save itself and one step are added, because the next opportunity to save comes one step later. If saves cost more
    than MAX_OVERHEAD of the interval, or are not committed before the next one, the interval is longer and a crash
    costs more.
    """
    other = costs.training + costs.step
    wanted = (
        TARGET_SHARE * max_lost_seconds - max(costs.commit_latency, default_upload_seconds(max_lost_seconds)) - other
    )
    return max(wanted, costs.training / MAX_OVERHEAD, costs.commit_latency)


def interval_steps(max_lost_seconds: float, costs: SaveCosts) -> int:
    """The interval in optimizer steps, at least one. Raises ValueError before a step was measured."""
    if costs.step <= 0:
        raise ValueError("the time of a step must be measured first")
    return max(1, math.floor(interval_seconds(max_lost_seconds, costs) / costs.step))


def lost_seconds(max_lost_seconds: float, costs: SaveCosts) -> float:
    """Work that a crash may cost with this interval; more than `max_lost_seconds` only if saves cost too much."""
    interval = interval_seconds(max_lost_seconds, costs)
    return max(max_lost_seconds, interval + costs.commit_latency + costs.training + costs.step)


def why_lost_is_more(max_lost_seconds: float, costs: SaveCosts) -> str:
    """Why a crash may cost clearly more than `max_lost_seconds`; empty if it does not."""
    lost = lost_seconds(max_lost_seconds, costs)
    if lost <= LATE_FACTOR * max_lost_seconds:
        return ""
    excess = f"a crash may lose {lost:.0f} s of work, not the {max_lost_seconds:g} s of spec.checkpoint.maxLostWork"
    if costs.training / MAX_OVERHEAD > costs.commit_latency:
        return f"{excess}: a save takes {costs.training:.1f} s, and saves may use at most {MAX_OVERHEAD:.1%} of time"
    return f"{excess}: a checkpoint takes {costs.commit_latency:.0f} s until it is stored"


def late_seconds(promised: float) -> float:
    """Age of the last committed state after which the next checkpoint is late.

    `promised` is the work that a crash may cost, in seconds. A single slow step or a delay below a minute does not
    cause a warning.
    """
    return max(LATE_FACTOR * promised, LATE_LEAST_SECONDS)


def upload_seconds(interval: float) -> float:
    """Seconds that an upload is spread over, for a save interval in seconds."""
    return interval * UPLOAD_SHARE


def default_upload_seconds(max_lost_seconds: float) -> float:
    """`upload_seconds` before the interval is known: interval and upload together take TARGET_SHARE of the allowed
    loss."""
    return upload_seconds(TARGET_SHARE * max_lost_seconds / (1 + UPLOAD_SHARE))


_FIRST_STEPS = 5
"""Steps at the start of an attempt that are not measured: they allocate, compile and fill caches."""
_IDLE_STEPS = 100
_LEAST_IDLE_STEPS = 3
_SAVES = 5
"""The overhead is the mean of this many saves: for a single save it is a small difference of two sums, which other
load on the machine disturbs."""
_CAP = 2.0
"""Multiple of the median. A step that takes longer than this was not slowed down by a low-priority upload."""


class UploadOverhead:
    """Measures how much uploads and pruning slow steps down by using processor time, memory bandwidth and network.

    Steps during an upload are compared with recent steps without one.
    """

    def __init__(self) -> None:
        self._ignored = 0
        self._idle: deque[float] = deque(maxlen=_IDLE_STEPS)
        """Seconds of steps without an upload."""
        self._extra: float | None = None
        """Durations of the steps during the current upload; None: no step could be compared yet."""
        self._saves: deque[float] = deque(maxlen=_SAVES)

    def step(self, seconds: float, *, is_uploading: bool) -> None:
        """Add the duration of a step."""
        if self._ignored < _FIRST_STEPS:
            self._ignored += 1
        elif not is_uploading:
            self._idle.append(seconds)
        elif len(self._idle) >= _LEAST_IDLE_STEPS:
            longest = _CAP * statistics.median(self._idle)
            usual = statistics.fmean(min(each, longest) for each in self._idle)
            self._extra = (self._extra or 0.0) + min(seconds, longest) - usual

    def start_save(self) -> None:
        """The following steps belong to another save."""
        if self._extra is not None:
            self._saves.append(self._extra)
        self._extra = None

    @property
    def saves(self) -> int:
        """Number of saves measured, at most five."""
        return len(self._saves)

    @property
    def seconds(self) -> float:
        """Mean total overhead of a save in seconds; 0 until one was measured."""
        return max(0.0, statistics.fmean(self._saves)) if self._saves else 0.0
