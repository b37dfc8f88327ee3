"""The plan of a reconcile: facts -> actions, status, Events, and when to reconcile again.

`steps` chooses the step and its classes implement everything specific to a kind of step. This module records the
observation, combines the step with what all steps have in common, and orders the effects.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from pydantic import ValidationError

from finetune_api.clock import rfc3339
from finetune_api.constants import Reason
from finetune_api.rules import Violation
from finetune_api.v1alpha1 import RunTrigger, Status
from finetune_api.v1alpha1.status import in_current_shape
from finetune_api.validation import dropped_fields

from ..manifests import Manifest
from ..settings import OperatorSettings
from . import after_change, deadline, history, pending, poll, runs, scale, schedule, steps, time_to_live, waiting
from . import status as status_policy
from .actions import Action, CreateChildren, CreateEvent, DeleteJob, Requeue, RequeueReason, UpdateStatus
from .events import JobEvent, job_events
from .facts import Facts

_MIN_SECONDS = 1.0
_POLL_SECONDS = 30.0
"""Interval in which a poll in progress is looked at. The watch reports its end earlier."""
_BLOCKED_SECONDS = 30.0
"""Interval of retries after a rejected request. Quotas and permissions are changed by people."""


@dataclass(frozen=True)
class Plan:
    """What a reconcile does."""

    actions: tuple[Action, ...]
    """All effects, in the order of their execution. Without changes in the cluster, the next plan has none."""
    before: Status
    """Status before the reconcile."""
    status: Status
    """Status after the reconcile."""
    observation: Status
    """Status after recording the observation, before applying the step. Basis of the status if the cluster refuses an
    action."""
    requeue: Requeue

    @property
    def events(self) -> tuple[JobEvent, ...]:
        """The Events among the actions."""
        return tuple(action.event for action in self.actions if isinstance(action, CreateEvent))

    @property
    def starts_attempt(self) -> bool:
        """Whether it creates the children of an attempt."""
        return any(isinstance(action, CreateChildren) for action in self.actions)


def plan_of(facts: Facts) -> Plan:
    """Return the plan for these facts."""
    status, step = _decide(facts)
    children = facts.observed.unfinished(facts.job.status.run.number)
    unfinished = tuple(DeleteJob(child.job_name, child.uid, child.has_gang) for child in children)
    if step is None:
        plan = rejection(facts.manifest, facts.violations, facts.stamp, observation=status)
        return replace(plan, actions=(*unfinished, *plan.actions))
    if facts.is_valid:
        step = step.planned(facts.spec, status)
    after = _status_after(facts, status, step)
    polls = tuple(poll.actions(facts.job, after, facts.observed, facts.settings, facts.now)) if facts.is_valid else ()
    changes = (*unfinished, *step.actions(facts, status), *polls)
    after = _with_due_time(facts, after)
    events, update = _reports(facts.manifest, facts.job.status, after)
    requeue = step.requeue(facts, after)
    if polls or poll.unfinished(after, facts.observed):
        has_ended = any(not one.active for one in facts.observed.polls)
        requeue = requeue.no_later_than(_MIN_SECONDS if has_ended else _POLL_SECONDS)
    elif facts.is_valid and (next_poll := poll.next_time(facts.spec, after)) is not None:
        requeue = requeue.no_later_than((next_poll - facts.now).total_seconds())
    if facts.is_valid and (scheduled := schedule.next_time(facts.spec, after)) is not None:
        requeue = requeue.no_later_than(max(_MIN_SECONDS, (scheduled - facts.now).total_seconds()))
    if any(child.held and not child.recorded for child in facts.observed.attempts):
        requeue = requeue.no_later_than(_MIN_SECONDS)  # the next reconcile deletes the Job: its outcome is in status
    if facts.awaits_end and after.terminal_condition is not None:
        requeue = Requeue(_MIN_SECONDS)  # the next reconcile starts the run that the object describes
    return Plan(
        # Status is last: the next reconcile repeats everything that a crash has left undone.
        actions=(*events, *changes, *update) if step.has_events_first else (*changes, *events, *update),
        before=facts.job.status,
        status=after,
        observation=status,
        requeue=requeue,
    )


def _with_due_time(facts: Facts, status: Status) -> Status:
    """Record when the operator must act on a run that has ended; None: nothing is due, or it has not ended."""
    times: list[datetime] = []
    # A poll in progress has Jobs whose events must be handled, as those of a run in progress.
    if status.terminal_condition is not None and facts.is_valid and not poll.unfinished(status, facts.observed):
        spec = facts.spec
        found = (time_to_live.due_at(spec, status), schedule.next_time(spec, status), poll.next_time(spec, status))
        times = [time for time in found if time is not None]
    return status.model_copy(update={"due_time": rfc3339(min(times)) if times else None})


def unexplained_objects(facts: Facts) -> tuple[str, ...]:
    """Return the names of objects whose Warning Events the plan needs. Usually there are none."""
    active = facts.observed.active
    if not active or waiting.idle_pods(active[-1], facts.now) is None:
        return ()  # the common case needs no decision
    _, step = _decide(facts)
    return () if step is None else step.unexplained_objects(facts)


def queued_job(facts: Facts) -> str:
    """Return the UID of the Job whose admission by a queue the plan reports; empty: usually there is none."""
    active = facts.observed.active
    return active[-1].uid if active and active[-1].is_queued and active[-1].queue else ""


def refused(facts: Facts, plan: Plan, reason: Reason, message: str) -> Plan:
    """Return the plan that replaces `plan` after the cluster refused one of its changes of children."""
    status = status_policy.blocked(
        plan.observation,
        reason,
        message,
        notes=status_policy.StatusNotes(violations=facts.violations),
        generation=facts.job.metadata.generation,
        now=facts.stamp,
    )
    events, update = _reports(facts.manifest, plan.before, status)
    wait = max(_BLOCKED_SECONDS, facts.settings.waiting_seconds)
    return Plan((*events, *update), plan.before, status, plan.observation, Requeue(wait, RequeueReason.WAITING))


def rechecked(plan: Plan, settings: OperatorSettings) -> Plan:
    """Return the plan of an invalid object with a reconcile by time, because no event reports its correction."""
    if plan.requeue.seconds is not None:
        return plan
    wait = max(_BLOCKED_SECONDS, settings.waiting_seconds)
    return replace(plan, requeue=Requeue(wait, RequeueReason.WAITING))


def rejection(
    manifest: Manifest, violations: tuple[Violation, ...], now: str, *, observation: Status | None = None
) -> Plan:
    """Return the plan for an invalid object without an attempt that continues.

    `observation` is the status after an observation of its children; None: they were not observed. `now`: RFC 3339.
    """
    written, generation = manifest.get("status") or {}, manifest["metadata"].get("generation", 1)
    try:
        before = Status.read(written)
    except ValidationError:
        newer = Violation(
            "status", "must be readable by this version, but was written by a newer operator; upgrade the operator"
        )
        status = status_policy.rejected(Status(), (newer, *violations), generation=generation, now=now)
        merged = status_policy.merged_into_unreadable(written, status)
        return Plan(() if merged == written else (UpdateStatus(merged),), Status(), status, Status(), Requeue())
    status = status_policy.rejected(observation or before, violations, generation=generation, now=now)
    events, update = _reports(manifest, before, status)
    return Plan((*events, *update), before, status, observation or before, Requeue())


def _decide(facts: Facts) -> tuple[Status, steps.Step | None]:
    """Return the status with everything that has happened, and the next step.

    None: the object is invalid, and no attempt of it is running.
    """
    job, observed, now = facts.job, facts.observed, facts.stamp
    status = job.status
    if facts.is_valid:
        status = schedule.with_schedule(status, job.spec, facts.now)
        is_scheduled = schedule.starts_run(job.spec, status, facts.now)
        status = schedule.with_time_passed(status, job.spec, facts.now, started=is_scheduled)
        again = RunTrigger.SCHEDULE if is_scheduled else None
        if again is None and poll.found_change(status, job.spec, observed):
            again = RunTrigger.DATA
        status = poll.with_results(status, observed, now)
        # Before the run is replaced: its last results decide what can be reused.
        status = history.with_children(status, observed, facts.progress, now)
        job = job.model_copy(update={"status": status})
        run: runs.Run | None = runs.current_run(job, observed.attempts, again=again)
    else:
        run = runs.known_run(status, observed.attempts)
    if run is None:
        return status, None
    if run.is_adopted:
        status = after_change.with_evaluation_hashes(status, job.spec)
    if facts.is_valid and not run.is_new:
        status = after_change.continued_after_change(status, job.spec, now)
    spec = job.spec if facts.is_valid else None
    status = history.apply_observation(status, run, observed, facts.progress, now, spec=spec)
    if status.terminal_condition is None:
        status = deadline.with_suspension(status, job.spec.suspend or observed.is_queued, now)
    step: steps.Step | None = steps.decide(
        job.spec, run, status, observed, now=facts.now, max_backoff_seconds=facts.settings.max_backoff_seconds
    )
    if step is not None and not facts.is_valid:
        step = step.without_start(observed)
    return status, step


def _status_after(facts: Facts, status: Status, step: steps.Step) -> Status:
    """Return the status after the step. `status` contains the observation."""
    status = step.record(facts, status)
    notes = replace(
        step.notes(facts, status),
        violations=facts.violations,
        unknown_fields=dropped_fields(facts.manifest) if facts.is_valid else (),
    )
    if facts.awaits_end:
        notes = replace(notes, pending=pending.AWAITS_END)
    if facts.is_valid:
        status = history.with_history_limit(scale.with_batch(status, facts.spec), facts.spec.history_limit)
    generation = facts.job.metadata.generation
    return status_policy.status_after(status, step, generation=generation, now=facts.stamp, notes=notes)


def _reports(
    manifest: Manifest, before: Status, after: Status
) -> tuple[tuple[CreateEvent, ...], tuple[UpdateStatus, ...]]:
    """Return the Events and the write of status for a transition; empty if the object already has that status.

    After a crash between them, the same Events are created again under the same names.
    """
    written = manifest.get("status") or {}
    events = tuple(CreateEvent(event) for event in job_events(before, after))
    if after == before and in_current_shape(written) is written:
        return events, ()
    return events, (UpdateStatus(after.written()),)
