"""What `spec.method.full.pruning` has done to accuracy, size and speed. Imports torch in functions."""

import zlib
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from finetune_api.comparison import metric_name, metric_text
from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1 import Pruning

from ..methods.pruning import PRUNERS
from ..methods.pruning.record import PruningRecord
from ..store.client import ObjectStore
from .candidates import Candidate
from .formatting import megabytes
from .records import Evaluation, ModelMetrics, PruningResult, StoredSize

_CHUNK = 2**24


def pruned_candidate(base: Candidate, block: Pruning, config: PreparedConfig, store: ObjectStore) -> Candidate:
    """The base model after pruning and before the training."""

    def prune(model: Any) -> None:
        from ..model.pruning import set_zeros, stored_masks, stored_pruning

        PRUNERS[block.algorithm].reshape(model, block)
        if (record := stored_pruning(store, config.layout)) is not None:
            set_zeros(model, stored_masks(record, store, config.layout, model))

    return replace(base, is_own=False, change=prune)


def pruning_result(
    config: PreparedConfig,
    block: Pruning,
    store: ObjectStore,
    *,
    base: Candidate | None,
    tuned: Candidate,
    figures: ModelMetrics | None,
) -> PruningResult:
    """Read the files of both models. `figures` are those of the pruned base model.

    Raises ObjectMissingError if the train stage has not stored which weights it has set to zero.
    """
    sets_zeros = PRUNERS[block.algorithm].sets_zeros
    record = PruningRecord.model_validate(store.get_json(config.layout.pruning)) if sets_zeros else None
    return PruningResult(
        algorithm=block.algorithm,
        kinds=() if record is None else record.kinds,
        dropped_layers=block.layers or 0,
        # Metrics of classes would make the record large.
        pruned=None if figures is None else figures.model_copy(update={"classification": None}),
        base_size=None if base is None else stored_size(base.folder),
        size=stored_size(tuned.folder),
    )


def stored_size(folder: Path) -> StoredSize:
    """Size of the weight files of a model as they are, and compressed. Takes about 40 s for each GB."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    weights = nonzero = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                weights += prod(tensor.shape)
                nonzero += int(tensor.count_nonzero())
    compressed = sum(map(_compressed_bytes, files))
    return StoredSize(
        weights=weights, nonzero=nonzero, bytes=sum(path.stat().st_size for path in files), compressed=compressed
    )


def with_pruning(record: Evaluation, result: PruningResult | None) -> Evaluation:
    """Add the result and its notes."""
    found = record.model_copy(update={"pruning": result})
    return found.model_copy(update={"notes": (*record.notes, *pruning_notes(found))})


def pruning_notes(record: Evaluation) -> tuple[str, ...]:
    """Sentences about the result for report, model card and log."""
    found = record.pruning
    if found is None:
        return ()
    return tuple(_notes(record, found))


def _notes(record: Evaluation, found: PruningResult) -> Iterator[str]:
    if found.kinds:
        yield (
            f"Pruning {found.algorithm}: {found.zeros:,} of {found.weights:,} weights of the transformer layers are "
            f"zero ({found.zeros / found.weights:.1%}). Zeros do not make the model faster, because kernels for dense "
            "matrices multiply them too."
        )
    else:
        layers = "layer" if found.dropped_layers == 1 else "layers"
        yield f"Pruning {found.algorithm}: {found.dropped_layers} {layers} of the base model dropped."
    metric = record.headline
    if record.tuned is not None and found.pruned is not None and record.baseline is not None:
        values = [
            metric_text(metric, figures.metrics[metric]) for figures in (record.baseline, found.pruned, record.tuned)
        ]
        yield (
            f"{metric_name(metric)} on the test split: base model {values[0]}, after pruning {values[1]}, after "
            f"training {values[2]}."
        )
    if (speed := speed_ratio(record)) is not None:
        yield (f"Forward passes over the test split take {1 / speed:.2f} of the time of the base model, measured once.")
    before = "" if found.base_size is None else f", the base model {_size(found.base_size)}"
    yield f"The weight files have {_size(found.size)}{before}."


def speed_ratio(record: Evaluation) -> float | None:
    """Speed of the pruned model divided by that of the base model; None if no layers were dropped, or not measured.

    The trained model has the same speed as the pruned one, but it is evaluated first, which includes loading libraries.
    """
    found = record.pruning
    if found is None or not found.dropped_layers or found.pruned is None or record.baseline is None:
        return None
    return record.baseline.seconds / found.pruned.seconds if found.pruned.seconds else None


def _size(size: StoredSize) -> str:
    return (
        f"{megabytes(size.bytes)} ({megabytes(size.compressed)} compressed with gzip; {size.nonzero:,} weights are not "
        "zero)"
    )


def _compressed_bytes(path: Path) -> int:
    """Size after gzip at its fastest level: a better one is slower and saves a few percent more."""
    packer, total = zlib.compressobj(1), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total += len(packer.compress(chunk))
    return total + len(packer.flush())
