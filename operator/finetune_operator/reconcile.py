"""The only story: observe, decide, apply, write status. It has no rules of its own; a second pass on the same world
writes nothing."""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.constants import Stage
from finetune_api.progress import Progress
from finetune_api.v1alpha1 import FineTuneJob, Status
from finetune_api.validation import InvalidJobError, parse_job

from .clusters import Cluster
from .manifests import JobKey, Manifest
from .observed import Observed
from .policy import history, runs, stages
from .policy import status as status_policy
from .policy.world import batch_plan, stage_config
from .render import render_stage
from .settings import OperatorSettings


@dataclass(frozen=True)
class Outcome:
    """What a pass has done."""

    requeue_after: float | None
    """Seconds after which to look again even if nothing is heard; None: only when something changes."""
    status: Status
    """Status as it stands now."""


async def reconcile(
    cluster: Cluster, key: JobKey, settings: OperatorSettings, now: datetime, *, local: bool = False
) -> Outcome | None:
    """One pass over one job; None where the job is gone. `local` allows `file://` inputs."""
    manifest = await cluster.get(key)
    if manifest is None:
        return None
    stamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    # What breaks the rules is told, all of it, and never started.
    try:
        job = parse_job(manifest, local=local)
    except InvalidJobError as error:
        before = Status.model_validate(manifest.get("status") or {})
        generation = manifest["metadata"].get("generation", 1)
        status = status_policy.rejected(before, error.violations, generation=generation, now=stamp)
        await _write_status(cluster, key, manifest, before, status)
        return Outcome(None, status)

    # Observe: the children as they are now, and how far the running one is.
    observed = Observed.from_manifests(job.metadata.uid, await cluster.list_jobs(key), await cluster.list_pods(key))
    progress = await _progress(cluster, key, observed)

    # Decide: remember what ended, then choose the next step.
    run = runs.current_run(job)
    status = history.fold(job.status, run, observed, progress, stamp)
    decision = stages.decide(job.spec, run, status, observed, now=now, max_backoff_seconds=settings.max_backoff_seconds)

    # Apply at most that one step, then write status once.
    await _apply(cluster, key, job, run.number, status, decision, settings)
    status = status_policy.concluded(status, decision, generation=job.metadata.generation, now=stamp)
    status = _with_batch(status, job)
    await _write_status(cluster, key, manifest, job.status, status)
    return Outcome(_requeue_after(decision, settings), status)


async def _progress(cluster: Cluster, key: JobKey, observed: Observed) -> Progress | None:
    return await cluster.read_progress(key, observed.active[-1].job_name) if observed.active else None


async def _apply(
    cluster: Cluster,
    key: JobKey,
    job: FineTuneJob,
    run: int,
    status: Status,
    decision: stages.Decision,
    settings: OperatorSettings,
) -> None:
    match decision:
        case stages.Start(stage, attempt):
            trained = tuple(entry for entry in status.attempts if entry.stage is Stage.TRAIN)
            config = stage_config(job, run, stage, attempt, settings.storage, trained)
            for manifest in render_stage(config, settings):
                await cluster.apply(manifest)
        case stages.Stop(children):
            for child in children:
                if not child.deleting:
                    await cluster.delete_job(key, child.job_name, child.uid)


def _with_batch(status: Status, job: FineTuneJob) -> Status:
    if status.chosen is None:
        return status
    plan = batch_plan(job.spec)
    chosen = status.chosen.model_copy(
        update={"micro_batch_size": plan.micro_size, "gradient_accumulation_steps": plan.accumulation}
    )
    return status.model_copy(update={"chosen": chosen})


async def _write_status(cluster: Cluster, key: JobKey, manifest: Manifest, before: Status, after: Status) -> None:
    if after != before:
        body = after.model_dump(mode="json", by_alias=True, exclude_none=True)
        await cluster.patch_status(key, manifest["metadata"].get("uid", ""), body)


def _requeue_after(decision: stages.Decision, settings: OperatorSettings) -> float | None:
    match decision:
        case stages.Start() | stages.Watch() | stages.Stop():
            return settings.progress_seconds
        case stages.Backoff(seconds):
            return seconds
        case _:
            return None
