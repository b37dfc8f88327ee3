"""Computes the values that an adapter begins with, once per run, on rank 0."""

from pathlib import Path
from typing import Any

from finetune_api.rules import zero_stage
from finetune_api.trainer_config import PreparedConfig

from ..collectives import all_ranks, rank_zero
from ..methods import METHODS
from ..methods.base import Weights
from ..model.initial_weights import (
    InitialWeightsRecord,
    record_initial_weights,
    stored_initial_weights,
    stored_record,
)
from ..model.load import TORCH_DTYPES, load_model
from ..model.weights import unpartitioned
from ..store.client import ObjectStore
from ..tasks import TASKS
from .loop import Parts


def initial_weights_of_run(config: PreparedConfig, base: Path, parts: Parts, store: ObjectStore) -> Weights:
    """Return the values by the name of the parameter; empty if the method has none. Collective.

    The first attempt computes them on rank 0, which loads the base model once more for that, whole: on its device, or
    under ZeRO-3, where the model may not fit on a GPU, in host memory.
    """
    spec, prepared = config.spec, config.prepared
    method = METHODS[spec.method.name]
    if not method.has_initial_weights(spec.method.block):
        return {}

    def compute() -> InitialWeightsRecord:
        if (stored := stored_record(store, config.layout)) is not None:
            return stored
        with unpartitioned():
            model: Any = load_model(
                base, task=prepared.task, labels=prepared.labels, dtype=prepared.dtype, seed=spec.training.seed
            )
            model = method.apply(model, spec.method.block, TASKS[prepared.task], seed=spec.training.seed)
        if zero_stage(spec, prepared.zero_stage, prepared.dtype) < 3:
            model.to(parts.device)
        values = method.initial_weights(model, spec.method.block, seed=spec.training.seed)
        dtype = TORCH_DTYPES[prepared.dtype]
        return record_initial_weights(values, dtype, store, config.layout, parts.checkpoints.create)

    record = rank_zero(compute, InitialWeightsRecord)
    return all_ranks(lambda: stored_initial_weights(record, store, config.layout))
