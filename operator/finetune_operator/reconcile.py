"""Reconcile a FineTuneJob: observe, decide, apply, create Events, update status.

It is idempotent: repeating it without changes in the cluster writes nothing. All rules are in `policy`.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto

from pydantic import ValidationError

from finetune_api.clock import rfc3339
from finetune_api.constants import Phase, Reason, Stage
from finetune_api.progress import Progress
from finetune_api.rules import Violation
from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import AttemptPlan, FineTuneJob, Spec, Status
from finetune_api.v1alpha1.job import Metadata
from finetune_api.v1alpha1.status import in_current_shape
from finetune_api.validation import InvalidJobError, dropped_fields, parse_job

from .clusters import Cluster
from .errors import ApiError, ClusterConflictError
from .manifests import JobKey, Manifest
from .observed import Observed, ObservedStage
from .policy import after_change, deadline, grace, history, pending, runs, scale, stages, waiting
from .policy import in_force as in_force_policy
from .policy import status as status_policy
from .policy.events import job_events
from .policy.world import batch_plan, evaluation_needs, stage_config
from .render import names, render_event, render_stage
from .settings import OperatorSettings

_BLOCKED_SECONDS = 30.0
"""Interval of retries after a rejected request. Quotas and permissions are changed by people."""

_ENDING_SECONDS = 1.0
"""Interval while pods are terminating: the supervisor of rank 0 waits until its last progress is read, and the next
attempt waits for the last pod."""


class RequeueReason(Enum):
    """Why a job is reconciled again after a time."""

    PROGRESS = auto()
    """An attempt is running and its progress is read."""
    WAITING = auto()
    """Pods wait for resources, or the cluster rejects a request. A watch reports most changes."""
    DUE = auto()
    """Something is due at that time and not before."""


@dataclass(frozen=True)
class ReconcileResult:
    """Result of a reconcile."""

    requeue_after: float | None
    """Seconds until the next reconcile without an event; None: only after an event."""
    status: Status
    """Status after the reconcile."""
    before: Status
    """Status before the reconcile."""
    uid: str
    """UID of the object."""
    requeue_reason: RequeueReason = RequeueReason.DUE
    """Reason for `requeue_after`."""


async def reconcile(
    cluster: Cluster, key: JobKey, settings: OperatorSettings, now: datetime, *, local: bool = False
) -> ReconcileResult | None:
    """Reconcile a job once; None if it does not exist or is being deleted. `local` allows `file://` inputs.

    Raises ApiError and ApiUnreachableError for requests that may succeed when they are retried.
    """
    manifest = await cluster.get(key)
    if manifest is None or "deletionTimestamp" in manifest["metadata"]:
        return None
    stamp = rfc3339(now)

    # Violations are reported, and nothing is started. A run in progress continues and can be stopped.
    violations: tuple[Violation, ...] = ()
    try:
        job = parse_job(manifest, local=local)
    except InvalidJobError as error:
        violations = error.violations
        in_force = await _job_in_force(cluster, key, manifest)
        if in_force is None:
            return await _reject(cluster, manifest, violations, stamp)
        job = in_force

    # Observe: the children, and the progress of the active stage.
    jobs = await cluster.list_jobs(key, history.open_attempt_jobs(job.status))
    open_jobs = history.open_jobs(job.status, jobs)
    pods = await cluster.list_pods(key, open_jobs) if open_jobs else []
    observed = Observed.from_manifests(job.metadata.uid, jobs, pods, now=now)
    progress = await _progress(cluster, observed, pods)

    # Decide: record what has ended, then choose the next step.
    found = _decide(job, observed, progress, settings, now, is_valid=not violations)
    if found is None:
        return await _reject(cluster, manifest, violations, stamp)
    run, status, decision = found
    if violations and decision is None:
        return await _reject(cluster, manifest, violations, stamp, status)

    # Apply the step, create its Events, and write status once.
    world = _World(cluster, key, job, run.number, observed, settings, now, violations)
    announced = None
    if isinstance(decision, stages.Stop):
        # Events first: after a crash in between, the Job may no longer exist, and its end could not be reported.
        announced = await _status_after(world, manifest, status, decision)
        await _create_events(cluster, manifest, job.status, announced, stamp)
    refused = await _try_apply(world, status, decision)
    if refused is not None:
        status = status_policy.blocked(status, *refused, generation=job.metadata.generation, now=stamp)
    else:
        status = announced or await _status_after(world, manifest, status, decision)
    await _update_status(cluster, manifest, job.status, status, stamp, announced)
    wait, requeue_reason = _requeue_after(world, status, decision, is_refused=refused is not None)
    return ReconcileResult(wait, status, job.status, job.metadata.uid, requeue_reason)


def _decide(
    job: FineTuneJob,
    observed: Observed,
    progress: Progress | None,
    settings: OperatorSettings,
    now: datetime,
    *,
    is_valid: bool,
) -> tuple[runs.Run, Status, stages.Decision] | None:
    """Return the run, the status that records what has ended, and the next step.

    For an invalid object, the step starts nothing, and the result is None if no run has started.
    """
    stamp, status = rfc3339(now), job.status
    run = runs.current_run(job, observed.stages) if is_valid else runs.known_run(status, observed.stages)
    if run is None:
        return None
    if run.is_adopted:
        status = after_change.with_evaluation_hashes(status, job.spec)
    if is_valid and not run.is_new:
        status = after_change.continued_after_change(status, job.spec, stamp)
    status = history.apply_observation(status, run, observed, progress, stamp)
    if not stages.has_ended(status):
        status = deadline.with_suspension(status, job.spec, stamp)
    decision = stages.decide(job.spec, run, status, observed, now=now, max_backoff_seconds=settings.max_backoff_seconds)
    if not is_valid:
        return run, status, in_force_policy.without_starts(decision, observed)
    return run, status, stages.with_plan(decision, job.spec, status)


async def _job_in_force(cluster: Cluster, key: JobKey, manifest: Manifest) -> FineTuneJob | None:
    """Return an invalid job with the part of its spec that can stop a run.

    None if nothing can be running, or if a newer operator wrote the status. The last valid spec is in the ConfigMap of
    the newest attempt, which exists as long as its pods. It is read only if suspend, budget or restart of the object is
    invalid.
    """
    spec = manifest.get("spec")
    written = spec if isinstance(spec, dict) else {}
    try:
        metadata = Metadata.model_validate(manifest["metadata"])
        status = Status.read(manifest.get("status"))
    except ValidationError:
        return None
    if stages.has_ended(status):
        return None
    last = None
    if status.run.attempts and not in_force_policy.is_readable(written):
        last = _spec_of(await cluster.read_config(key, status.run.attempts[-1].job_name), metadata.uid)
    return FineTuneJob.model_construct(
        metadata=metadata, spec=in_force_policy.spec_in_force(written, last), status=status
    )


def _spec_of(config: str | None, uid: str) -> Spec | None:
    """Return the spec of an attempt from its configuration; None if it is missing or belongs to another object."""
    try:
        found = TrainerConfig.model_validate_json(config or "")
    except ValidationError:
        return None
    return found.spec if found.job.uid == uid else None


async def _reject(
    cluster: Cluster, manifest: Manifest, violations: tuple[Violation, ...], now: str, known: Status | None = None
) -> ReconcileResult:
    """Write the status of an invalid object without a running attempt. `known` is the status after an observation."""
    metadata, written = manifest["metadata"], manifest.get("status") or {}
    generation, uid = metadata.get("generation", 1), metadata.get("uid", "")
    try:
        before = Status.read(written)
    except ValidationError:
        newer = Violation(
            "status", "must be readable by this version, but was written by a newer operator; upgrade the operator"
        )
        status = status_policy.rejected(Status(), (newer, *violations), generation=generation, now=now)
        merged = status_policy.merged_into_unreadable(written, status)
        if merged != written:
            await cluster.update_status(manifest, merged)
        return ReconcileResult(None, status, Status(), uid)
    status = status_policy.rejected(known or before, violations, generation=generation, now=now)
    await _update_status(cluster, manifest, before, status, now)
    return ReconcileResult(None, status, before, uid)


@dataclass(frozen=True)
class _World:
    """Input of a reconcile."""

    cluster: Cluster
    key: JobKey
    job: FineTuneJob
    run: int
    observed: Observed
    settings: OperatorSettings
    now: datetime
    violations: tuple[Violation, ...] = ()
    """Violations of the object. If there are any, `job` has only the part of the spec that applies."""


async def _progress(cluster: Cluster, observed: Observed, pods: list[Manifest]) -> Progress | None:
    first = next((pod.name for pod in observed.active[-1].pods if pod.index == 0), "") if observed.active else ""
    manifest = next((pod for pod in pods if pod["metadata"]["name"] == first), None)
    return None if manifest is None else await cluster.read_progress(manifest)


async def _status_after(world: _World, manifest: Manifest, status: Status, decision: stages.Decision) -> Status:
    """Return the status after the decision was applied."""
    status = _with_decision(world, status, decision)
    notes = await _notes(world, manifest, status, decision)
    generation, now = world.job.metadata.generation, rfc3339(world.now)
    if not world.violations:
        status = _with_batch(status, world.job)
    return status_policy.status_after(status, decision, generation=generation, now=now, notes=notes)


async def _notes(
    world: _World, manifest: Manifest, status: Status, decision: stages.Decision
) -> status_policy.StatusNotes:
    dropped = () if world.violations else dropped_fields(manifest)
    if not isinstance(decision, stages.Watch):
        return status_policy.StatusNotes(violations=world.violations, unknown_fields=dropped)
    stage = world.observed.active[-1]
    trains = stage.stage is Stage.TRAIN
    return status_policy.StatusNotes(
        violations=world.violations,
        waiting=await _why_idle(world, stage),
        unknown_fields=dropped,
        pending="" if world.violations else pending.pending_change(world.job.spec, stage),
        grace=grace.stop_safety(status, stage, world.settings.termination_grace) if trains else None,
        late=(status.run.progress.checkpoint_late or "") if trains and status.run.progress else None,
    )


async def _why_idle(world: _World, stage: ObservedStage) -> str:
    """Return why pods of the active stage are not running; empty if they are, or are not late."""
    idle = waiting.idle_pods(stage, world.now)
    if idle is None:
        return ""
    names = waiting.unexplained(stage, idle)
    warnings = await world.cluster.list_warnings(world.key, names) if names else []
    return waiting.explanation(stage, idle, warnings)


async def _try_apply(world: _World, status: Status, decision: stages.Decision) -> tuple[Reason, str] | None:
    """Apply a decision. Returns reason and message of a rejection, or None. Raises errors that may be temporary."""
    try:
        await _apply(world, status, decision)
    except ClusterConflictError as error:
        return Reason.CHILD_CONFLICT, str(error)
    except ApiError as error:
        if error.is_lasting:
            return Reason.CANNOT_CREATE, str(error)
        raise
    return None


async def _apply(world: _World, status: Status, decision: stages.Decision) -> None:
    for child in world.observed.lost:
        await world.cluster.delete_job(world.key, child.job_name, child.uid)
    match decision:
        case stages.Start(stage, attempt, plan=plan):
            trained = tuple(entry for entry in status.run.attempts if entry.stage is Stage.TRAIN)
            resolved = status.run.resolved
            config = stage_config(world.job, world.run, stage, attempt, world.settings.storage, trained, plan, resolved)
            seconds = grace.grace_seconds(status, world.settings.termination_grace) if stage is Stage.TRAIN else None
            needs = evaluation_needs(resolved)
            for manifest in render_stage(config, world.settings, grace_seconds=seconds, needs=needs):
                await world.cluster.create_child(manifest)
        case stages.Stop(children) | stages.DeleteChildren(children):
            for child in children:
                if not child.deleting:
                    await world.cluster.delete_job(world.key, child.job_name, child.uid)


def _with_decision(world: _World, status: Status, decision: stages.Decision) -> Status:
    match decision:
        case stages.Start(stage, attempt, plan=plan):
            name = names.child_name(world.key.name, world.run, stage, attempt)
            evaluated = pending.evaluation_hash(world.job.spec) if stage is Stage.EVALUATE else ""
            return history.record_started(
                status,
                stage,
                attempt,
                name,
                rfc3339(world.now),
                plan=plan,
                spec_hash=pending.attempt_hash(world.job.spec),
                evaluation_spec_hash=evaluated,
            )
        case stages.ScaleDown(plan):
            return status.with_run(next_plan=plan)
        case stages.Finish(succeeded=False):
            return status.with_run(failed_spec_hash=after_change.retry_hash(world.job.spec))
        case None:
            return _after_end(world, status)
    return status


def _after_end(world: _World, status: Status) -> Status:
    """Record what a run that has ended lacks in status."""
    if world.job.spec.ttl_seconds_after_finished is not None and not world.observed.stages:
        status = status.with_run(children_removed=True)
    if status.phase is Phase.FAILED and status.run.failed_spec_hash is None and not world.violations:
        # It failed under an operator that compared other fields: from now on a change continues it.
        status = status.with_run(failed_spec_hash=after_change.retry_hash(world.job.spec))
    return status


def _with_batch(status: Status, job: FineTuneJob) -> Status:
    """Record the division of the global batch among the workers of the last or next training attempt."""
    if status.run.resolved is None:
        return status
    last = scale.last_training(status)
    plan = None if last is None else last.plan
    if plan is None or plan.micro_batch_size is None:
        batch = batch_plan(job.spec)
        plan = AttemptPlan(nodes=1, micro_batch_size=batch.micro_size, gradient_accumulation_steps=batch.accumulation)
    # Not computed from the plan's nodes: with the GPUs of an edited spec they may not divide the batch.
    batch_fields = ("micro_batch_size", "gradient_accumulation_steps")
    resolved = status.run.resolved.model_copy(update={name: getattr(plan, name) for name in batch_fields})
    return status.with_run(resolved=resolved)


async def _create_events(cluster: Cluster, manifest: Manifest, before: Status, after: Status, now: str) -> None:
    for event in job_events(before, after):
        await cluster.create_event(render_event(manifest, event, now))


async def _update_status(
    cluster: Cluster, manifest: Manifest, before: Status, after: Status, now: str, announced: Status | None = None
) -> None:
    """Create Events, then write status. After a crash in between, the same Events are created under the same names."""
    written = manifest.get("status") or {}
    if after == before and in_current_shape(written) is written:
        return
    if after not in (announced, before):
        await _create_events(cluster, manifest, before, after, now)
    await cluster.update_status(manifest, after.written())


def _requeue_after(
    world: _World, status: Status, decision: stages.Decision, *, is_refused: bool
) -> tuple[float | None, RequeueReason]:
    """Return when to reconcile again, and why."""
    if is_refused:
        return max(_BLOCKED_SECONDS, world.settings.waiting_seconds), RequeueReason.WAITING
    requeue_reason = RequeueReason.PROGRESS
    match decision:
        case stages.Start() | stages.Watch() | stages.WaitForOrphanPods() | stages.Stop():
            wait = world.settings.progress_seconds
            if isinstance(decision, stages.WaitForOrphanPods) or any(child.ending for child in world.observed.active):
                wait = min(wait, _ENDING_SECONDS)
            elif isinstance(decision, stages.Watch) and status.phase is Phase.PENDING:
                wait, requeue_reason = _waiting_seconds(world, world.observed.active[-1]), RequeueReason.WAITING
        case stages.Backoff(seconds) | stages.RetainChildren(seconds):
            wait, requeue_reason = seconds, RequeueReason.DUE
        case stages.ScaleDown():
            wait = 0.0
        case stages.Finish() if world.job.spec.ttl_seconds_after_finished is not None:
            # No event triggers this reconcile.
            return float(world.job.spec.ttl_seconds_after_finished), RequeueReason.DUE
        case _:
            return None, RequeueReason.DUE
    left = deadline.seconds_left(world.job.spec, status, world.now)
    return wait if left is None else min(wait, max(0.0, left)), requeue_reason


def _waiting_seconds(world: _World, stage: ObservedStage) -> float:
    settings = world.settings
    wait = max(settings.progress_seconds, settings.waiting_seconds, waiting.next_check_seconds(stage, world.now))
    to_timeout = scale.seconds_to_timeout(world.job.spec, stage, world.now)
    return wait if to_timeout is None else min(wait, to_timeout)
