"""Record runs and attempts in status from observations of the children. The end of each attempt is counted once.

An attempt that has an outcome in status is never classified again, also after a crash between creating the next attempt
and writing status.
"""

from collections.abc import Iterable
from datetime import datetime

from finetune_api.constants import TERMINAL_CONDITIONS, ConditionType, Stage
from finetune_api.exit_codes import RetryClass
from finetune_api.progress import Progress, PromotionResult, TerminationMessage, is_cut, merged_warnings
from finetune_api.scopes import changes, settings
from finetune_api.stages import stage_after, stage_order
from finetune_api.trainer_config import Prepared
from finetune_api.v1alpha1 import (
    ArtifactStatus,
    AttemptPlan,
    AttemptStatus,
    CandidateName,
    CandidateStatus,
    CheckpointStatus,
    CostStatus,
    Offload,
    Outcome,
    OverfittingStatus,
    PastRun,
    ProgressStatus,
    PromotionStatus,
    ResolvedStatus,
    RuleStatus,
    RunStatus,
    Scope,
    Spec,
    Status,
)
from finetune_api.v1alpha1.status import (
    MAX_HISTORY,
    MAX_NOTES,
    MAX_PLAN_REASON,
    MAX_PROMOTION_MESSAGE,
    MAX_WARNING_LENGTH,
)

from ..manifests import Manifest
from ..observed import Observed, ObservedAttempt, has_ended
from . import failure
from .runs import Run, newest_number

_KEPT_ATTEMPTS = 10
_MAX_ATTEMPT_MESSAGE = 256
_KEPT_FIELDS = (
    "trigger",
    "changes",
    "cost",
    "candidates",
    "artifact",
    "resolved",
    "last_checkpoint",
    "overfitting",
    "attempts",
)
"""Fields that a run keeps in the history."""
_OTHER_PROMOTED = "other-promoted"
"""Instead of the hash of an evaluation: it equals no hash, so the model is evaluated again."""
_OUTCOMES = {
    RetryClass.PERMANENT: Outcome.PERMANENT,
    RetryClass.RETRYABLE: Outcome.RETRYABLE,
    RetryClass.DISRUPTION: Outcome.DISRUPTION,
}


def apply_observation(
    status: Status, run: Run, observed: Observed, progress: Progress | None, now: str, *, spec: Spec | None = None
) -> Status:
    """Return the status after an observation of the children.

    `progress` is the report of rank 0 of the active stage. `spec` is that of a new run; None: it is unknown.
    """
    if run.is_new:
        status = _with_new_run(status, run, now, spec)
    status = with_children(status, observed, progress, now)
    present = {child.job_name for child in observed.of_run(run.number)}
    status = _with_vanished(status, present | set(observed.orphans), now)
    newest = max((child.run for child in observed.attempts), default=0)
    if newest > newest_number(status):  # of a run that was not recorded and is deleted: its number is used up
        status = status.model_copy(update={"newest_run": newest})
    return status if status.run.spec_hash == run.hash else status.with_run(spec_hash=run.hash)


def with_children(status: Status, observed: Observed, progress: Progress | None, now: str) -> Status:
    """Return the status with what the children of its run have reported."""
    for child in observed.of_run(status.run.number):
        status = _with_child(status, child, progress, now)
    return status


def _with_new_run(status: Status, run: Run, now: str, spec: Spec | None) -> Status:
    """Move the old run to the history. Its terminal condition does not apply to the new one."""
    kept = tuple(past for past in status.history if past.number != run.number)
    past = (*kept, _past_run(status, now)) if status.run.number else kept
    found = {} if spec is None else settings(spec, {Scope.DATA, Scope.RUN})
    if run.reused is not None:
        compares_again = spec is not None and spec.evaluation.promote is not None
        current = _continued(run.reused, now, compares_again=compares_again)
    else:
        current = RunStatus(number=run.number, spec_hash=run.hash, start_time=now)
    changed = changes(status.run.settings, found) if status.run.settings and found else ()
    return Status(
        observed_generation=status.observed_generation,
        phase=status.phase,
        conditions=tuple(entry for entry in status.conditions if entry.type not in TERMINAL_CONDITIONS),
        schedule=status.schedule,
        poll=status.poll,
        run=current.model_copy(update={"settings": found, "changes": changed, "trigger": run.trigger}),
        newest_run=max(newest_number(status), run.number),
        history=past[-MAX_HISTORY:],
    )


