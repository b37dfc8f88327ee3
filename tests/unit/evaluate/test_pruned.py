"""What report, notes and record say about a pruned model."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune_api.v1alpha1 import ArtifactFormat, Metric, PruningAlgorithm
from finetune_trainer.evaluate.model_card import model_card
from finetune_trainer.evaluate.pruned import pruning_notes, speed_ratio, stored_size, with_pruning
from finetune_trainer.evaluate.records import Evaluation, ModelMetrics, PruningResult, StoredSize
from finetune_trainer.evaluate.report import render_report
from finetune_trainer.methods.pruning.record import PrunedKind

BEFORE = StoredSize(weights=100, nonzero=100, bytes=90_900_000, compressed=84_000_000)
ZEROS = PruningResult(
    algorithm=PruningAlgorithm.WANDA,
    kinds=(PrunedKind(name="attn.q", weights=40, zeros=20), PrunedKind(name="mlp<b>", weights=40, zeros=20)),
    pruned=ModelMetrics(metrics={Metric.LOSS: 1.5, Metric.ACCURACY: 0.25}, examples=9, seconds=2.0),
    base_size=BEFORE,
    size=StoredSize(weights=100, nonzero=60, bytes=90_900_000, compressed=55_000_000),
)
DROPPED = PruningResult(
    algorithm=PruningAlgorithm.DROP_LAYERS,
    dropped_layers=2,
    pruned=ZEROS.pruned,
    base_size=BEFORE,
    size=StoredSize(weights=70, nonzero=70, bytes=60_000_000, compressed=55_000_000),
)


@pytest.fixture
def record(report_inputs) -> Evaluation:
    found = report_inputs().record
    return found.model_copy(update={"baseline": found.baseline.model_copy(update={"seconds": 3.0})})


def test_notes_state_zeros_metrics_and_sizes(record: Evaluation) -> None:
    found = with_pruning(record, ZEROS)
    zeros, metrics, sizes = pruning_notes(found)
    assert found.notes[-3:] == (zeros, metrics, sizes)
    assert "40 of 80 weights of the transformer layers are zero (50.0%). Zeros do not make the model faster" in zeros
    assert "base model " in metrics
    assert "after pruning 25.0 %, after training " in metrics
    assert "90.9 MB (55.0 MB compressed with gzip; 60 weights are not zero), the base model 90.9 MB (84.0 MB" in sizes
    assert speed_ratio(found) is None


def test_notes_state_the_measured_speed_without_dropped_layers(record: Evaluation) -> None:
    found = with_pruning(record, DROPPED)
    notes = pruning_notes(found)
    assert notes[0] == "Pruning DropLayers: 2 layers of the base model dropped."
    assert "take 0.67 of the time of the base model" in notes[2]
    assert speed_ratio(found) == 1.5
    unmeasured = DROPPED.model_copy(update={"pruned": None, "base_size": None})
    assert len(pruning_notes(with_pruning(record, unmeasured))) == 2
    assert with_pruning(record, None) == record


@pytest.mark.parametrize("result", [ZEROS, DROPPED, ZEROS.model_copy(update={"pruned": None, "base_size": None})])
def test_report_and_card_show_the_result(report_inputs, record: Evaluation, result: PruningResult) -> None:
    found = with_pruning(record, result)
    inputs = dataclasses.replace(report_inputs(), record=found)
    page = render_report(inputs)
    assert "<h2>Pruning</h2>" in page
    assert ("mlp&lt;b&gt;" in page) == bool(result.kinds)
    assert ("Speed of forward passes" in page) == bool(result.dropped_layers)
    assert ("<td>25.0 %</td>" in page) == (result.pruned is not None)
    assert f"Pruning {result.algorithm}" in model_card(found, inputs.config, inputs.data, ArtifactFormat.MERGED)


def test_zeros_make_compressed_files_smaller_and_no_others(tmp_path: Path) -> None:
    weights = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(1))
    sizes = []
    for name, share in (("dense", 0), ("pruned", 50_000)):
        values = weights.clone()
        values[0, :share] = 0
        (tmp_path / name).mkdir()
        for part in range(2):
            save_file({f"w{part}": values[part].bfloat16()}, tmp_path / name / f"model-{part}.safetensors")
        sizes.append(stored_size(tmp_path / name))
    dense, pruned = sizes
    assert (dense.weights, dense.nonzero, pruned.weights, pruned.nonzero) == (100_000, 100_000, 100_000, 50_000)
    assert dense.bytes == pruned.bytes > 200_000
    assert pruned.compressed < 0.6 * dense.compressed < dense.compressed < dense.bytes
