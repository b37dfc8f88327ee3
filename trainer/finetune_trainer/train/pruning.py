"""Chooses the weights that `spec.method.full.pruning` sets to zero, once per run, on rank 0."""

from pathlib import Path
from typing import Any

import torch

from finetune_api.rules import zero_stage
from finetune_api.trainer_config import PreparedConfig

from ..collectives import all_ranks, rank_zero
from ..data.order import random_bits, random_order
from ..data.shards import TokenDataset
from ..errors import StoppedError
from ..methods.pruning import PRUNERS, Masks
from ..methods.pruning.record import PruningRecord
from ..model.load import load_model
from ..model.pruning import record_masks, stored_masks, stored_pruning
from ..model.weights import unpartitioned
from ..store.client import ObjectStore
from ..tasks import TASKS
from .loop import Parts

CALIBRATION_ROWS = 128
"""As in the paper of Wanda; more rows hardly change its result (Sun et al. 2023, arXiv 2306.11695, figure 2)."""


def pruning_of_run(
    config: PreparedConfig, base: Path, rows: TokenDataset, parts: Parts, store: ObjectStore
) -> PruningRecord | None:
    """Return which weights become zero; None if none do. Collective; the first attempt chooses them on rank 0.

    Rank 0 loads the base model once more for that, whole and without gradients: on its device, or under ZeRO-3, where
    the model may not fit on a GPU, in host memory.
    """
    block = config.spec.method.pruning
    if block is None or not PRUNERS[block.algorithm].sets_zeros:
        return None
    prepared, pruner = config.prepared, PRUNERS[block.algorithm]

    def choose() -> PruningRecord:
        if (stored := stored_pruning(store, config.layout)) is not None:
            return stored
        with unpartitioned():
            model: Any = load_model(
                base, task=prepared.task, labels=prepared.labels, dtype=prepared.dtype, seed=config.spec.training.seed
            )
        model.eval()
        is_whole = zero_stage(config.spec, prepared.zero_stage, prepared.dtype) < 3
        if is_whole and pruner.reads_inputs:
            model.to(parts.device)

        @torch.no_grad()
        def run_rows() -> None:
            order = random_order(random_bits(config.spec.training.seed, 0), len(rows))
            place = next(model.parameters()).device
            for row in order[:CALIBRATION_ROWS]:  # one by one, because padding is no input
                if parts.stop.requested:
                    raise StoppedError("stopped while inputs were measured for pruning")
                batch = parts.collator([rows[int(row)]])
                inputs = TASKS[prepared.task].inputs(batch)
                model(**{name: values.to(place) for name, values in inputs.items()})

        masks = pruner.masks(model, block, run_rows)
        return record_masks(model, masks, store, config.layout, parts.checkpoints.create)

    return rank_zero(choose, PruningRecord)


def masks_of_run(
    record: PruningRecord | None, config: PreparedConfig, store: ObjectStore, model: torch.nn.Module
) -> Masks:
    """Read the masks of a run on every rank; empty if none become zero. Collective."""
    if record is None:
        return {}
    return all_ranks(lambda: stored_masks(record, store, config.layout, model))
