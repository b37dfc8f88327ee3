"""The only story: observe, decide, apply, announce, write status. It has no rules of its own; a second pass on the same
world writes nothing."""

from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from finetune_api.constants import Reason, Stage
from finetune_api.progress import Progress
from finetune_api.rules import Violation
from finetune_api.v1alpha1 import FineTuneJob, Status
from finetune_api.validation import InvalidJobError, dropped_fields, parse_job

from .clusters import Cluster
from .errors import ApiError, ClusterConflictError
from .manifests import JobKey, Manifest, rfc3339
from .observed import Observed, ObservedStage
from .policy import grace, history, pending, revival, runs, scale, stages, waiting
from .policy import status as status_policy
from .policy.events import announcements
from .policy.world import batch_plan, stage_config
from .render import names, render_event, render_stage
from .settings import OperatorSettings

_OBSTRUCTED_SECONDS = 30.0
"""How often a refused call is tried again: a quota or a permission changes by a person's hand."""

_ENDING_SECONDS = 1.0
"""How often a stage is looked at whose pods are ending: rank 0's supervisor waits to be asked for its last progress,
and the next attempt waits for the last pod."""


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

    # What breaks the rules is told, all of it, and never started.
    try:
        job = parse_job(manifest, local=local)
    except InvalidJobError as error:
        return await _reject(cluster, manifest, error.violations, stamp)

    # Observe: the children as they are now, and how far the running one is.
    jobs = await cluster.list_jobs(key, history.unjudged(job.status))
    open_jobs = history.open_jobs(job.status, jobs)
    pods = await cluster.list_pods(key, open_jobs) if open_jobs else []
    observed = Observed.from_manifests(job.metadata.uid, jobs, pods, now=now)
    progress = await _progress(cluster, observed, pods)

    # Decide: remember what ended, then choose the next step.
    run = runs.current_run(job, observed.stages)
    status = revival.given_another_chance(job.status, job.spec, stamp)
    status = history.fold(status, run, observed, progress, stamp)
    decision = stages.decide(job.spec, run, status, observed, now=now, max_backoff_seconds=settings.max_backoff_seconds)

    # Apply at most that one step, then announce it and write status once.
    world = _World(cluster, key, job, run.number, observed, settings, now)
    announced = None
    if isinstance(decision, stages.Stop):
        # Announced first: after a crash in between, the Job may have gone and left nothing to tell of.
        announced = await _concluded(world, manifest, status, decision)
        await _announce(cluster, manifest, job.status, announced, stamp)
    refused = await _try_to_apply(world, status, decision)
    if refused is not None:
        status = status_policy.obstructed(status, *refused, generation=job.metadata.generation, now=stamp)
    else:
        status = announced or await _concluded(world, manifest, status, decision)
    await _tell(cluster, manifest, job.status, status, stamp, announced)
    wait = _OBSTRUCTED_SECONDS if refused else _requeue_after(world, status, decision)
    return Outcome(wait, status, job.status, job.metadata.uid)


async def _reject(cluster: Cluster, manifest: Manifest, violations: tuple[Violation, ...], now: str) -> Outcome:
    metadata, written = manifest["metadata"], manifest.get("status") or {}
    generation, uid = metadata.get("generation", 1), metadata.get("uid", "")
    try:
        before = Status.model_validate(written)
    except ValidationError:
        newer = Violation("status", "was written by a newer operator; let that one serve the object")
        status = status_policy.rejected(Status(), (newer, *violations), generation=generation, now=now)
        merged = status_policy.beside_unreadable(written, status)
        if merged != written:
            await cluster.write_status(manifest, merged)
        return Outcome(None, status, Status(), uid)
    status = status_policy.rejected(before, violations, generation=generation, now=now)
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


async def _progress(cluster: Cluster, observed: Observed, pods: list[Manifest]) -> Progress | None:
    first = next((pod.name for pod in observed.active[-1].pods if pod.index == 0), "") if observed.active else ""
    manifest = next((pod for pod in pods if pod["metadata"]["name"] == first), None)
    return None if manifest is None else await cluster.read_progress(manifest)


async def _concluded(world: _World, manifest: Manifest, status: Status, decision: stages.Decision) -> Status:
    """Status once the decision is carried out."""
    status = _with_begun(world, status, decision)
    remarks = await _remarks(world, manifest, status, decision)
    generation, now = world.job.metadata.generation, rfc3339(world.now)
    return status_policy.concluded(
        _with_batch(status, world.job), decision, generation=generation, now=now, remarks=remarks
    )


