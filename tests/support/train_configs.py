"""Resolved configurations of the train stage, with individual changes."""

from typing import Any

from factories import make_prepared, merged
from finetune_api.constants import Stage
from finetune_api.trainer_config import BatchPlan, JobRef, PreparedConfig, StorageSettings, World
from finetune_api.v1alpha1 import Spec

_SPEC: dict[str, Any] = {
    "model": {"uri": "s3://bucket/models/base"},
    "data": {"train": [{"uri": "s3://bucket/train.jsonl"}]},
    "training": {"learningRate": 2e-4, "globalBatchSize": 16},
    "output": {"uri": "s3://bucket/out"},
    "workers": {"nodes": 2},
}


def train_config(
    *, gpus: bool = False, micro: int = 8, prepared: dict[str, Any] | None = None, **spec: Any
) -> PreparedConfig:
    """Two processes; `spec` is merged into the smallest spec, `prepared` replaces results of the prepare stage."""
    return PreparedConfig(
        job=JobRef(namespace="default", name="job", uid="u"),
        run=1,
        stage=Stage.TRAIN,
        attempt=1,
        spec=Spec.model_validate(merged(_SPEC, spec)),
        storage=StorageSettings(),
        world=World(nodes=2, gpus=gpus),
        batch=BatchPlan(global_size=16, micro_size=micro, accumulation=8 // micro),
        prepared=make_prepared(**{"labels": ("bad", "good"), "parameters": 22_700_000} | (prepared or {})),
    )
