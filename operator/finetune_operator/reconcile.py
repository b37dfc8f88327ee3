"""The only story: observe, decide, apply, announce, write status. It has no rules of its own; a second pass on the same
world writes nothing."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto

from pydantic import ValidationError

from finetune_api.clock import rfc3339
from finetune_api.constants import Phase, Reason, Stage
from finetune_api.progress import Progress
from finetune_api.rules import Violation
from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import FineTuneJob, Spec, Status
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
from .policy.events import announcements
from .policy.world import batch_plan, evaluation_needs, stage_config
from .render import names, render_event, render_stage
from .settings import OperatorSettings

_OBSTRUCTED_SECONDS = 30.0
"""How often a refused call is tried again: a quota or a permission changes by a person's hand."""

_ENDING_SECONDS = 1.0
"""How often a stage is looked at whose pods are ending: rank 0's supervisor waits to be asked for its last progress,
and the next attempt waits for the last pod."""


class Look(Enum):
    """What a job is looked at again for, by time alone."""

    PROGRESS = auto()
    """Something runs, and is asked how far it is."""
    WAITING = auto()
    """Its cluster has no room for it, or refuses it: when that changes, a watch mostly tells."""
    DUE = auto()
    """Something is due at that time, and nothing before."""


@dataclass(frozen=True)
class Outcome:
    """What a pass has done."""

    requeue_after: float | None
    """Seconds after which to look again even if nothing is heard; None: only when something changes."""
    status: Status
    """Status as it stands now."""
    before: Status
    """Status as it was read."""
    uid: str
    """The object's."""
    look: Look = Look.DUE
    """What that look is for."""


async def reconcile(
    cluster: Cluster, key: JobKey, settings: OperatorSettings, now: datetime, *, local: bool = False
) -> Outcome | None:
    """One pass over one job; None where the job is gone or going. `local` allows `file://` inputs.

    Raises ApiError and ApiUnreachableError for calls that may succeed when they are tried again.
    """
    manifest = await cluster.get(key)
    if manifest is None or "deletionTimestamp" in manifest["metadata"]:
        return None
    stamp = rfc3339(now)

    # What breaks the rules is reported, all of it, and never started; what runs goes on and can be stopped.
    violations: tuple[Violation, ...] = ()
    try:
        job = parse_job(manifest, local=local)
    except InvalidJobError as error:
        violations = error.violations
        in_force = await _job_in_force(cluster, key, manifest)
        if in_force is None:
            return await _reject(cluster, manifest, violations, stamp)
        job = in_force

    # Observe: the children as they are now, and how far the running one is.
    jobs = await cluster.list_jobs(key, history.unjudged(job.status))
    open_jobs = history.open_jobs(job.status, jobs)
    pods = await cluster.list_pods(key, open_jobs) if open_jobs else []
    observed = Observed.from_manifests(job.metadata.uid, jobs, pods, now=now)
    progress = await _progress(cluster, observed, pods)

    # Decide: remember what ended, then choose the next step.
    found = _decide(job, observed, progress, settings, now, is_valid=not violations)
    if found is None:
        return await _reject(cluster, manifest, violations, stamp)
    run, status, decision = found
    if violations and decision is None:
        return await _reject(cluster, manifest, violations, stamp, status)

    # Apply at most that one step, then announce it and write status once.
    world = _World(cluster, key, job, run.number, observed, settings, now, violations)
    announced = None
    if isinstance(decision, stages.Stop):
        # Announced first: after a crash in between, the Job may have gone and left nothing to tell of.
        announced = await _concluded(world, manifest, status, decision)
        await _announce(cluster, manifest, job.status, announced, stamp)
    refused = await _try_to_apply(world, status, decision)
    if refused is not None:
        status = status_policy.blocked(status, *refused, generation=job.metadata.generation, now=stamp)
    else:
        status = announced or await _concluded(world, manifest, status, decision)
    await _tell(cluster, manifest, job.status, status, stamp, announced)
    wait, look = _next_look(world, status, decision, is_refused=refused is not None)
    return Outcome(wait, status, job.status, job.metadata.uid, look)


