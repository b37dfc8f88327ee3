"""Documents of runs in storage, as the stages write them, without training."""

import json
from typing import Any

from factories import MINIMAL_SPEC, merged
from finetune_api.run_layout import RunLayout
from finetune_api.v1alpha1 import Metric, Spec
from finetune_trainer.store import ObjectStore

UID = "1f3a9c42-0000"


def record(run: int = 1, *, job: str = "topics", prepared: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """run.json."""
    return {
        "job": {"namespace": "team-a", "name": job, "uid": UID},
        "run": run,
        "spec": Spec.model_validate(merged(MINIMAL_SPEC, spec)).model_dump(mode="json", exclude_defaults=True),
        "prepared": {
            "task": "SequenceClassification",
            "dataset_digest": "0f3c9d1b2a4e8877",
            "model_digest": "c1a5f0d23b17aa02",
            "counts": {"train": 1620, "validation": 202, "test": 203},
            "a_newer_field": 1,
        }
        | (prepared or {}),
        "versions": {},
    }


def evaluation(accuracy: float = 0.9, **metrics: float) -> dict[str, Any]:
    """evaluation.json."""
    figures = {Metric.ACCURACY: accuracy, Metric.LOSS: 0.4} | metrics
    interval = {"low": round(accuracy - 0.02, 2), "high": round(accuracy + 0.02, 2), "confidence": 0.95}
    return {"version": 1, "tuned": {"metrics": figures, "intervals": {Metric.ACCURACY: interval}, "examples": 203}}


def training(steps: int = 40, *, rate: float = 0.05, **fields: Any) -> dict[str, Any]:
    """training.json."""
    log: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        log.append({"step": step, "loss": 3.0 / (1 + rate * step), "learning_rate": 1e-4, "epoch": step / 10})
        if step % 10 == 0:
            log.append({"step": step, "eval_loss": 3.1 / (1 + rate * step), "eval_accuracy": step / 100})
    return {"log": log, "steps": steps, "tokens": 4_000, "trained_parameters": 22_713_216, **fields}


def stored(
    store: ObjectStore,
    output: str,
    run: int,
    *,
    spec: dict[str, Any] | None = None,
    documents: dict[str, Any] | None = None,
) -> str:
    """Store a run, and return the address of its folder. A document that is None is left out."""
    layout = RunLayout.of(output, run, UID)
    made = {
        layout.record: record(run, **(spec or {})),
        layout.evaluation: evaluation(),
        layout.training_log: training(),
    }
    for name, content in (documents or {}).items():
        made[f"{layout.uri}/{name}"] = content
    for uri, content in made.items():
        if content is not None:
            store.put(uri, content if isinstance(content, bytes) else json.dumps(content).encode())
    return layout.uri