def _continued(past: PastRun, now: str, *, compares_again: bool) -> RunStatus:
    """Return a past run as the current one. Deadline, restarts and disruptions count from `now`.

    `compares_again`: evaluate its model again, because it must be compared with the model that is promoted now.
    """
    *others, last = past.attempts
    if last.outcome is not None and last.outcome.is_failure:
        last = last.model_copy(update={"superseded_by_spec_change": True})
    if compares_again and last.evaluation_spec_hash:
        last = last.model_copy(update={"evaluation_spec_hash": _OTHER_PROMOTED})
    kept = {name: getattr(past, name) for name in (*_KEPT_FIELDS, "promotion")} | {"attempts": (*others, last)}
    return RunStatus(
        number=past.number, spec_hash=past.spec_hash, start_time=now, stage=last.stage, attempt=last.number, **kept
    )


def with_history_limit(status: Status, limit: int) -> Status:
    """Return the status with at most `limit` past runs, the newest ones."""
    if len(status.history) <= limit:
        return status
    kept = status.history[len(status.history) - limit :]
    return status.model_copy(update={"history": kept, "newest_run": newest_number(status)})


def _past_run(status: Status, now: str) -> PastRun:
    status = _with_vanished(status, set(), now)  # an attempt that is still ending is not observed any more
    run = status.run
    ended = status.terminal_condition
    is_failed = ended is not None and ended.type is ConditionType.FAILED
    last = last_attempt(status)
    is_done = last is not None and last.outcome is Outcome.SUCCEEDED and stage_after(last.stage) is None
    return PastRun(
        number=run.number,
        spec_hash=run.spec_hash,
        result="Failed" if is_failed else "Succeeded" if ended is not None or is_done else "Superseded",
        reason=str(ended.reason) if ended is not None and is_failed else "",
        message=ended.message.partition("\n")[0][:_MAX_ATTEMPT_MESSAGE] if ended is not None and is_failed else "",
        start_time=run.start_time,
        completion_time=run.completion_time,
        step=None if run.progress is None else run.progress.step,
        promotion=None if run.promotion is None else _shortened(run.promotion, _MAX_ATTEMPT_MESSAGE),
        **{name: getattr(run, name) for name in _KEPT_FIELDS},
    )


def _shortened(promotion: PromotionStatus, size: int) -> PromotionStatus:
    return promotion.model_copy(update={"message": promotion.message[:size]})


def record_started(status: Status, attempt: AttemptStatus) -> Status:
    """Return the status after the children of an attempt were created. A later observation would record the same."""
    if any(entry.job_name == attempt.job_name for entry in status.run.attempts):
        return status
    next_plan = status.run.next_plan
    if attempt.stage is Stage.TRAIN:
        attempt, next_plan = attempt.model_copy(update={"known_checkpoint_step": _newest_known_step(status)}), None
    return status.with_run(attempts=(*status.run.attempts, attempt)[-_KEPT_ATTEMPTS:], next_plan=next_plan)


def open_jobs(status: Status, jobs: Iterable[Manifest]) -> tuple[str, ...]:
    """Return the names of the Jobs whose pods must be read; status has all information about the others.

    These are Jobs whose end is not recorded, Jobs that were given up as lost but have not ended, and deleted Jobs whose
    attempt has no outcome, because their pods may still be running.
    """
    classified = {attempt.job_name for attempt in status.run.attempts if attempt.outcome is not None}
    found = set(open_attempt_jobs(status))
    names = {job["metadata"]["name"]: job for job in jobs}
    found |= {name for name, job in names.items() if name not in classified or not has_ended(job)}
    return tuple(sorted(found))


def open_attempt_jobs(status: Status) -> tuple[str, ...]:
    """Return the names of the Jobs whose attempt has no outcome. If such a Job does not exist, the attempt has
    ended."""
    return tuple(attempt.job_name for attempt in status.run.attempts if attempt.outcome is None)


