"""Decide the next step of a job: start or stop an attempt, wait, or complete the run.

Each kind of step is a class. Everything that depends on the kind is a method of it: what the step does in the cluster,
what it records in status, how it is reported, and when the job is reconciled again. `plan` combines these.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import ClassVar

from finetune_api.clock import rfc3339, time_after
from finetune_api.constants import ConditionType, Phase, Reason, Stage
from finetune_api.stages import STAGES, first_stage, stage_after
from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import AttemptPlan, AttemptStatus, Outcome, Spec, Status

from ..names import child_name
from ..observed import Observed, ObservedAttempt
from . import after_change, deadline, grace, history, pending, restart, scale, time_to_live, waiting
from .actions import Action, CreateChildren, DeleteJob, Requeue, RequeueReason
from .facts import Facts
from .runs import Run
from .status import MAX_MESSAGE, StatusNotes, Summary
from .world import evaluation_needs, stage_config

_ENDING_SECONDS = 1.0
"""Interval while pods are terminating: the supervisor of rank 0 waits until its last progress is read, and the next
attempt waits for the last pod."""


class Step(ABC):
    """The next step of a job. The defaults are those of a step that changes nothing."""

    has_events_first: ClassVar[bool] = False
    """Whether its Events are created before its actions, because after these the cluster no longer shows what they
    report."""

    def without_start(self, observed: Observed) -> "Step | None":
        """Return the step for an invalid object, which starts nothing; None: wait until the object is corrected."""
        return self

    def planned(self, spec: Spec, status: Status) -> "Step":
        """Return the step with the plan of the attempt that it starts. `spec` must be valid."""
        return self

    def actions(self, facts: Facts, status: Status) -> tuple[Action, ...]:
        """Return the changes of children, in their order. `status` contains the observation."""
        return ()

    def record(self, facts: Facts, status: Status) -> Status:
        """Return the status with what the step changes in the run."""
        return status

    def unexplained_objects(self, facts: Facts) -> tuple[str, ...]:
        """Return the names of objects whose Warning Events are needed to report the step."""
        return ()

    def notes(self, facts: Facts, status: Status) -> StatusNotes:
        """Return what is reported in addition to the summary. `status` contains what the step records."""
        return StatusNotes()

    @abstractmethod
    def summary(self, status: Status) -> Summary:
        """Return phase, reason and message after the step. `status` contains what the step records."""

    def requeue(self, facts: Facts, status: Status) -> Requeue:
        """Return when the job is reconciled again. `status` is that after the step."""
        return Requeue()


# ---- steps of a run in progress --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start(Step):
    """Create the children of this attempt."""

    stage: Stage
    attempt: int
    change: restart.PlanChange | None = None
    """Change of the plan by a restart rule."""
    plan: AttemptPlan | None = field(default=None, compare=False)
    """Plan of a training attempt."""

    def without_start(self, observed: Observed) -> None:
        """Wait for a valid spec."""

    def planned(self, spec: Spec, status: Status) -> Step:
        """Return the start with the plan of a training attempt. Other stages have none."""
        if self.stage is not Stage.TRAIN:
            return self
        return replace(self, plan=scale.plan_next(spec, status, self.change))

    def actions(self, facts: Facts, status: Status) -> tuple[Action, ...]:
        """Create the children."""
        trains = self.stage is Stage.TRAIN
        seconds = grace.grace_seconds(status, facts.settings.termination_grace) if trains else None
        config = self._config(facts, status)
        return (CreateChildren(config, evaluation_needs(status.run.resolved, config.spec), seconds),)

    def _config(self, facts: Facts, status: Status) -> TrainerConfig:
        run = status.run
        trained = tuple(entry for entry in run.attempts if entry.stage is Stage.TRAIN)
        storage = facts.settings.storage
        return stage_config(facts.job, run.number, self.stage, self.attempt, storage, trained, self.plan, run.resolved)

    def record(self, facts: Facts, status: Status) -> Status:
        """Record the attempt, with hashes of the fields that it is started with."""
        attempt = AttemptStatus(
            stage=self.stage,
            number=self.attempt,
            job_name=child_name(facts.job.metadata.name, status.run.number, self.stage, self.attempt),
            start_time=facts.stamp,
            plan=self.plan,
            queue=self._queue(facts),
            gpus=self._config(facts, status).world.gpu_count or None,
            spec_hash=pending.attempt_hash(facts.spec),
            evaluation_spec_hash=pending.evaluation_hash(facts.spec) if self.stage is Stage.EVALUATE else "",
        )
        return history.record_started(status, attempt).with_run(stage=self.stage, attempt=self.attempt)

    def _queue(self, facts: Facts) -> str:
        return facts.settings.queue(facts.spec) if self.stage is Stage.TRAIN else ""

    def notes(self, facts: Facts, status: Status) -> StatusNotes:
        """Report that a training attempt waits in its queue."""
        queue = self._queue(facts)
        return StatusNotes(queued=f"{status.run.attempts[-1].job_name} waits in the queue {queue}" if queue else "")

    def summary(self, status: Status) -> Summary:
        """Report the stage, or the restart."""
        return _running(status, self.stage, self.attempt)

    def requeue(self, facts: Facts, status: Status) -> Requeue:
        """Read the progress of the attempt soon."""
        return _progress_interval(facts, status)


@dataclass(frozen=True)
class Watch(Step):
    """An attempt is running: read its progress periodically."""

    stage: Stage
    attempt: int

    def record(self, facts: Facts, status: Status) -> Status:
        """Record the attempt as the current one."""
        return status.with_run(stage=self.stage, attempt=self.attempt)

    def unexplained_objects(self, facts: Facts) -> tuple[str, ...]:
        """Return late pods whose status has no reason, or the Job that has not created its pods."""
        child = facts.observed.active[-1]
        idle = waiting.idle_pods(child, facts.now)
        return () if idle is None else waiting.unexplained(child, idle)

    def notes(self, facts: Facts, status: Status) -> StatusNotes:
        """Report pods that wait, changes that are not in effect, and what a stop or a crash would cost."""
        child, run = facts.observed.active[-1], status.run
        idle = waiting.idle_pods(child, facts.now)
        trains = child.stage is Stage.TRAIN
        return StatusNotes(
            waiting="" if idle is None else waiting.explanation(child, idle, facts.warnings),
            queued=waiting.queue_message(child, facts.queue_reason) if child.is_queued else "",
            pending=pending.pending_change(facts.spec, child) if facts.is_valid else "",
            grace=grace.stop_safety(status, child, facts.settings.termination_grace) if trains else None,
            late=(run.progress.checkpoint_late or "") if trains and run.progress else None,
        )

    def summary(self, status: Status) -> Summary:
        """Report the stage, or the restart until its first step."""
        return _running(status, self.stage, self.attempt)

    def requeue(self, facts: Facts, status: Status) -> Requeue:
        """Read the progress, or check waiting pods less and less often."""
        active = facts.observed.active
        if status.phase is not Phase.PENDING or any(child.ending for child in active):
            return _progress_interval(facts, status)
        settings, child = facts.settings, active[-1]
        wait = max(settings.progress_seconds, settings.waiting_seconds, waiting.next_check_seconds(child, facts.now))
        requeue = Requeue(wait, RequeueReason.WAITING).at_most(scale.seconds_to_timeout(facts.spec, child, facts.now))
        return _until_deadline(requeue, facts, status)


@dataclass(frozen=True)
class ScaleDown(Step):
    """Record the plan of the next attempt before the running attempt is stopped for it."""

    plan: AttemptPlan
    message: str

    def without_start(self, observed: Observed) -> Step:
        """Keep the attempt: the next one could not be started."""
        return _watch_newest(observed)

    def record(self, facts: Facts, status: Status) -> Status:
        """Record the plan, so that a crash after the deletion does not lose it."""
        return status.with_run(next_plan=self.plan)

    def summary(self, status: Status) -> Summary:
        """Report why there are fewer workers."""
        return Phase.RESTARTING, Reason.FEWER_WORKERS, self.message

    def requeue(self, facts: Facts, status: Status) -> Requeue:
        """Stop the attempt at once: the plan is now recorded."""
        return Requeue(0.0, RequeueReason.PROGRESS)


@dataclass(frozen=True)
class Stop(Step):
    """Delete these children. Their pods save a checkpoint within the grace period."""

    children: tuple[ObservedAttempt, ...]
    reason: Reason = Reason.SUSPENDING
    message: str = "saving a checkpoint"

    has_events_first: ClassVar[bool] = True

    def without_start(self, observed: Observed) -> Step:
        """Keep an attempt that would be stopped for another one."""
        return _watch_newest(observed) if self.reason is Reason.FEWER_WORKERS else self

    def actions(self, facts: Facts, status: Status) -> tuple[Action, ...]:
        """Delete the Jobs that are not being deleted yet."""
        return _deletions(self.children)

    def summary(self, status: Status) -> Summary:
        """Report why they are stopped."""
        is_restart = self.reason in {Reason.FEWER_WORKERS, Reason.REQUEUED}
        phase = Phase.RESTARTING if is_restart else Phase.SUSPENDING
        return phase, self.reason, self.message

    def requeue(self, facts: Facts, status: Status) -> Requeue:
        """Check soon whether the pods have ended."""
        return _progress_interval(facts, status)


@dataclass(frozen=True)
class WaitForOrphanPods(Step):
    """Wait for running pods of these deleted Jobs, because two attempts must not run at the same time."""

    jobs: tuple[str, ...]

    def summary(self, status: Status) -> Summary:
        """Report the last attempt, and what its successor waits for."""
        phase, reason = Phase.PENDING, Reason.WAITING_FOR_PODS
        if status.run.stage:
            phase, reason, _ = _running(status, Stage(status.run.stage), status.run.attempt)
        return phase, reason, f"{', '.join(self.jobs)} was deleted; the next attempt waits until its pods have ended"

    def requeue(self, facts: Facts, status: Status) -> Requeue:
        """Check often: no watch reports the end of these pods."""
        return _progress_interval(facts, status, is_ending=True)


@dataclass(frozen=True)
class Backoff(Step):
    """Wait before the next attempt."""

    seconds: float
    until: str
    """RFC 3339."""

    def without_start(self, observed: Observed) -> None:
        """Wait for a valid spec."""

    def summary(self, status: Status) -> Summary:
        """Report when the next attempt starts."""
        return Phase.RESTARTING, Reason.RESTARTING, f"next attempt at {self.until}"

    def requeue(self, facts: Facts, status: Status) -> Requeue:
        """Start the attempt at its time, or fail the run at its deadline."""
        return _until_deadline(Requeue(self.seconds), facts, status)


@dataclass(frozen=True)
class StaySuspended(Step):
    """The job is suspended and no pod is running."""

    def summary(self, status: Status) -> Summary:
        """Report how to resume it."""
        return Phase.SUSPENDED, Reason.SUSPENDED, "set spec.suspend to false to resume"


@dataclass(frozen=True)
class Finish(Step):
    """The run ends with this step."""

    succeeded: bool
    reason: Reason
    message: str

    def without_start(self, observed: Observed) -> Step | None:
        """Do not fail the run: the corrected spec may allow another attempt."""
        return self if self.succeeded else None

    def record(self, facts: Facts, status: Status) -> Status:
        """Record the end; and for a failure, the fields whose change continues the run."""
        if not self.succeeded:
            status = status.with_run(failed_spec_hash=after_change.retry_hash(facts.spec))
        return status.with_run(completion_time=facts.stamp)

    def summary(self, status: Status) -> Summary:
        """Report the result, and the cause of a failure."""
        cause = f": {status.run.failure.message}" if status.run.failure and not self.succeeded else ""
        phase = Phase.SUCCEEDED if self.succeeded else Phase.FAILED
        return phase, self.reason, (self.message + cause)[:MAX_MESSAGE]

    def requeue(self, facts: Facts, status: Status) -> Requeue:
        """Delete the children after the time-to-live: no event triggers that reconcile."""
        return Requeue(time_to_live.seconds_left(facts.spec, status, facts.now))


# ---- steps after the end of a run ------------------------------------------------------------------------------------


class _AfterEnd(Step):
    """A step of a run that has ended. Its terminal condition is reported unchanged."""

    def summary(self, status: Status) -> Summary:
        """Report the terminal condition."""
        ended = status.terminal_condition
        assert ended is not None, "the run has ended"
        phase = Phase.SUCCEEDED if ended.type is ConditionType.COMPLETE else Phase.FAILED
        return phase, ended.reason, ended.message


@dataclass(frozen=True)
class RetainChildren(_AfterEnd):
    """Keep the children of a run that has ended for this time."""

    seconds: float

    def requeue(self, facts: Facts, status: Status) -> Requeue:
        """Delete them then. The deadline no longer applies."""
        return Requeue(self.seconds)


@dataclass(frozen=True)
class DeleteChildren(_AfterEnd):
    """Delete the children of a run that has ended, after `spec.ttlSecondsAfterFinished`."""

    children: tuple[ObservedAttempt, ...]

    def actions(self, facts: Facts, status: Status) -> tuple[Action, ...]:
        """Delete the Jobs that are not being deleted yet. The watch reports their end."""
        return _deletions(self.children)


@dataclass(frozen=True)
class DeleteStale(_AfterEnd):
    """Delete the children of another run, which was not recorded. The run that has ended remains the current one."""

    children: tuple[ObservedAttempt, ...]

    def actions(self, facts: Facts, status: Status) -> tuple[Action, ...]:
        """Delete the Jobs that are not being deleted yet."""
        return _deletions(self.children)

    def requeue(self, facts: Facts, status: Status) -> Requeue:
        """Continue when they have been deleted."""
        return Requeue(_ENDING_SECONDS)


@dataclass(frozen=True)
class StayEnded(_AfterEnd):
    """The run has ended, and nothing is due."""

    def without_start(self, observed: Observed) -> None:
        """Report the violations."""

    def record(self, facts: Facts, status: Status) -> Status:
        """Record that the children were removed, and what a run of an earlier operator lacks."""
        status = time_to_live.with_removal(status, facts.spec, facts.observed)
        if status.phase is Phase.FAILED and status.run.failed_spec_hash is None:
            # It failed under an operator that compared other fields: from now on a change continues it.
            status = status.with_run(failed_spec_hash=after_change.retry_hash(facts.spec))
        return status


def _watch_newest(observed: Observed) -> Watch:
    newest = observed.active[-1]
    return Watch(newest.stage, newest.attempt)


def _deletions(children: tuple[ObservedAttempt, ...]) -> tuple[DeleteJob, ...]:
    return tuple(DeleteJob(child.job_name, child.uid, child.has_gang) for child in children if not child.deleting)


def _progress_interval(facts: Facts, status: Status, *, is_ending: bool = False) -> Requeue:
    """Return the interval in which progress is read, shorter while pods are ending, and until the deadline at most."""
    requeue = Requeue(facts.settings.progress_seconds, RequeueReason.PROGRESS)
    if is_ending or any(child.ending for child in facts.observed.active):
        requeue = requeue.at_most(_ENDING_SECONDS)
    return _until_deadline(requeue, facts, status)


def _until_deadline(requeue: Requeue, facts: Facts, status: Status) -> Requeue:
    """Return the requeue, at the deadline at the latest. A deadline in the past has already had its effect."""
    if status.run.suspended_since is not None:
        return requeue  # the deadline moves on
    left = deadline.seconds_left(facts.spec, status, facts.now)
    return requeue if left is None or left <= 0 else requeue.at_most(left)


# ---- the decision ----------------------------------------------------------------------------------------------------


def decide(
    spec: Spec, run: Run, status: Status, observed: Observed, *, now: datetime, max_backoff_seconds: float
) -> Step:
    """Return the next step of a job. `observed` must have been applied to `status`."""
    stale = tuple(child for child in observed.active if child.run != run.number)
    if stale and status.terminal_condition is not None:
        return DeleteStale(stale)
    if stale:
        return Stop(stale, Reason.SPEC_CHANGED, f"run {run.number} starts when the pods of the previous run have ended")
    if status.terminal_condition is not None:
        return _afterwards(spec, status, observed, now)
    active = observed.active
    if observed.orphans and not active:
        return WaitForOrphanPods(observed.orphans)
    if spec.suspend:
        return Stop(active) if active else StaySuspended()
    left = deadline.seconds_left(spec, status, now)
    if left is not None and left <= 0:
        exceeded = f"the run exceeded spec.budget.deadline of {spec.budget.deadline}"
        if active:
            return Stop(active, Reason.DEADLINE_EXCEEDED, f"{exceeded}; saving a checkpoint")
        return Finish(False, Reason.DEADLINE_EXCEEDED, exceeded)
    if active:
        return _of_running(spec, status, active[-1], now)
    return _next(spec, status, history.last_attempt(status), now, max_backoff_seconds)


def _of_running(spec: Spec, status: Status, child: ObservedAttempt, now: datetime) -> Step:
    attempt = next((entry for entry in status.run.attempts if entry.job_name == child.job_name), None)
    if attempt is None:
        return Watch(child.stage, child.attempt)
    if (decided := status.run.next_plan) is not None and attempt.stage is Stage.TRAIN:
        return Stop((child,), Reason.FEWER_WORKERS, scale.explanation(spec, attempt, decided.nodes))
    if history.was_evicted(attempt, child):
        # Its pods cannot continue: their attempt has claimed the run. If none was running, the Job stays in the queue
        # with its place and the backoff of Kueue.
        message = f"{child.job_name} was suspended; the next attempt resumes from its checkpoint"
        return Stop((child,), Reason.REQUEUED, message)
    fewer = scale.fewer_nodes(spec, attempt, child, now)
    if fewer is None:
        return Watch(child.stage, child.attempt)
    plan = AttemptPlan(nodes=fewer, reason=f"could start {fewer} of {child.expected_pods} workers")
    return ScaleDown(plan, scale.explanation(spec, attempt, fewer))


def _afterwards(spec: Spec, status: Status, observed: Observed, now: datetime) -> Step:
    wait = time_to_live.seconds_left(spec, status, now)
    if wait is None or not observed.attempts:
        return StayEnded()
    return RetainChildren(wait) if wait > 0 else DeleteChildren(observed.attempts)


def _next(spec: Spec, status: Status, last: AttemptStatus | None, now: datetime, max_backoff: float) -> Step:
    if last is None:
        return Start(first_stage(), 1)
    if last.outcome is Outcome.SUCCEEDED:
        following = stage_after(last.stage)
        if following is None and after_change.needs_evaluation(status, spec):
            following = Stage.EVALUATE
        if following is not None:
            return Start(following, _following_number(status, following))
        return Finish(True, Reason.SUCCEEDED, "the model is in object storage")
    is_failure = last.outcome is not None and last.outcome.is_failure
    if not is_failure or last.superseded_by_spec_change:  # stopped on request, or no longer counted
        return Start(last.stage, last.number + 1)
    has_evaluation = after_change.last_evaluation(status) is not None
    if last.stage is Stage.EVALUATE and has_evaluation and not after_change.needs_evaluation(status, spec):
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
    until = time_after(last.end_time, decision.delay_seconds)
    wait = (until - now).total_seconds()
    return Backoff(wait, rfc3339(until)) if wait > 0 else retried


def _following_number(status: Status, stage: Stage) -> int:
    return 1 + max((attempt.number for attempt in status.run.attempts if attempt.stage is stage), default=0)


def _running(status: Status, stage: Stage, attempt: int) -> Summary:
    row = STAGES[stage]
    phase, reason = row.phase, row.reason
    if attempt == 1:
        return phase, reason, ""
    if _follows_success(status, stage, attempt):
        return phase, reason, f"{_named(status, attempt)}: the spec was changed after the previous attempt"
    if not row.saves_state:  # these stages report no steps that would show whether the restart succeeded
        return phase, Reason.RESTARTING, _named(status, attempt)
    if not _has_stepped(status, attempt):
        return Phase.RESTARTING, Reason.RESTARTING, _named(status, attempt)
    return phase, reason, _named(status, attempt)


def _follows_success(status: Status, stage: Stage, attempt: int) -> bool:
    """Whether the attempt before this one at the stage succeeded, so that this one is not a restart."""
    return any(
        entry.stage is stage and entry.number == attempt - 1 and entry.outcome is Outcome.SUCCEEDED
        for entry in status.run.attempts
    )


def _named(status: Status, attempt: int) -> str:
    """Return `attempt 3`, with the workers and the reason if its plan differs from the spec."""
    trainings = {entry.number: entry for entry in status.run.attempts if entry.stage is Stage.TRAIN}
    plan = trainings[attempt].plan if status.run.stage == Stage.TRAIN and attempt in trainings else None
    if plan is None or not plan.reason:
        return f"attempt {attempt}"
    return f"attempt {attempt} with {plan.nodes} workers: {plan.reason}"


def _has_stepped(status: Status, attempt: int) -> bool:
    """Whether that training attempt has completed a step."""
    return any(
        entry.stage is Stage.TRAIN and entry.number == attempt and entry.first_step_time
        for entry in status.run.attempts
    )
