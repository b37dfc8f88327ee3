"""Compares the exports with quantized weights with the trained model: size, speed and accuracy. Imports torch in
functions."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.comparison import metric_name, metric_text
from finetune_api.progress import ExportResult
from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1 import CandidateName

from ..model.files import CARD_FILE, files_in
from ..runtime import RuntimeEnv
from ..store.client import ObjectStore
from .candidates import quantized_candidates
from .formatting import megabytes
from .records import Evaluation, ExportedModel, ModelMetrics, QuantizedExports, Reloaded

if TYPE_CHECKING:  # imports torch
    from .evaluator import ModelEvaluator


def measured_exports(
    config: PreparedConfig, store: ObjectStore, runtime: RuntimeEnv, source: Path | None, evaluator: "ModelEvaluator"
) -> tuple[QuantizedExports | None, tuple[Reloaded, ...]]:
    """Reload and measure every export with quantized weights. `source` is the folder that they were made from; None:
    there are none.

    Raises ExportUnusableError for one that is not the trained model.
    """
    if source is None:
        return None, ()
    found, checks = [], []
    for candidate in quantized_candidates(config, store, runtime, source):
        assert candidate.quantized is not None
        title = candidate.quantized.title
        result = evaluator.export(candidate, f"export {title}")
        figures = result.figures
        found.append(
            ExportedModel(
                name=candidate.quantized.candidate,
                title=title,
                address=candidate.address,
                bytes=_size(candidate.quantized.path(candidate.folder)),
                figures=None if figures is None else figures.model_copy(update={"classification": None}),
            )
        )
        if result.reloaded is not None:
            checks.append(result.reloaded)
    return QuantizedExports(trained_bytes=_size(source), exports=tuple(found)), tuple(checks)


def export_results(record: Evaluation) -> dict[CandidateName, ExportResult]:
    """Size and speed of every export and of the trained model, for the status."""
    if record.quantized is None:
        return {}
    trained = ExportResult(bytes=record.quantized.trained_bytes, examples_per_second=speed(record.tuned))
    exports = {
        found.name: ExportResult(
            bytes=found.bytes,
            examples_per_second=speed(found.figures),
            metrics={} if found.figures is None else found.figures.metrics,
        )
        for found in record.quantized.exports
    }
    return {CandidateName.TUNED: trained, **exports}


def export_notes(record: Evaluation) -> tuple[str, ...]:
    """One sentence about each export for report, model card and log."""
    return () if record.quantized is None else tuple(_notes(record, record.quantized))


def _notes(record: Evaluation, found: QuantizedExports) -> Iterator[str]:
    for export in found.exports:
        note = f"{export.title}: {megabytes(export.bytes)}, the trained model {megabytes(found.trained_bytes)}"
        if export.figures is not None and record.tuned is not None:
            metric = record.headline
            own, trained = (metric_text(metric, one.metrics[metric]) for one in (export.figures, record.tuned))
            note += f"; {metric_name(metric)} on the test split {own}, the trained model {trained}"
        yield f"{note}."


def speed(figures: ModelMetrics | None) -> float | None:
    """Examples per second of the forward passes over the test split, to three digits; None if not measured."""
    if figures is None or not figures.seconds:
        return None
    return float(f"{figures.examples / figures.seconds:.3g}")


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum((path / name).stat().st_size for name in files_in(path) - {CARD_FILE})