def last_attempt(status: Status) -> AttemptStatus | None:
    """Return the newest attempt of the run, at any stage."""
    return status.run.attempts[-1] if status.run.attempts else None


def _with_child(status: Status, child: ObservedAttempt, progress: Progress | None, now: str) -> Status:
    known = next((attempt for attempt in status.run.attempts if attempt.job_name == child.job_name), None)
    if known is None:
        newest = last_attempt(status)
        if newest is not None and _order(child.stage, child.attempt) < _order(newest.stage, newest.number):
            return status  # older than the attempts in status: already counted
        status = record_started(status, _attempt_of(child))
        known = status.run.attempts[-1]
    if known.outcome is not None:
        return status
    if child.queue:
        known = _with_queue(known, child, now)
        status = _replace(status, known)
    if child.active:
        detected = failure.detect_disruption(child)
        if detected is not None and not (child.failing and _is_explained(status, child)):
            status = status.with_run(failure=detected)
        return _with_progress(status, known, progress)
    return _with_end(status, known, child, now)


def _is_explained(status: Status, child: ObservedAttempt) -> bool:
    """Whether a disruption of this attempt was detected before."""
    found = status.run.failure
    return found is not None and (found.stage, found.attempt) == (child.stage, child.attempt)


def _with_queue(attempt: AttemptStatus, child: ObservedAttempt, now: str) -> AttemptStatus:
    """Record the queue, which Kueue may have assigned itself, the admission, and whether a pod has run since then."""
    has_run = attempt.running_time is not None or any(pod.has_run for pod in child.pods)
    newest = None if child.suspended else child.started_at or None
    if child.suspended and not has_run:
        admitted = None  # evicted before a pod was running: it waits again
    elif attempt.running_time is None:
        admitted = newest or attempt.admitted_time
    else:
        admitted = attempt.admitted_time or newest
    running = attempt.running_time or (now if has_run else None)
    return attempt.model_copy(update={"queue": child.queue, "admitted_time": admitted, "running_time": running})


def was_evicted(attempt: AttemptStatus, child: ObservedAttempt) -> bool:
    """Return whether its Job was suspended after a pod was running.

    Kueue may have admitted it again before a reconcile, for example while no operator was running. The Job then has
    another start time.
    """
    was_readmitted = bool(attempt.admitted_time and child.started_at) and child.started_at != attempt.admitted_time
    return attempt.running_time is not None and (child.suspended or was_readmitted)


def _attempt_of(child: ObservedAttempt) -> AttemptStatus:
    """Return the attempt whose start is not in status, from what its Job contains."""
    trains, evaluates = child.stage is Stage.TRAIN, child.stage is Stage.EVALUATE
    return AttemptStatus(
        stage=child.stage,
        number=child.attempt,
        job_name=child.job_name,
        start_time=child.created_at,
        queue=child.queue,
        plan=(child.plan or AttemptPlan(nodes=child.expected_pods)) if trains else None,
        gpus=child.gpus or None,
        spec_hash=child.spec_hash,
        evaluation_spec_hash=child.evaluation_hash if evaluates else "",
    )


def _order(stage: Stage, number: int) -> tuple[int, int]:
    return (stage_order(stage), number)


def _with_vanished(status: Status, present: set[str], now: str) -> Status:
    """Record the end of attempts whose Job was deleted before its end was observed, for a suspension or by a user."""
    for attempt in status.run.attempts:
        if attempt.outcome is None and attempt.job_name not in present:
            status = _ended(status, attempt.model_copy(update={"end_time": now, "outcome": Outcome.STOPPED}))
    return status


def _ended(status: Status, attempt: AttemptStatus) -> Status:
    """Record an attempt that has ended, and add what it has occupied to the cost of the run."""
    assert attempt.end_time is not None
    begin = attempt.end_time if attempt.outcome is Outcome.STOPPED and attempt.queue else attempt.start_time
    begin = attempt.admitted_time or begin  # nothing if the queue has not admitted it
    seconds = datetime.fromisoformat(attempt.end_time) - datetime.fromisoformat(begin)
    duration = max(0, round(seconds.total_seconds()))
    pods = 1 if attempt.plan is None else attempt.plan.nodes
    before = status.run.cost or CostStatus()
    cost = CostStatus(
        pod_seconds=before.pod_seconds + pods * duration,
        gpu_seconds=before.gpu_seconds + (attempt.gpus or 0) * duration,
    )
    return _replace(status, attempt).with_run(cost=cost)


