"""Minimal manifests and results of the prepare stage for tests, with individual changes."""

import copy
from collections.abc import Sequence
from typing import Any

from finetune_api.trainer_config import Prepared, SplitCounts
from finetune_api.v1alpha1 import Batching, DataFormat, Dtype, Task

MINIMAL_SPEC: dict[str, Any] = {
    "model": {"uri": "s3://bucket/models/base"},
    "data": {"train": [{"uri": "s3://bucket/data/train.jsonl"}], "format": "Classification"},
    "training": {"learningRate": 2e-4},
    "output": {"uri": "s3://bucket/runs/job"},
}


def make_job(name: str = "job", *, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    """Return a FineTuneJob manifest; `spec` is merged into the smallest valid spec, block by block.

    `make_job(workers={"nodes": 2}, training={"epochs": 1})`; a value of None removes the block or the field.
    """
    manifest = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": merged(MINIMAL_SPEC, spec),
    }
    return copy.deepcopy(manifest)


def make_prepared(**fields: Any) -> Prepared:
    """Results of the prepare stage for a small classifier; `fields` replace its values and are not validated."""
    plain = Prepared(
        dataset_uri="s3://bucket/out/datasets/d",
        dataset_digest="d",
        model_digest="m",
        format=DataFormat.CLASSIFICATION,
        task=Task.SEQUENCE_CLASSIFICATION,
        dtype=Dtype.FLOAT32,
        batching=Batching.PADDED,
        zero_stage=2,
        counts=SplitCounts(train=100, validation=10, test=10),
    )
    return plain.model_copy(update=fields)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`, mappings key by key; None removes a key."""
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def any_of(names: Sequence[str]) -> str:
    """`a, b or c`, as messages list alternatives."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
