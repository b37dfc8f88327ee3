"""Decide the next step of a run: start or stop an attempt, wait, or complete the run."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from finetune_api.clock import rfc3339
from finetune_api.constants import TERMINAL_CONDITIONS, Reason, Stage
from finetune_api.stages import STAGES, first_stage, stage_after
from finetune_api.v1alpha1 import AttemptPlan, AttemptStatus, Outcome, Spec, Status

from ..observed import Observed, ObservedStage
from . import restart, scale
from .after_change import last_evaluation, needs_evaluation
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
    """Change of the plan by a restart rule."""
    plan: AttemptPlan | None = field(default=None, compare=False)
    """Plan of a training attempt."""


@dataclass(frozen=True)
class Stop:
    """Delete these children. Their pods save a checkpoint within the grace period."""

    children: tuple[ObservedStage, ...]
    reason: Reason = Reason.SUSPENDING
    message: str = "saving a checkpoint"


@dataclass(frozen=True)
class Watch:
    """An attempt is running: read its progress periodically."""

    stage: Stage
    attempt: int


@dataclass(frozen=True)
class ScaleDown:
    """Record the plan of the next attempt before the running attempt is stopped for it."""

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
    """Wait for running pods of these deleted Jobs, because two attempts must not run at the same time."""

    jobs: tuple[str, ...]


@dataclass(frozen=True)
class StaySuspended:
    """The job is suspended and no pod is running."""


@dataclass(frozen=True)
class DeleteChildren:
    """Delete the children of a run that has ended, after `spec.ttlSecondsAfterFinished`."""

    children: tuple[ObservedStage, ...]


@dataclass(frozen=True)
class RetainChildren:
    """Keep the children of a run that has ended for this time."""

    seconds: float


@dataclass(frozen=True)
class Finish:
    """The run ends with this step."""

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
"""None: the run has ended, and status contains this."""


def decide(
    spec: Spec, run: Run, status: Status, observed: Observed, *, now: datetime, max_backoff_seconds: float
) -> Decision:
    """Return the next step of a job. `observed` must have been applied to `status`."""
    stale = tuple(child for child in observed.active if child.run != run.number)
    if stale:
        return Stop(stale, Reason.SPEC_CHANGED, f"run {run.number} starts when the pods of the previous run have ended")
    if has_ended(status):
        return _afterwards(spec, status, observed, now)
    active = observed.active
    if observed.orphans and not active:
        return WaitForOrphanPods(observed.orphans)
    if spec.suspend:
        return Stop(active) if active else StaySuspended()
    left = seconds_left(spec, status, now)
    if left is not None and left <= 0:
        exceeded = f"the run exceeded spec.budget.deadline of {spec.budget.deadline}"
        if active:
            return Stop(active, Reason.DEADLINE_EXCEEDED, f"{exceeded}; saving a checkpoint")
        return Finish(False, Reason.DEADLINE_EXCEEDED, exceeded)
    if active:
        return _of_running(spec, status, active[-1], now)
    return _next(spec, status, last_attempt(status), now, max_backoff_seconds)


def with_plan(decision: Decision, spec: Spec, status: Status) -> Decision:
    """Return the decision, with a plan if it starts a training attempt."""
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


def has_ended(status: Status) -> bool:
    """Whether the run has a terminal condition."""
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
    if last.stage is Stage.EVALUATE and last_evaluation(status) is not None and not needs_evaluation(status, spec):
        # An evaluation with other fields failed, and they were changed back since.
        return Finish(True, Reason.SUCCEEDED, "the model is in object storage")
    decision = restart.decide(status, spec.restart, max_backoff_seconds=max_backoff)
    if isinstance(decision, restart.GiveUp):
        message = f"{last.stage} failed: {decision.message}"
        if status.run.artifact is not None:  # the trained model is kept when the evaluation fails
            message += f" (the trained model is at {status.run.artifact.uri})"
        return Finish(False, STAGES[last.stage].failed_reason or decision.reason, message)
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