def _decide(
    job: FineTuneJob,
    observed: Observed,
    progress: Progress | None,
    settings: OperatorSettings,
    now: datetime,
    *,
    is_valid: bool,
) -> tuple[runs.Run, Status, stages.Decision] | None:
    """The run, the status that remembers what has ended, and the next step.

    Where the object is not valid, a step that starts nothing; None where nothing has been started either.
    """
    stamp, status = rfc3339(now), job.status
    run = runs.current_run(job, observed.stages) if is_valid else runs.known_run(status, observed.stages)
    if run is None:
        return None
    if is_valid:
        status = after_change.continued_after_change(status, job.spec, stamp)
    status = history.apply_observation(status, run, observed, progress, stamp)
    if not stages.is_over(status):
        status = deadline.with_suspension(status, job.spec, stamp)
    decision = stages.decide(job.spec, run, status, observed, now=now, max_backoff_seconds=settings.max_backoff_seconds)
    if not is_valid:
        return run, status, in_force_policy.without_starts(decision, observed)
    return run, status, stages.with_plan(decision, job.spec, status)


async def _job_in_force(cluster: Cluster, key: JobKey, manifest: Manifest) -> FineTuneJob | None:
    """The job, with as much of a spec as may stop a run, while the object breaks the rules.

    None where nothing can be running, or status is one that a newer operator has written.

    The last valid spec is in the ConfigMap of the newest attempt, which is there as long as pods of it are. It is read
    only where the object's own suspend, budget or restart cannot be.
    """
    spec = manifest.get("spec")
    written = spec if isinstance(spec, dict) else {}
    try:
        metadata = Metadata.model_validate(manifest["metadata"])
        status = Status.read(manifest.get("status"))
    except ValidationError:
        return None
    if stages.is_over(status):
        return None
    last = None
    if status.run.attempts and not in_force_policy.is_readable(written):
        last = _spec_of(await cluster.read_config(key, status.run.attempts[-1].job_name), metadata.uid)
    return FineTuneJob.model_construct(
        metadata=metadata, spec=in_force_policy.spec_in_force(written, last), status=status
    )


def _spec_of(config: str | None, uid: str) -> Spec | None:
    """The spec with which an attempt of the object was started; None where that cannot be told any more."""
    try:
        found = TrainerConfig.model_validate_json(config or "")
    except ValidationError:
        return None
    return found.spec if found.job.uid == uid else None


async def _reject(
    cluster: Cluster, manifest: Manifest, violations: tuple[Violation, ...], now: str, known: Status | None = None
) -> Outcome:
    """Nothing runs. `known` is the status after a look at the children, where there was one."""
    metadata, written = manifest["metadata"], manifest.get("status") or {}
    generation, uid = metadata.get("generation", 1), metadata.get("uid", "")
    try:
        before = Status.read(written)
    except ValidationError:
        newer = Violation("status", "was written by a newer operator; let that one serve the object")
        status = status_policy.rejected(Status(), (newer, *violations), generation=generation, now=now)
        merged = status_policy.merged_into_unreadable(written, status)
        if merged != written:
            await cluster.update_status(manifest, merged)
        return Outcome(None, status, Status(), uid)
    status = status_policy.rejected(known or before, violations, generation=generation, now=now)
    await _tell(cluster, manifest, before, status, now)
    return Outcome(None, status, before, uid)


@dataclass(frozen=True)
class _World:
    """One job as a pass has found it, and where."""

    cluster: Cluster
    key: JobKey
    job: FineTuneJob
    run: int
    observed: Observed
    settings: OperatorSettings
    now: datetime
    violations: tuple[Violation, ...] = ()
    """What is wrong with the object; `job` then has only what of its spec is in force."""


async def _progress(cluster: Cluster, observed: Observed, pods: list[Manifest]) -> Progress | None:
    first = next((pod.name for pod in observed.active[-1].pods if pod.index == 0), "") if observed.active else ""
    manifest = next((pod for pod in pods if pod["metadata"]["name"] == first), None)
    return None if manifest is None else await cluster.read_progress(manifest)