def _with_progress(status: Status, attempt: AttemptStatus, progress: Progress | None) -> Status:
    if progress is None or progress.stage != attempt.stage or progress.attempt not in (0, attempt.number):
        return status
    if attempt.stage is Stage.TRAIN:
        attempt = attempt.model_copy(
            update={
                "first_step_time": progress.first_step_time or attempt.first_step_time,
                "resumed_from_step": progress.resumed_from_step,
                "last_step": max(progress.step, attempt.last_step or 0),
                "plan": _measured_plan(attempt.plan, progress),
            }
        )
        status = _replace(status, attempt)
        status = status.with_run(progress=_progress_status(progress, status.run.progress))
        if progress.overfitting is not None:
            status = status.with_run(overfitting=OverfittingStatus(**progress.overfitting.model_dump()))
        found = {"zero_stage": progress.zero_stage, "learning_rate": progress.chosen_learning_rate}
        if status.run.resolved is not None:
            known = {name: value for name, value in found.items() if value is not None}
            status = status.with_run(resolved=status.run.resolved.model_copy(update=known))
    status = status.with_run(warnings=merged_warnings(status.run.warnings, progress.warnings))
    if progress.last_checkpoint is not None:
        committed = progress.last_checkpoint
        checkpoint = CheckpointStatus(
            uri=committed.uri, step=committed.step, time=committed.time, save_seconds=committed.save_seconds
        )
        status = status.with_run(last_checkpoint=checkpoint)
    return status


def _measured_plan(plan: AttemptPlan | None, progress: Progress) -> AttemptPlan | None:
    """Return the plan with the micro-batch that the attempt has measured, which the next attempts keep."""
    size = progress.measured_micro_batch
    if plan is None or size is None or plan.micro_batch_measured:
        return plan
    # The user can choose the image that sends it.
    share = (plan.micro_batch_size or 0) * (plan.gradient_accumulation_steps or 0)
    if size < 1 or share % size:
        return plan
    reasons = [text for text in (plan.reason, progress.micro_batch_reason) if text]
    accumulation = progress.gradient_accumulation
    update = {
        "micro_batch_size": size,
        "gradient_accumulation_steps": accumulation if accumulation and accumulation > 0 else None,
        "micro_batch_limit": size,
        "micro_batch_measured": True,
        "reason": "; ".join(reasons)[:MAX_PLAN_REASON],
    }
    return plan.model_copy(update=update)


def _progress_status(progress: Progress, before: ProgressStatus | None) -> ProgressStatus:
    """Until an attempt completes its first step, the figures of the attempt before it are kept."""
    if progress.total_steps == 0 and before is not None:
        return before
    return ProgressStatus(
        step=progress.step,
        total_steps=progress.total_steps,
        percent=100 * progress.step // max(1, progress.total_steps),
        epoch=round(progress.epoch, 3),
        loss=progress.loss,
        learning_rate=progress.learning_rate,
        tokens_per_second=progress.tokens_per_second,
        step_seconds=progress.step_seconds,
        checkpoint_every_steps=progress.checkpoint_every,
        checkpoint_late=progress.checkpoint_late or None,
        eta_seconds=None if progress.eta_seconds is None else round(progress.eta_seconds),
    )


