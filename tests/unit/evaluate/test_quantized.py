"""What report, model card, notes and status say about exports with quantized weights."""

import dataclasses

import pytest

from finetune_api.progress import ExportResult
from finetune_api.v1alpha1 import (
    ArtifactFormat,
    CandidateName,
    CompressedTensors,
    CompressedTensorsScheme,
    Gguf,
    GgufType,
    Metric,
    Output,
    Task,
)
from finetune_trainer.evaluate.model_card import model_card
from finetune_trainer.evaluate.quantized import export_notes, export_results
from finetune_trainer.evaluate.records import Address, ExportedModel, ModelMetrics, QuantizedExports, Reloaded
from finetune_trainer.evaluate.report import ReportInputs, render_report

LOSSES = {
    CandidateName.INT8: 1.51,
    CandidateName.GGUF_Q8_0: 1.505,
    CandidateName.GGUF_Q4_0: 1.75,
    CandidateName.COMPRESSED_TENSORS: 1.507,
}
TITLES = {
    "Int8": CandidateName.INT8,
    "GGUF Q8_0": CandidateName.GGUF_Q8_0,
    "GGUF Q4_0": CandidateName.GGUF_Q4_0,
    "CompressedTensors W4A16": CandidateName.COMPRESSED_TENSORS,
}


@pytest.fixture
def inputs(report_inputs) -> ReportInputs:
    """A chat model with four exports."""
    found = report_inputs(Task.CAUSAL_LM)
    config = found.config
    output = Output(
        uri=config.output_uri,
        formats=(ArtifactFormat.INT8, ArtifactFormat.GGUF, ArtifactFormat.COMPRESSED_TENSORS),
        gguf=Gguf(types=(GgufType.Q8_0, GgufType.Q4_0)),
        compressed_tensors=CompressedTensors(scheme=CompressedTensorsScheme.W4A16),
    )
    config = config.model_copy(update={"spec": config.spec.model_copy(update={"output": output})})
    layout = config.layout
    uris = [layout.artifact(ArtifactFormat.INT8), layout.gguf(GgufType.Q8_0), layout.gguf(GgufType.Q4_0)]
    uris.append(layout.artifact(ArtifactFormat.COMPRESSED_TENSORS))
    exports = tuple(
        ExportedModel(
            name=name,
            title=title,
            address=Address(uri=uri, digest="d" * 64),
            bytes=(number + 1) * 10_000_000,
            figures=ModelMetrics(
                metrics={Metric.LOSS: LOSSES[name], Metric.PERPLEXITY: 4.0 + number}, examples=30, seconds=7.0
            ),
        )
        for number, ((title, name), uri) in enumerate(zip(TITLES.items(), uris, strict=True))
    )
    reloaded = tuple(
        Reloaded(uri=uri, split="validation", rows=9, trained=1.5, reloaded=1.5 + number, tolerance=0.1)
        for number, uri in enumerate(uris)
    )
    record = found.record.model_copy(
        update={"quantized": QuantizedExports(trained_bytes=90_900_000, exports=exports), "reloaded": reloaded}
    )
    return dataclasses.replace(found, record=record, config=config)


def test_a_note_states_size_and_metric_of_each_export_and_of_the_trained_model(inputs: ReportInputs) -> None:
    notes = export_notes(inputs.record)
    assert len(notes) == 4
    assert notes[1].startswith("GGUF Q8_0: 20.0 MB, the trained model 90.9 MB; Perplexity on the test split 5")
    without = inputs.record.model_copy(update={"quantized": None})
    assert (export_notes(without), export_results(without)) == ((), {})


def test_the_status_gets_size_speed_and_metrics(inputs: ReportInputs) -> None:
    found = export_results(inputs.record)
    assert list(found) == [CandidateName.TUNED, *TITLES.values()]
    assert found[CandidateName.INT8] == ExportResult(
        bytes=10_000_000,
        examples_per_second=4.29,
        metrics={Metric.LOSS: 1.51, Metric.PERPLEXITY: 4.0},
    )
    assert (found[CandidateName.TUNED].bytes, found[CandidateName.TUNED].metrics) == (90_900_000, {})


def test_the_report_has_a_row_for_each_export(inputs: ReportInputs) -> None:
    page = render_report(inputs)
    assert "<h2>Exports with quantized weights</h2>" in page
    for text in ("Trained model", *TITLES, "90.9 MB", "30.0 MB", "4.29"):
        assert text in page
    record = inputs.record.model_copy(update={"quantized": None})
    assert "Exports with quantized weights" not in render_report(dataclasses.replace(inputs, record=record))


def test_a_model_card_shows_how_to_load_the_export_and_its_check(inputs: ReportInputs) -> None:
    gguf, int8, packed, merged = (
        model_card(inputs.record, inputs.config, inputs.data, artifact)
        for artifact in (
            ArtifactFormat.GGUF,
            ArtifactFormat.INT8,
            ArtifactFormat.COMPRESSED_TENSORS,
            ArtifactFormat.MERGED,
        )
    )
    assert 'from_pretrained("./model", gguf_file="model-Q8_0.gguf")' in gguf
    assert "Checked after export, model-Q8_0.gguf: after reloading, the loss is 2.5000" in gguf
    assert "Checked after export, model-Q4_0.gguf: after reloading, the loss is 3.5000" in gguf
    assert "`model-Q8_0.gguf`, `model-Q4_0.gguf`" in gguf
    assert "Checked after export: after reloading, the loss is 1.5000" in int8
    assert "bitsandbytes is required too" in int8
    assert "Checked after export: after reloading, the loss is 4.5000" in packed
    assert "the scheme W4A16 of compressed-tensors, of which version 0.20 or newer" in packed
    assert "transformers 4.57 or newer" not in gguf + int8 + packed
    assert "transformers 4.57 or newer" in merged
    assert "Checked after export" not in merged
