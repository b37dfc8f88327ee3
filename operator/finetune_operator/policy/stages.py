"""What happens next: which child to start or to stop, what to wait for, or how the run ends."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from finetune_api.clock import rfc3339
from finetune_api.constants import TERMINAL_CONDITIONS, Reason, Stage
from finetune_api.stages import STAGES, first_stage, stage_after
from finetune_api.v1alpha1 import AttemptPlan, AttemptStatus, Outcome, Spec, Status

from ..observed import Observed, ObservedStage
from . import restart, scale
from .after_change import needs_evaluation
from .deadline import seconds_left
from .history import last_attempt
from .runs import Run

_FAILURES = frozenset({Outcome.PERMANENT, Outcome.RETRYABLE, Outcome.DISRUPTION, Outcome.REJECTED})


@dataclass(frozen=True)
class Start:
    """Create the children of this attempt."""

    stage: Stage
    attempt: int
    change: restart.PlanChange | None = None
    """How the plan differs from that of the attempt before, by a restart rule."""
    plan: AttemptPlan | None = field(default=None, compare=False)
    """What a training attempt is started with."""


@dataclass(frozen=True)
class Stop:
    """Delete these children, leaving them time to save."""

    children: tuple[ObservedStage, ...]
    reason: Reason = Reason.SUSPENDING
    message: str = "saving the state"


@dataclass(frozen=True)
class Watch:
    """A child runs: come back for its progress."""

    stage: Stage
    attempt: int


@dataclass(frozen=True)
class ScaleDown:
    """Record the plan of the next attempt, before the running one is stopped for it."""

    plan: AttemptPlan
    message: str


@dataclass(frozen=True)
class Backoff:
    """Wait before the next attempt."""

    seconds: float
    until: str
    """RFC 3339."""


@dataclass(frozen=True)
class WaitForOrphanPods:
    """These Jobs are gone and pods of them go on: two attempts must not run at once."""

    jobs: tuple[str, ...]


@dataclass(frozen=True)
class StaySuspended:
    """Suspended, with nothing running."""


@dataclass(frozen=True)
class DeleteChildren:
    """The run is over and its children have been kept for long enough: remove them."""

    children: tuple[ObservedStage, ...]


@dataclass(frozen=True)
class RetainChildren:
    """The run is over; its children are removed in so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Finish:
    """The run is over."""

    succeeded: bool
    reason: Reason
    message: str


Decision = (
    Start
    | Stop
    | Watch
    | ScaleDown
    | WaitForOrphanPods
    | Backoff
    | StaySuspended
    | Finish
    | DeleteChildren
    | RetainChildren
    | None
)
"""None: the run is over, and status says so."""


def decide(
    spec: Spec, run: Run, status: Status, observed: Observed, *, now: datetime, max_backoff_seconds: float
) -> Decision:
    """The next step of a job; `status` has the same observation applied."""
    stale = tuple(child for child in observed.active if child.run != run.number)
    if stale:
        return Stop(stale, Reason.SPEC_CHANGED, f"run {run.number} starts when the pods of the old one have ended")
    if is_over(status):
        return _afterwards(spec, status, observed, now)
    active = observed.active
    if observed.orphans and not active:
        return WaitForOrphanPods(observed.orphans)
    if spec.suspend:
        return Stop(active) if active else StaySuspended()
    left = seconds_left(spec, status, now)
    if left is not None and left <= 0:
        over = f"spec.budget.deadline of {spec.budget.deadline} is over"
        if active:
            return Stop(active, Reason.DEADLINE_EXCEEDED, f"{over}; saving the state")
        return Finish(False, Reason.DEADLINE_EXCEEDED, over)
    if active:
        return _of_running(spec, status, active[-1], now)
    return _next(spec, status, last_attempt(status), now, max_backoff_seconds)


def with_plan(decision: Decision, spec: Spec, status: Status) -> Decision:
    """The decision, with the plan of the attempt where it starts a training."""
    if isinstance(decision, Start) and decision.stage is Stage.TRAIN:
        return replace(decision, plan=scale.plan_next(spec, status, decision.change))
    return decision


def _of_running(spec: Spec, status: Status, child: ObservedStage, now: datetime) -> Decision:
    attempt = next((entry for entry in status.run.attempts if entry.job_name == child.job_name), None)
    if attempt is None:
        return Watch(child.stage, child.attempt)
    if (decided := status.run.next_plan) is not None and attempt.stage is Stage.TRAIN:
        return Stop((child,), Reason.FEWER_WORKERS, scale.explanation(spec, attempt, decided.nodes))
    fewer = scale.fewer_nodes(spec, attempt, child, now)
    if fewer is None:
        return Watch(child.stage, child.attempt)
    plan = AttemptPlan(nodes=fewer, reason=f"could start {fewer} of {child.expected_pods} workers")
    return ScaleDown(plan, scale.explanation(spec, attempt, fewer))


def _afterwards(
    spec: Spec, status: Status, observed: Observed, now: datetime
) -> DeleteChildren | RetainChildren | None:
    ttl = spec.ttl_seconds_after_finished
    if ttl is None or not observed.stages:
        return None
    wait = _remaining(status.run.completion_time, ttl, now)
    return RetainChildren(wait) if wait > 0 else DeleteChildren(observed.stages)


def is_over(status: Status) -> bool:
    """The run has a terminal condition."""
    return any(entry.type in TERMINAL_CONDITIONS and entry.status == "True" for entry in status.conditions)


def _next(spec: Spec, status: Status, last: AttemptStatus | None, now: datetime, max_backoff: float) -> Decision:
    if last is None:
        return Start(first_stage(), 1)
    if last.outcome is Outcome.SUCCEEDED:
        following = stage_after(last.stage)
        if following is None and needs_evaluation(status, spec):
            following = Stage.EVALUATE
        if following is not None:
            return Start(following, _following_number(status, following))
        return Finish(True, Reason.SUCCEEDED, "the model is in object storage")
    if last.outcome not in _FAILURES or last.superseded_by_spec_change:  # stopped on request, or no longer counted
        return Start(last.stage, last.number + 1)
    decision = restart.decide(status, spec.restart, max_backoff_seconds=max_backoff)
    if isinstance(decision, restart.GiveUp):
        told = f"{last.stage} failed: {decision.message}"
        if status.run.artifact is not None:  # a failed evaluation does not take the trained model away
            told += f" (the trained model is at {status.run.artifact.uri})"
        return Finish(False, STAGES[last.stage].failed_reason or decision.reason, told)
    retried = Start(last.stage, last.number + 1, decision.change)
    if not decision.delay_seconds or not last.end_time:
        return retried
    until = datetime.fromisoformat(last.end_time) + timedelta(seconds=decision.delay_seconds)
    wait = (until - now).total_seconds()
    return Backoff(wait, rfc3339(until)) if wait > 0 else retried


def _following_number(status: Status, stage: Stage) -> int:
    return 1 + max((attempt.number for attempt in status.run.attempts if attempt.stage is stage), default=0)


def _remaining(ended: str | None, delay: float, now: datetime) -> float:
    if not ended:
        return 0.0
    return (datetime.fromisoformat(ended) + timedelta(seconds=delay) - now).total_seconds()
