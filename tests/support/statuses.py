"""Running and finished jobs, as displays see them."""

from typing import Any

from factories import make_job, merged
from finetune_api.constants import Stage
from finetune_api.progress import CommittedCheckpoint, Progress
from finetune_api.v1alpha1 import FineTuneJob, Metric, RunStatus, Status
from finetune_api.validation import parse_job

START = "2026-01-01T12:00:00Z"


def attempt(stage: str, number: int = 1, **fields: Any) -> dict[str, Any]:
    """An attempt that started at START."""
    return {
        "stage": stage,
        "number": number,
        "jobName": f"topics-r1-{stage}-a{number}",
        "startTime": START,
        **fields,
    }


PREPARED = attempt("prepare", endTime="2026-01-01T12:00:06Z", outcome="Succeeded")

TRAINING: dict[str, Any] = {
    "phase": "Training",
    "run": {
        "number": 1,
        "stage": "train",
        "attempt": 1,
        "startTime": START,
        "attempts": [PREPARED, attempt("train", firstStepTime=START)],
        "progress": {"step": 180, "totalSteps": 296, "percent": 60, "epoch": 4.9, "loss": 0.412},
        "lastCheckpoint": {"uri": "s3://b/c.json", "step": 180, "time": "2026-01-01T12:00:50Z"},
    },
}

RESTARTING = merged(
    TRAINING,
    {
        "phase": "Restarting",
        "run": {
            "attempt": 2,
            "attempts": [
                PREPARED,
                attempt("train", endTime="2026-01-01T12:00:40Z", outcome="Retryable", reason="Signal9", lastStep=181),
                attempt("train", 2),
            ],
            "failure": {"class": "Signal9", "stage": "train", "pod": "topics-r1-train-a1-1", "exitCode": 137},
        },
    },
)

SUCCEEDED = merged(
    TRAINING,
    {
        "phase": "Succeeded",
        "run": {
            "stage": "evaluate",
            "completionTime": "2026-01-01T12:02:05Z",
            "progress": {"step": 296, "totalSteps": 296, "percent": 100, "epoch": 8.0, "loss": 0.031},
            "attempts": [
                PREPARED,
                attempt("train", endTime="2026-01-01T12:00:40Z", outcome="Retryable", reason="Signal9", lastStep=181),
                attempt("train", 2, endTime="2026-01-01T12:01:50Z", outcome="Succeeded", resumedFromStep=120),
                attempt("evaluate", endTime="2026-01-01T12:02:05Z", outcome="Succeeded"),
            ],
            "candidates": {
                "baseModel": {"metrics": {"Accuracy": 0.0946, "MacroF1": 0.021, "Loss": 2.833}},
                "tuned": {"metrics": {"Accuracy": 0.8784, "MacroF1": 0.791, "Loss": 0.512}},
                "tfidfLogisticRegression": {"metrics": {"Accuracy": 0.71, "MacroF1": 0.62, "Loss": 1.2}},
            },
            "artifact": {
                "uri": "s3://demo/runs/topics/runs/r0001-1f3a9c42/model",
                "digest": "sha256:1",
                "report": "s3://demo/runs/topics/runs/r0001-1f3a9c42/report.html",
            },
        },
    },
)

FAILED = merged(
    TRAINING,
    {
        "phase": "Failed",
        "run": {
            "stage": "prepare",
            "progress": None,
            "lastCheckpoint": None,
            "attempts": [attempt("prepare", endTime="2026-01-01T12:00:06Z", outcome="Permanent", reason="BadData")],
            "failure": {
                "class": "BadData",
                "stage": "prepare",
                "rank": 0,
                "pod": "topics-r1-prepare-a1-0",
                "exitCode": 65,
                "message": 's3://b/train.jsonl:17: not JSON: Expecting \',\' delimiter\nline 17: {"text": "a" "label"}',
                "advice": "correct the line, or set spec.data.onBadRecord to Skip",
            },
        },
        "conditions": [
            {
                "type": "Failed",
                "status": "True",
                "reason": "PrepareFailed",
                "message": "prepare failed: not tried again: s3://b/train.jsonl:17",
                "lastTransitionTime": START,
            }
        ],
    },
)

SUSPENDED = merged(TRAINING, {"phase": "Suspended"})


def make_status(**fields: Any) -> Status:
    """Return a status from Python names; fields of the run go into the run. `run` is its number."""
    run = {name: fields.pop(name) for name in RunStatus.model_fields if name in fields}
    if "run" in fields:
        run["number"] = fields.pop("run")
    if unknown := fields.keys() - Status.model_fields:
        raise TypeError(f"a status has no fields {sorted(unknown)}")
    return Status(**fields, run=RunStatus(**run))


def job_with(status: dict[str, Any], name: str = "topics") -> FineTuneJob:
    """A job with this status."""
    return parse_job({**make_job(name), "status": status})


def live(**fields: Any) -> Progress:
    """Progress of rank 0 during training."""
    checkpoint = CommittedCheckpoint(step=180, uri="s3://b/c.json", time="2026-01-01T12:00:50Z", save_seconds=0.4)
    known: dict[str, Any] = {
        "stage": Stage.TRAIN,
        "attempt": 1,
        "activity": "training",
        "step": 182,
        "total_steps": 296,
        "epoch": 4.92,
        "loss": 0.4123,
        "learning_rate": 8.1e-5,
        "tokens_per_second": 2140.4,
        "eta_seconds": 24.2,
        "last_checkpoint": checkpoint,
        "evaluation": {Metric.LOSS: 0.61, Metric.ACCURACY: 0.842},
    }
    return Progress(**(known | fields))