def _with_end(status: Status, attempt: AttemptStatus, child: ObservedAttempt, now: str) -> Status:
    message = next((pod.message for pod in child.pods if pod.index == 0 and pod.message), None)
    if message is not None and message.progress is not None:
        status = _with_progress(status, attempt, message.progress)
        attempt = next(entry for entry in status.run.attempts if entry.job_name == attempt.job_name)
    ended_at = child.ended_at or now  # a lost attempt has no end time
    status = status.with_run(warnings=merged_warnings(status.run.warnings, _warnings_about_containers(child)))
    if child.succeeded:
        status = _ended(status, attempt.model_copy(update={"end_time": ended_at, "outcome": Outcome.SUCCEEDED}))
        return _with_results(status, message)
    classified = failure.classify_failure(child, status.run.failure)
    if (child.suspended or was_evicted(attempt, child)) and classified.retry_class is not RetryClass.PERMANENT:
        # Its pods were stopped by the suspension of the Job, which is no failure. Those of the next admission cannot
        # continue, because the attempt has claimed the run.
        return _ended(status, attempt.model_copy(update={"end_time": ended_at, "outcome": Outcome.STOPPED}))
    ended = attempt.model_copy(
        update={
            "end_time": ended_at,
            "outcome": Outcome.REJECTED if classified.never_ran else _OUTCOMES[classified.retry_class],
            "reason": classified.status.failure_class,
            "exit_code": classified.exit_code or None,
            "message": classified.status.message.partition("\n")[0][:_MAX_ATTEMPT_MESSAGE],
        }
    )
    status = _charge(_ended(status, ended), ended, classified.retry_class)
    return status.with_run(failure=classified.status)


def _warnings_about_containers(child: ObservedAttempt) -> tuple[str, ...]:
    """Return the first pod that other containers than the trainer kept running or failed, and how to change that."""
    held = next((pod for pod in child.pods if child.held and pod.held_by), None)
    if held is not None:
        names = ", ".join(held.held_by)
        effect = f"the trainer ended, but the pod was kept running by {names}, so {child.job_name} was deleted"
        return (f"{held.name}: {effect}; {failure.SIDECAR_ADVICE}",)
    failed = next((pod for pod in child.pods if child.succeeded and pod.failed_containers), None)
    if failed is not None:
        effect = f"the trainer succeeded, but {', '.join(failed.failed_containers)}"
        return (f"{failed.name}: {effect}; {failure.SIDECAR_ADVICE}",)
    cut = next((pod for pod in child.pods if child.succeeded and pod.index == 0 and is_cut(pod.raw_message)), None)
    if cut is not None:
        cause = "the kubelet cut the result of the trainer, because all containers of a pod share 12 KiB"
        effect = "figures can be missing in status; storage has all of them"
        return (f"{cut.name}: {cause}: {effect}; exclude the pods of the job from what injects containers",)
    return ()


def has_new_checkpoint(status: Status, attempt: AttemptStatus) -> bool:
    """Whether the newest attempt has saved a step that no earlier attempt had saved.

    Only reported checkpoints count. Otherwise an attempt that ends before it reads its checkpoint would count as
    progress, and would be repeated without limit.
    """
    saved = status.run.last_checkpoint
    return attempt.stage is Stage.TRAIN and saved is not None and saved.step > (attempt.known_checkpoint_step or 0)


def _is_stage_charged(status: Status, attempt: AttemptStatus) -> bool:
    """Whether `status.run.restarts` counts failures of this attempt's stage. Restarts are counted per stage."""
    charged = [entry for entry in status.run.attempts if entry.outcome is Outcome.RETRYABLE and entry != attempt]
    return attempt.number > 1 and (not charged or charged[-1].stage is attempt.stage)


def _newest_known_step(status: Status) -> int | None:
    """Return the highest known step. Saving the same steps again after resuming from an older checkpoint is no
    progress."""
    steps = [entry.known_checkpoint_step for entry in status.run.attempts if entry.known_checkpoint_step is not None]
    if status.run.last_checkpoint is not None:
        steps.append(status.run.last_checkpoint.step)
    return max(steps, default=None)


def _charge(status: Status, attempt: AttemptStatus, retry_class: RetryClass) -> Status:
    resets = has_new_checkpoint(status, attempt) or not _is_stage_charged(status, attempt)
    restarts = 0 if resets else status.run.restarts
    if retry_class is RetryClass.RETRYABLE:
        restarts += 1
    disruptions = status.run.disruptions + (retry_class is RetryClass.DISRUPTION)
    return status.with_run(restarts=restarts, disruptions=disruptions)