async def _concluded(world: _World, manifest: Manifest, status: Status, decision: stages.Decision) -> Status:
    """Status once the decision is carried out."""
    status = _with_begun(world, status, decision)
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
        grace=grace.verdict(status, stage, world.settings.termination_grace) if trains else None,
        late=(status.run.progress.checkpoint_late or "") if trains and status.run.progress else None,
    )


async def _why_idle(world: _World, stage: ObservedStage) -> str:
    """Why the pods of the running stage do not run; empty where they do, or may soon."""
    idle = waiting.idle_pods(stage, world.now)
    if idle is None:
        return ""
    names = waiting.unexplained(stage, idle)
    warnings = await world.cluster.list_warnings(world.key, names) if names else []
    return waiting.explanation(stage, idle, warnings)


async def _try_to_apply(world: _World, status: Status, decision: stages.Decision) -> tuple[Reason, str] | None:
    """What the cluster has against it; None where it is done. Raises what may go better the next time."""
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


def _with_begun(world: _World, status: Status, decision: stages.Decision) -> Status:
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
        case None if world.job.spec.ttl_seconds_after_finished is not None and not world.observed.stages:
            return status.with_run(children_removed=True)
    return status


def _with_batch(status: Status, job: FineTuneJob) -> Status:
    """The division of the global batch among the workers that there are, or will be."""
    if status.run.resolved is None:
        return status
    last = scale.last_training(status)
    plan = None if last is None else last.plan
    batch = batch_plan(job.spec, plan.nodes if plan else None, plan.micro_batch_limit if plan else None)
    resolved = status.run.resolved.model_copy(
        update={"micro_batch_size": batch.micro_size, "gradient_accumulation_steps": batch.accumulation}
    )
    return status.with_run(resolved=resolved)


async def _announce(cluster: Cluster, manifest: Manifest, before: Status, after: Status, now: str) -> None:
    for told in announcements(before, after):
        await cluster.create_event(render_event(manifest, told, now))


async def _tell(
    cluster: Cluster, manifest: Manifest, before: Status, after: Status, now: str, announced: Status | None = None
) -> None:
    """Events first: after a crash in between they are made again under the same names, so none is lost or doubled."""
    written = manifest.get("status") or {}
    if after == before and in_current_shape(written) is written:
        return
    if after not in (announced, before):
        await _announce(cluster, manifest, before, after, now)
    await cluster.update_status(manifest, after.written())


def _next_look(
    world: _World, status: Status, decision: stages.Decision, *, is_refused: bool
) -> tuple[float | None, Look]:
    """When to look again, and what for."""
    if is_refused:
        return max(_OBSTRUCTED_SECONDS, world.settings.waiting_seconds), Look.WAITING
    look = Look.PROGRESS
    match decision:
        case stages.Start() | stages.Watch() | stages.WaitForOrphanPods() | stages.Stop():
            wait = world.settings.progress_seconds
            if isinstance(decision, stages.WaitForOrphanPods) or any(child.ending for child in world.observed.active):
                wait = min(wait, _ENDING_SECONDS)
            elif isinstance(decision, stages.Watch) and status.phase is Phase.PENDING:
                wait, look = _next_look_at_waiting(world, world.observed.active[-1]), Look.WAITING
        case stages.Backoff(seconds) | stages.RetainChildren(seconds):
            wait, look = seconds, Look.DUE
        case stages.ScaleDown():
            wait = 0.0
        case stages.Finish() if world.job.spec.ttl_seconds_after_finished is not None:
            # Nothing else brings the job back by then.
            return float(world.job.spec.ttl_seconds_after_finished), Look.DUE
        case _:
            return None, Look.DUE
    left = deadline.seconds_left(world.job.spec, status, world.now)
    return wait if left is None else min(wait, max(0.0, left)), look


def _next_look_at_waiting(world: _World, stage: ObservedStage) -> float:
    settings = world.settings
    wait = max(settings.progress_seconds, settings.waiting_seconds, waiting.next_look_seconds(stage, world.now))
    to_timeout = scale.seconds_to_timeout(world.job.spec, stage, world.now)
    return wait if to_timeout is None else min(wait, to_timeout)
