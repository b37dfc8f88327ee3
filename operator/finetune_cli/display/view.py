"""A snapshot of what displays show, from the status of a job and the progress of rank 0. Pure."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from finetune_api.constants import ConditionType, Phase, Stage
from finetune_api.progress import Progress
from finetune_api.stages import run_stages, stage_order
from finetune_api.v1alpha1 import AttemptStatus, FineTuneJob, Metric, ProgressStatus, Status

from .text import seconds_since


class StageState(StrEnum):
    """State of a stage."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class StageView:
    """One stage of the run."""

    stage: Stage
    state: StageState
    seconds: float
    """Total time of its attempts so far."""


@dataclass(frozen=True)
class CheckpointView:
    """The last committed checkpoint."""

    step: int
    age_seconds: float


@dataclass(frozen=True)
class AttemptEnd:
    """End of an attempt. Two of one attempt are equal: the pod is only known until the run succeeds."""

    stage: str
    attempt: int
    text: str = field(compare=False)
    """Such as `attempt 1 ended: Signal9 in <pod>`."""


@dataclass(frozen=True)
class View:
    """The state of a run at one time."""

    name: str
    run: int
    phase: Phase
    stages: tuple[StageView, ...]
    stage: str
    attempt: int
    """Attempt of the current or last stage, counted from 1."""
    resumed_from_step: int | None
    activity: str
    """Current activity, as reported by the trainer."""
    figures: ProgressStatus
    """Progress of the training; zeros before it starts."""
    checkpoint: CheckpointView | None
    validation: dict[Metric, float]
    """Latest metrics of the validation split."""
    warnings: tuple[str, ...]
    notice: str
    """Message of the Ready condition, such as when the next attempt starts."""
    last_end: AttemptEnd | None
    """End of the last attempt that ended with a reason."""
    elapsed_seconds: float


def snapshot(job: FineTuneJob, progress: Progress | None, now: datetime) -> View:
    """Return the view at `now`. Progress of rank 0 takes precedence over the status, which is older."""
    status = job.status
    live = progress if progress is not None and progress.stage == status.run.stage else None
    training = live if live is not None and live.stage == Stage.TRAIN else None
    return View(
        name=job.metadata.name,
        run=status.run.number,
        phase=status.phase,
        stages=tuple(_stage(status, stage, now) for stage in run_stages()),
        stage=status.run.stage,
        attempt=status.run.attempt,
        resumed_from_step=_resumed_from(training, status),
        activity=live.activity if live else "",
        figures=_figures(status, training),
        checkpoint=_checkpoint(status, training, now),
        validation=training.evaluation if training else {},
        warnings=tuple(dict.fromkeys((*status.run.warnings, *(live.warnings if live else ())))),
        notice=_notice(status),
        last_end=_last_end(status),
        elapsed_seconds=_elapsed(status, now),
    )


def _stage(status: Status, stage: Stage, now: datetime) -> StageView:
    attempts = [attempt for attempt in status.run.attempts if attempt.stage is stage]
    return StageView(stage, _stage_state(status, stage), sum(_attempt_seconds(attempt, now) for attempt in attempts))


def _stage_state(status: Status, stage: Stage) -> StageState:
    if status.phase is Phase.SUCCEEDED:
        return StageState.DONE
    if not status.run.stage or stage_order(stage) > stage_order(Stage(status.run.stage)):
        return StageState.WAITING
    if stage != status.run.stage:
        return StageState.DONE
    special = {Phase.FAILED: StageState.FAILED, Phase.SUSPENDED: StageState.STOPPED}
    return special.get(status.phase, StageState.RUNNING)


def _attempt_seconds(attempt: AttemptStatus, now: datetime) -> float:
    end = datetime.fromisoformat(attempt.end_time) if attempt.end_time else now
    return seconds_since(attempt.start_time, end)


def _resumed_from(training: Progress | None, status: Status) -> int | None:
    if training is not None:
        return training.resumed_from_step
    return status.run.attempts[-1].resumed_from_step if status.run.attempts else None


def _figures(status: Status, training: Progress | None) -> ProgressStatus:
    if training is None or training.total_steps == 0:
        return status.run.progress or ProgressStatus()
    return ProgressStatus(
        step=training.step,
        total_steps=training.total_steps,
        percent=100 * training.step // training.total_steps,
        epoch=training.epoch,
        loss=training.loss,
        learning_rate=training.learning_rate,
        tokens_per_second=training.tokens_per_second,
        eta_seconds=None if training.eta_seconds is None else round(training.eta_seconds),
    )


def _checkpoint(status: Status, training: Progress | None, now: datetime) -> CheckpointView | None:
    newest = training.last_checkpoint if training and training.last_checkpoint else status.run.last_checkpoint
    return CheckpointView(newest.step, seconds_since(newest.time, now)) if newest else None


def _notice(status: Status) -> str:
    """Return the message of the Ready condition, except `attempt N`, which is shown elsewhere."""
    ready = next((entry for entry in status.conditions if entry.type is ConditionType.READY), None)
    return ready.message if ready and not ready.message.startswith("attempt ") else ""


def _last_end(status: Status) -> AttemptEnd | None:
    ended = next((attempt for attempt in reversed(status.run.attempts) if attempt.reason), None)
    if ended is None:
        return None
    pod = status.run.failure.pod if status.run.failure else ""
    text = f"attempt {ended.number} ended: {ended.reason}{f' in {pod}' if pod else ''}"
    return AttemptEnd(ended.stage, ended.number, text)


def _elapsed(status: Status, now: datetime) -> float:
    if status.run.start_time is None:
        return 0.0
    return seconds_since(status.run.start_time, datetime.fromisoformat(status.run.completion_time or now.isoformat()))