def _with_results(status: Status, message: TerminationMessage | None) -> Status:
    """Record the results of a completed stage in status, because its pods are deleted later."""
    if message is None:
        return status
    update: dict[str, object] = {"failure": None}
    if message.prepared is not None:
        update["resolved"] = _resolved(message.prepared)
        update["notes"] = tuple(note[:MAX_WARNING_LENGTH] for note in message.prepared.notes[:MAX_NOTES])
    if message.trained is not None:
        update["artifact"] = ArtifactStatus(uri=message.trained.model_uri, digest=message.trained.digest)
    if message.evaluated is not None and status.run.artifact is not None:
        evaluated = message.evaluated
        artifact = {"report": evaluated.report_uri}
        if evaluated.model_uri and evaluated.digest:  # a format that was exported now may be the one to use
            artifact |= {"uri": evaluated.model_uri, "digest": evaluated.digest}
        update["artifact"] = status.run.artifact.model_copy(update=artifact)
        figures = {
            CandidateName.BASE_MODEL: evaluated.baseline,
            CandidateName.TUNED: evaluated.tuned,
            CandidateName.PROMOTED: evaluated.promoted,
            CandidateName.PRUNED: evaluated.pruned,
            **{CandidateName.of(name): found for name, found in evaluated.baselines.items()},
        }
        update["promotion"] = None if evaluated.promotion is None else _promotion(evaluated.promotion)
        sets = {CandidateName.BASE_MODEL: evaluated.baseline_sets, CandidateName.TUNED: evaluated.tuned_sets}
        candidates = {
            name: CandidateStatus(metrics=found, regression_sets=sets.get(name) or None)
            for name, found in figures.items()
            if found or sets.get(name)
        }
        for name, export in evaluated.exports.items():
            measured = candidates.get(name) or CandidateStatus(metrics=export.metrics)
            candidates[name] = measured.model_copy(
                update={"bytes": export.bytes, "examples_per_second": export.examples_per_second}
            )
        update["candidates"] = candidates
        output, _, _ = evaluated.report_uri.rpartition("/runs/")
        status = without_files(status, evaluated.kept_runs, output)
    return status.with_run(**update)


def without_files(status: Status, kept: tuple[int, ...], output: str) -> Status:
    """Mark past runs whose files were deleted. `kept` are the runs that have files under this output; empty: nothing
    was deleted."""
    if not kept:
        return status

    def marked(past: PastRun) -> PastRun:
        is_here = past.resolved is not None and past.resolved.dataset.startswith(f"{output}/")
        if past.number in kept or not is_here:
            return past
        return past.model_copy(update={"files_deleted": True, "artifact": None})

    return status.model_copy(update={"history": tuple(map(marked, status.history))})


def _promotion(result: PromotionResult) -> PromotionStatus:
    return PromotionStatus(
        outcome=result.outcome,
        message=result.message[:MAX_PROMOTION_MESSAGE],
        uri=result.uri,
        previous=result.previous,
        time=result.time or None,
    )


def _resolved(prepared: Prepared) -> ResolvedStatus:
    return ResolvedStatus(
        task=prepared.task,
        format=prepared.format,
        dtype=prepared.dtype,
        zero_stage=prepared.zero_stage,
        offload="" if prepared.offload is Offload.NONE else prepared.offload,
        micro_batch_limit=prepared.micro_batch_limit,
        micro_batch_memory=prepared.micro_batch_memory,
        batching=prepared.batching,
        dataset=prepared.dataset_uri,
        dataset_digest=prepared.dataset_digest,
        source_digest=prepared.source_digest,
        model_digest=prepared.model_digest,
        parameters=prepared.parameters or None,
        frozen_parameters=prepared.frozen_parameters or None,
        rules=tuple(RuleStatus(**dict(counts)) for counts in prepared.rules),
        test_tokens=prepared.test_tokens,
        regression_tokens=prepared.regression_tokens or None,
        model_revision=prepared.model_revision,
        requested_revision=prepared.requested_revision,
    )


def _replace(status: Status, attempt: AttemptStatus) -> Status:
    attempts = tuple(attempt if entry.job_name == attempt.job_name else entry for entry in status.run.attempts)
    return status.with_run(attempts=attempts)