async def _remarks(
    world: _World, manifest: Manifest, status: Status, decision: stages.Decision
) -> status_policy.Remarks:
    dropped = dropped_fields(manifest)
    if not isinstance(decision, stages.Watch):
        return status_policy.Remarks(unknown_fields=dropped)
    stage = world.observed.active[-1]
    trains = stage.stage is Stage.TRAIN
    return status_policy.Remarks(
        waiting=await _why_idle(world, stage),
        unknown_fields=dropped,
        pending=pending.pending_change(world.job.spec, stage),
        grace=grace.verdict(status, stage, world.settings.termination_grace) if trains else None,
        late=(status.progress.checkpoint_late or "") if trains and status.progress else None,
    )


async def _why_idle(world: _World, stage: ObservedStage) -> str:
    """Why the pods of the running stage do not run; empty where they do, or may soon."""
    idle = waiting.idle_pods(stage, world.now)
    if idle is None:
        return ""
    told_of = (stage.job_name, *(pod.name for pod in idle[: waiting.SHOWN]))
    return waiting.explanation(stage, idle, await world.cluster.list_warnings(world.key, told_of))


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
        case stages.Start(stage, attempt):
            trained = tuple(entry for entry in status.attempts if entry.stage is Stage.TRAIN)
            nodes = _nodes(world, status, stage)
            config = stage_config(world.job, world.run, stage, attempt, world.settings.storage, trained, nodes)
            seconds = grace.grace_seconds(status, world.settings.termination_grace) if stage is Stage.TRAIN else None
            parameters = (status.chosen and status.chosen.parameters) or 0
            for manifest in render_stage(config, world.settings, grace_seconds=seconds, parameters=parameters):
                await world.cluster.apply(manifest)
        case stages.Stop(children) | stages.Clear(children):
            for child in children:
                if not child.deleting:
                    await world.cluster.delete_job(world.key, child.job_name, child.uid)


def _nodes(world: _World, status: Status, stage: Stage) -> int | None:
    """Workers of the next attempt; None where the stage has one."""
    return scale.next_nodes(world.job.spec, status) if stage is Stage.TRAIN else None


def _with_begun(world: _World, status: Status, decision: stages.Decision) -> Status:
    match decision:
        case stages.Start(stage, attempt):
            name, nodes = names.child_name(world.key.name, world.run, stage, attempt), _nodes(world, status, stage)
            return history.begun(status, stage, attempt, name, rfc3339(world.now), nodes=nodes)
        case stages.Shrink(trained, nodes):
            return history.shrinking(status, trained, nodes)
        case stages.Finish(succeeded=False):
            return status.model_copy(update={"failed_with": revival.chances(world.job.spec)})
    return status


def _with_batch(status: Status, job: FineTuneJob) -> Status:
    """The division of the global batch among the workers that there are, or will be."""
    if status.chosen is None:
        return status
    last = scale.last_training(status)
    plan = batch_plan(job.spec, None if last is None else last.nodes)
    chosen = status.chosen.model_copy(
        update={"micro_batch_size": plan.micro_size, "gradient_accumulation_steps": plan.accumulation}
    )
    return status.model_copy(update={"chosen": chosen})


async def _announce(cluster: Cluster, manifest: Manifest, before: Status, after: Status, now: str) -> None:
    for told in announcements(before, after):
        await cluster.announce(render_event(manifest, told, now))


async def _tell(
    cluster: Cluster, manifest: Manifest, before: Status, after: Status, now: str, announced: Status | None = None
) -> None:
    """Events first: after a crash in between they are made again under the same names, so none is lost or doubled."""
    if after == before:
        return
    if after != announced:
        await _announce(cluster, manifest, before, after, now)
    await cluster.write_status(manifest, after.model_dump(mode="json", by_alias=True, exclude_none=True))


def _requeue_after(world: _World, status: Status, decision: stages.Decision) -> float | None:
    match decision:
        case stages.Start() | stages.Watch() | stages.Linger() | stages.Stop():
            wait = world.settings.progress_seconds
            if isinstance(decision, stages.Linger) or any(child.ending for child in world.observed.active):
                wait = min(wait, _ENDING_SECONDS)
        case stages.Backoff(seconds) | stages.Keep(seconds):
            wait = seconds
        case stages.Shrink():
            wait = 0.0
        case stages.Finish() if world.job.spec.ttl_seconds_after_finished is not None:
            return float(world.job.spec.ttl_seconds_after_finished)  # nothing else brings the job back by then
        case _:
            return None
    left = stages.seconds_left(world.job.spec, status, world.now)
    return wait if left is None else min(wait, max(0.0, left))
