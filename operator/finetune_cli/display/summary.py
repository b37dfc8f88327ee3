"""The result of a run as rows of text, for a table or a log. Pure."""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.constants import ConditionType, Phase, Stage
from finetune_api.v1alpha1 import BASELINE_SUPPORT, CandidateName, FineTuneJob, GgufType, Status

from .text import duration, metric_change, metric_name, metric_value, seconds_since, size


@dataclass(frozen=True)
class NextSteps:
    """How to continue a suspended or failed job."""

    suspended: str
    failed: str


RUN_AGAIN = NextSteps("run the same command again", "correct the problem and run the same command again")
APPLY_AGAIN = NextSteps("set spec.suspend to false", "correct the spec and apply it again")

_TITLES = {
    Phase.SUCCEEDED: "fine-tuned",
    Phase.FAILED: "failed",
    Phase.SUSPENDED: "suspended, checkpoint saved",
    Phase.INVALID: "rejected",
}


@dataclass(frozen=True)
class Summary:
    """The result of a run as text."""

    title: str
    metrics: tuple[tuple[str, str, str, str], ...]
    """Metric, base model, tuned, change; empty if nothing was evaluated."""
    facts: tuple[tuple[str, str], ...]
    """Label and value, the most important first."""
    succeeded: bool


def summarize(job: FineTuneJob, *, next_steps: NextSteps = RUN_AGAIN) -> Summary:
    """Return the result of a job that has ended or is suspended. `next_steps` describes how to continue it."""
    status = job.status
    facts = [*_failure(status), *_progress(status), *_results(status), *_how_to_continue(job, next_steps)]
    return Summary(
        title=f"{job.metadata.name}: {_TITLES.get(status.phase, status.phase.lower())}",
        metrics=_metrics(status),
        facts=tuple((label, value) for label, value in facts if value),
        succeeded=status.phase is Phase.SUCCEEDED,
    )


def _metrics(status: Status) -> tuple[tuple[str, str, str, str], ...]:
    baseline, tuned = status.metrics_of(CandidateName.BASE_MODEL), status.metrics_of(CandidateName.TUNED)
    return tuple(
        (
            metric_name(metric),
            metric_value(metric, baseline[metric]) if metric in baseline else "-",
            metric_value(metric, value),
            metric_change(metric, baseline[metric], value) if metric in baseline else "",
        )
        for metric, value in tuned.items()
    )


def _failure(status: Status) -> list[tuple[str, str]]:
    failure = status.run.failure
    if status.phase is Phase.INVALID:
        return [("errors", _message(status, ConditionType.ACCEPTED))]
    if status.phase is not Phase.FAILED:
        return []
    reason = _message(status, ConditionType.FAILED)
    if failure is None:
        return [("reason", reason)]
    rank = "" if failure.rank is None else f", rank {failure.rank}"
    pod = f", {failure.pod}" if failure.pod else ""
    return [
        ("error", failure.message),
        ("advice", failure.advice),
        ("where", f"stage {failure.stage}{rank}{pod}"),
        ("class", f"{failure.failure_class} (exit status {failure.exit_code})"),
        ("reason", reason.split(": ")[0]),
    ]


def _message(status: Status, kind: ConditionType) -> str:
    return next((entry.message for entry in status.conditions if entry.type is kind), "")


def _progress(status: Status) -> list[tuple[str, str]]:
    facts = [("run", _run(status))]
    if status.run.progress is not None and status.run.progress.total_steps:
        facts.append(("steps", f"{status.run.progress.step} of {status.run.progress.total_steps}"))
    if status.phase is not Phase.SUCCEEDED and status.run.last_checkpoint is not None:
        facts.append(("checkpoint", f"step {status.run.last_checkpoint.step}, {status.run.last_checkpoint.uri}"))
    return facts


def _run(status: Status) -> str:
    trainings = [attempt for attempt in status.run.attempts if attempt.stage is Stage.TRAIN]
    words = [f"{status.run.number}"]
    if trainings:
        words.append(f"{trainings[-1].number} training attempt{'s' if trainings[-1].number > 1 else ''}")
    resumed = trainings[-1].resumed_from_step if trainings else None
    if resumed:
        words.append(f"resumed from step {resumed}")
    if status.run.start_time and status.run.completion_time:
        end = datetime.fromisoformat(status.run.completion_time)
        words.append(duration(seconds_since(status.run.start_time, end)))
    return ", ".join(words)


def _results(status: Status) -> list[tuple[str, str]]:
    artifact = status.run.artifact
    if artifact is None:
        return []
    promotion = status.run.promotion
    decided = "" if promotion is None else f"{promotion.outcome}: {promotion.message}"
    return [
        *baseline_rows(status),
        *regression_rows(status),
        *export_rows(status),
        ("model", artifact.uri),
        ("report", artifact.report),
        ("promotion", decided),
    ]


def baseline_rows(status: Status) -> list[tuple[str, str]]:
    """Label and metrics of each simple baseline that was evaluated."""
    rows = []
    for baseline, row in BASELINE_SUPPORT.items():
        metrics = status.metrics_of(CandidateName.of(baseline))
        shown = (f"{metric_name(metric)} {metric_value(metric, value)}" for metric, value in metrics.items())
        rows.append((row.label, ", ".join(shown)))
    return rows


def regression_rows(status: Status) -> list[tuple[str, str]]:
    """Label and metrics of each regression set, before and after training."""
    before, after = (status.regression_sets_of(name) for name in (CandidateName.BASE_MODEL, CandidateName.TUNED))
    rows: list[tuple[str, str]] = []
    for name, metrics in after.items():
        earlier = before.get(name, {})
        shown = []
        for metric, value in metrics.items():
            text = metric_value(metric, value)
            if metric in earlier:
                text = f"{metric_value(metric, earlier[metric])} -> {text}"
            shown.append(f"{metric_name(metric)} {text}")
        rows.append(("regression" if not rows else "", f"{name}: {', '.join(shown)}"))
    return rows


_EXPORTS = {
    CandidateName.INT8: "Int8",
    **{CandidateName.of_gguf(kind): f"GGUF {kind}" for kind in GgufType},
    CandidateName.COMPRESSED_TENSORS: "CompressedTensors",
}


def export_rows(status: Status) -> list[tuple[str, str]]:
    """Label, size, speed and metrics of each export with quantized weights."""
    rows = []
    for name, label in _EXPORTS.items():
        found = status.run.candidates.get(name)
        if found is None:
            continue
        shown = [] if found.bytes is None else [size(found.bytes)]
        if found.examples_per_second is not None:
            shown.append(f"{found.examples_per_second:.3g} examples per second")
        shown += (f"{metric_name(metric)} {metric_value(metric, value)}" for metric, value in found.metrics.items())
        rows.append((label, ", ".join(shown)))
    return rows


def _how_to_continue(job: FineTuneJob, next_steps: NextSteps) -> list[tuple[str, str]]:
    match job.status.phase:
        case Phase.SUSPENDED:
            return [("resume", next_steps.suspended)]
        case Phase.FAILED:
            return [("logs", f"finetune logs {job.metadata.name}"), ("to continue", next_steps.failed)]
        case _:
            return []
