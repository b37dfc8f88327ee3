"""The evaluate stage with a real store, prepared data and (tiny) models."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from evaluation_runs import (
    export_adapter,
    export_whole,
    prepared_config,
    questions,
    reference_of,
    reviews,
    runtime_in,
    trained_model,
)
from finetune_api.comparison import metric_name, metric_text
from finetune_api.constants import Stage
from finetune_api.exit_codes import PERMANENT_EXIT_CODES
from finetune_api.v1alpha1 import (
    ArtifactFormat,
    CandidateName,
    CompressedTensors,
    CompressedTensorsScheme,
    Gguf,
    GgufType,
    Metric,
    Output,
    SimpleBaseline,
)
from finetune_trainer.data.shards import TokenDataset
from finetune_trainer.errors import ExportUnusableError, ModelUnusableError
from finetune_trainer.evaluate.records import Evaluation
from finetune_trainer.evaluate.stage import evaluate
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.reference import write_reference
from finetune_trainer.tracking.mlflow import client_of
from rows import tagged
from tiny_models import CHATML, save_tiny, save_tiny_bert, save_tiny_llama

TRAINING_LOG = {
    "log": [{"step": 1, "loss": 0.7, "learning_rate": 1e-3}, {"step": 2, "loss": 0.5, "learning_rate": 5e-4}],
    "attempt": 1,
    "phase_seconds": {"steps": 2.0},
    "steps": 2,
    "tokens": 640,
}


@pytest.fixture
def run(store, storage_settings, bucket, tmp_path):
    """Evaluate a run; returns the result and evaluation.json."""

    def go(config):
        report = ProgressReporter(tmp_path, stage=Stage.EVALUATE)
        result = evaluate(config, store, runtime_in(tmp_path / "evaluate"), report)
        return result, Evaluation.model_validate(store.get_json(f"{config.run_uri}/evaluation.json"))

    return go


@pytest.fixture
def prepared(store, storage_settings, bucket, tmp_path):
    def go(base: Path, records, **spec):
        return prepared_config(store, storage_settings, tmp_path, bucket=bucket, base=base, records=records, **spec)

    return go


@pytest.fixture
def bert(tmp_path) -> Path:
    torch.manual_seed(0)
    return save_tiny_bert(tmp_path / "bert")


@pytest.fixture
def llama(tmp_path) -> Path:
    torch.manual_seed(0)
    return save_tiny_llama(tmp_path / "llama", CHATML)


def test_a_classifier_is_compared_with_its_base(store, run, prepared, bert, tmp_path):
    config = prepared(bert, reviews())
    export_whole(trained_model(config, store, tmp_path, epochs=6), config, store, tmp_path)
    store.put(f"{config.run_uri}/training.json", json.dumps(TRAINING_LOG).encode())
    result, record = run(config)

    assert result.tuned[Metric.ACCURACY] > 0.9
    assert result.baseline[Metric.ACCURACY] < 0.75
    assert record.tuned.examples == config.prepared.counts.test == 48
    assert sum(cell.count for cell in record.tuned.classification.confusion) == 48
    assert record.tuned.intervals[Metric.ACCURACY].low < result.tuned[Metric.ACCURACY]
    assert record.paired_test.p_value < 0.05
    assert record.majority_share == pytest.approx(0.5, abs=0.05)
    assert any("no classification head" in note for note in record.notes)
    assert record.base_model.digest == config.prepared.model_digest != record.model.digest
    assert {"torch", "transformers"} <= set(record.versions)

    majority, linear = record.baselines
    assert (majority.name, linear.name) == tuple(SimpleBaseline)
    assert majority.figures.metrics[Metric.ACCURACY] == pytest.approx(0.5, abs=0.05)
    assert linear.figures.metrics[Metric.ACCURACY] > 0.9  # a word determines the label
    assert linear.figures.examples == 48
    assert linear.figures.intervals[Metric.ACCURACY].low < linear.figures.metrics[Metric.ACCURACY]
    assert majority.paired_test.p_value < 0.05 < linear.paired_test.p_value
    assert result.baselines == {entry.name: entry.figures.metrics for entry in record.baselines}

    (reloaded,) = record.reloaded
    assert (reloaded.uri, reloaded.split) == (config.model_uri, "validation")
    assert reloaded.rows == min(32, config.prepared.counts.validation)
    assert reloaded.reloaded == pytest.approx(reloaded.trained, abs=1e-5)

    page = store.get(result.report_uri).decode()
    assert "Learning rate" in page
    assert page.count("The model is not significantly better than TF-IDF with logistic regression") == 2
    assert f"{config.model_uri}: {reloaded.sentence}" in page
    card = ModelCard(store.get(f"{config.model_uri}/README.md").decode(), ignore_metadata_errors=False)
    assert {entry.metric_type for entry in card.data.eval_results} == {"loss", "accuracy", "f1"}


@pytest.mark.parametrize(
    ("written", "headline"),
    [({}, Metric.ENTITY_F1), ({"B-PER": "PER", "I-PER": "PER", "B-LOC": "LOC"}, Metric.MACRO_F1)],
    ids=["labels with prefixes", "labels without prefixes"],
)
def test_a_token_classifier_is_compared_by_whole_entities_if_its_labels_have_prefixes(
    store, run, prepared, bert, tmp_path, written, headline
):
    records = [{**row, "tags": [written.get(tag, tag) for tag in row["tags"]]} for row in tagged(80)]
    config = prepared(bert, records)
    export_whole(trained_model(config, store, tmp_path, epochs=6), config, store, tmp_path)
    result, record = run(config)
    assert record.headline is headline
    f1 = [figures[Metric.ENTITY_F1] for figures in (result.baseline, result.tuned)]
    assert f1[0] < 0.5
    assert f1[1] > 0.9
    (majority,) = record.baselines
    assert set(majority.figures.metrics) == set(record.tuned.metrics)
    assert majority.figures.metrics[Metric.ENTITY_F1] == 0  # most words belong to no entity
    assert majority.figures.metrics[Metric.LOSS] > record.tuned.metrics[Metric.LOSS]
    assert majority.paired_test.better > majority.paired_test.worse
    interval = record.tuned.intervals[Metric.ENTITY_F1]
    assert interval.low <= f1[1] <= interval.high
    page, card = (store.get(uri).decode() for uri in (result.report_uri, f"{config.model_uri}/README.md"))
    assert f"{metric_name(headline)} rose from" in page
    before, after = (metric_text(Metric.ENTITY_F1, value) for value in f1)
    assert f"| Entity F1 | {before} | {after} |" in card
    names = [entry.metric_name for entry in ModelCard(card, ignore_metadata_errors=False).data.eval_results]
    assert names == ["Loss", "Accuracy", "Macro F1", "Entity F1"]


def test_evaluating_twice_gives_the_same_metrics(store, run, prepared, bert, tmp_path):
    config = prepared(bert, reviews())
    export_whole(trained_model(config, store, tmp_path, epochs=1), config, store, tmp_path)
    (first, one), (second, two) = run(config), run(config)
    assert (first.tuned, first.baseline, first.baselines) == (second.tuned, second.baseline, second.baselines)
    tests = [[entry.paired_test for entry in record.baselines] for record in (one, two)]
    assert tests[0] == tests[1] != []
    timeless = {"time": "", "baseline": None, "tuned": None, "baselines": ()}
    assert one.model_copy(update=timeless) == two.model_copy(update=timeless)


def test_a_language_model_is_evaluated_on_the_tokens_of_answers(store, run, prepared, llama, tmp_path):
    config = prepared(llama, questions(), evaluation={"prompts": ["is the fox good?"], "maxNewTokens": 4})
    model = trained_model(config, store, tmp_path, epochs=25)
    export_whole(model, config, store, tmp_path)
    result, record = run(config)

    loss, tokens = straightforward_loss(model, store, config, tmp_path)
    assert record.tuned.tokens == tokens
    assert result.tuned[Metric.LOSS] == pytest.approx(loss, rel=1e-5)
    assert result.tuned[Metric.PERPLEXITY] == pytest.approx(math.exp(loss), rel=1e-5)
    assert result.tuned[Metric.LOSS] < 1 < result.baseline[Metric.LOSS]
    interval = record.tuned.intervals[Metric.LOSS]
    assert interval.low <= loss <= interval.high
    (generation,) = record.generations
    assert generation.after in {"yes", "no"}
    assert generation.before not in {"yes", "no"}


def test_a_text_of_several_rows_is_one_example(store, run, prepared, llama, tmp_path):
    texts = [{"text": f"{number}: " + f"the fox is {word}. " * 20} for number, word in enumerate("abcdefghijkl")]
    config = prepared(llama, texts, evaluation={"prompts": ["the fox"], "maxNewTokens": 2})
    model = trained_model(config, store, tmp_path, epochs=1)
    export_whole(model, config, store, tmp_path)
    _, record = run(config)
    loss, tokens = straightforward_loss(model, store, config, tmp_path)
    assert config.prepared.counts.test > 3
    assert (record.tuned.examples, record.tuned.tokens) == (3, tokens)
    assert record.tuned.metrics[Metric.LOSS] == pytest.approx(loss, rel=1e-5)
    assert record.paired_test.better + record.paired_test.worse + record.paired_test.same == 3


def straightforward_loss(model, store, config, tmp_path) -> tuple[float, int]:
    """Row by row, with the model's own loss."""
    test = TokenDataset.open(store, config.prepared.dataset_uri, "test", tmp_path / "cache")
    total, tokens = 0.0, 0
    for index in range(len(test)):
        row = {name: torch.from_numpy(np.array(value))[None] for name, value in test[index].items()}
        count = int((row["labels"][:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(**row).loss) * count
        tokens += count
    return total / tokens, tokens


def test_an_adapter_without_a_merged_model_is_evaluated_on_its_base(store, run, prepared, bert, tmp_path):
    lora = {"method": {"lora": {"rank": 8}}, "output": {"formats": ["Adapter"]}}
    config = prepared(bert, reviews(), **lora)
    model = trained_model(config, store, tmp_path, epochs=10, adapter=True)
    export_adapter(model, config, store, tmp_path)
    result, record = run(config)
    assert result.tuned[Metric.ACCURACY] > 0.75
    assert record.model.uri.endswith("/adapter")
    card = ModelCard(store.get(f"{config.run_uri}/adapter/README.md").decode(), ignore_metadata_errors=False)
    assert card.data.library_name == "peft"
    assert not list(store.list(f"{config.model_uri}/"))
    again, _ = run(config)
    assert again == result


def test_every_exported_folder_is_reloaded(store, run, prepared, llama, tmp_path):
    both = {"method": {"lora": {"rank": 4}}, "output": {"formats": ["Adapter", "Merged"]}}
    config = prepared(llama, questions(), data={"test": {"fraction": 0.0}}, **both)
    model = trained_model(config, store, tmp_path, epochs=2, adapter=True)
    export_whole(model, config, store, tmp_path)
    export_adapter(model, config, store, tmp_path)
    _, record = run(config)
    assert [entry.uri for entry in record.reloaded] == [config.model_uri, f"{config.run_uri}/adapter"]
    for entry in record.reloaded:
        assert entry.reloaded == pytest.approx(entry.trained, abs=1e-4)
        card = store.get(f"{entry.uri}/README.md").decode()
        assert f"the loss is {entry.reloaded:.4f} on {entry.rows} rows" in card


def exports_of(record: Evaluation) -> dict[str, Any]:
    return {entry.title: entry for entry in record.quantized.exports}


def test_exports_with_quantized_weights_are_made_from_the_adapter_and_measured(store, run, prepared, llama, tmp_path):
    """One format more needs no training, and no merged model in storage."""
    lora = {"method": {"lora": {"rank": 4}}, "output": {"formats": ["GGUF"]}}
    config = prepared(llama, questions(), **lora)
    model = trained_model(config, store, tmp_path, epochs=2, adapter=True)
    export_adapter(model, config, store, tmp_path)
    result, record = run(config)
    (only,) = exports_of(record).values()
    assert (only.title, only.address.uri) == ("GGUF Q8_0", f"{config.run_uri}/gguf/model-Q8_0.gguf")
    assert only.bytes < record.quantized.trained_bytes
    assert record.model.uri == f"{config.run_uri}/adapter"
    assert only.figures.metrics[Metric.LOSS] == pytest.approx(record.tuned.metrics[Metric.LOSS], abs=0.05)
    assert [entry.uri for entry in record.reloaded] == [record.model.uri, only.address.uri]
    assert not list(store.list(f"{config.model_uri}/"))

    output = Output(
        uri=config.output_uri,
        formats=(ArtifactFormat.GGUF, ArtifactFormat.COMPRESSED_TENSORS, ArtifactFormat.INT8),
        gguf=Gguf(types=(GgufType.Q8_0, GgufType.Q4_0)),
    )
    more = config.model_copy(update={"spec": config.spec.model_copy(update={"output": output})})
    result, record = run(more)
    found = exports_of(record)
    assert list(found) == ["Int8", "GGUF Q8_0", "GGUF Q4_0", "CompressedTensors W8A16"]
    assert found["GGUF Q8_0"].address.digest == only.address.digest
    assert found["GGUF Q4_0"].bytes < found["GGUF Q8_0"].bytes
    assert list(result.exports) == [CandidateName.TUNED, *(entry.name for entry in found.values())]
    for entry in found.values():
        assert result.exports[entry.name].metrics == entry.figures.metrics
        assert result.exports[entry.name].examples_per_second > 0
        assert any(note.startswith(f"{entry.title}: ") for note in record.notes)
    page = store.get(result.report_uri).decode()
    assert "Exports with quantized weights" in page
    assert all(f'<td class="text">{title}</td>' in page for title in found)
    card = ModelCard(store.get(f"{config.run_uri}/gguf/README.md").decode(), ignore_metadata_errors=False)
    assert "gguf" in card.data.tags
    assert 'gguf_file="model-Q8_0.gguf"' in card.text
    assert card.text.count("Checked after export, model-Q") == 2
    int8 = ModelCard(store.get(f"{config.run_uri}/int8/README.md").decode(), ignore_metadata_errors=False)
    assert "Checked after export: after reloading" in int8.text

    content = bytearray(store.get(found["GGUF Q4_0"].address.uri))
    content[-200] ^= 0x77
    store.put(found["GGUF Q4_0"].address.uri, bytes(content))
    with pytest.raises(ExportUnusableError, match=r"model-Q4_0\.gguf is not the trained model: a weight of") as error:
        run(more)
    assert error.value.exit_code in PERMANENT_EXIT_CODES


def test_a_classifier_is_exported_with_weights_of_8_bits_from_the_complete_model(store, run, prepared, tmp_path):
    base = save_tiny("bert", tmp_path / "wide", width=128)
    config = prepared(base, reviews(), output={"formats": ["Merged", "Int8", "CompressedTensors"]})
    export_whole(trained_model(config, store, tmp_path, epochs=6), config, store, tmp_path)
    _, record = run(config)
    int8, packed = exports_of(record).values()
    assert (record.model.uri, int8.address.uri) == (config.model_uri, f"{config.run_uri}/int8")
    assert (packed.title, packed.address.uri) == ("CompressedTensors W8A16", f"{config.run_uri}/compressed-tensors")
    assert packed.figures.metrics[Metric.LOSS] == pytest.approx(record.tuned.metrics[Metric.LOSS], abs=0.01)
    assert packed.bytes < record.quantized.trained_bytes
    assert int8.figures.metrics[Metric.ACCURACY] == pytest.approx(record.tuned.metrics[Metric.ACCURACY], abs=0.05)
    assert int8.figures.classification is None
    assert int8.bytes < record.quantized.trained_bytes

    # Another scheme replaces the folder.
    output = config.spec.output.model_copy(
        update={
            "formats": (ArtifactFormat.COMPRESSED_TENSORS, ArtifactFormat.MERGED),
            "compressed_tensors": CompressedTensors(scheme=CompressedTensorsScheme.W4A16),
        }
    )
    other = config.model_copy(update={"spec": config.spec.model_copy(update={"output": output})})
    result, record = run(other)
    (smaller,) = exports_of(record).values()
    assert (smaller.title, smaller.address.uri) == ("CompressedTensors W4A16", packed.address.uri)
    assert smaller.address.digest != packed.address.digest
    assert smaller.bytes < packed.bytes
    assert result.exports[CandidateName.COMPRESSED_TENSORS].bytes == smaller.bytes
    card = ModelCard(store.get(f"{smaller.address.uri}/README.md").decode(), ignore_metadata_errors=False)
    assert "compressed-tensors" in card.data.tags
    assert "the scheme W4A16 of compressed-tensors" in card.text


def test_an_export_with_other_losses_than_the_trained_model_is_rejected_without_a_test_split(
    store, run, prepared, bert, tmp_path
):
    config = prepared(bert, reviews(), data={"test": {"fraction": 0.0}}, evaluation={"baseModel": False})
    trained = trained_model(config, store, tmp_path, epochs=2)
    export_whole(trained_model(config, store, tmp_path, epochs=0), config, store, tmp_path)
    reference = reference_of(trained, config, store, tmp_path)
    write_reference(config, store, reference)
    with pytest.raises(ExportUnusableError, match="is not the trained model: after reloading") as error:
        run(config)
    assert config.model_uri in str(error.value)
    assert f"it was {sum(reference.losses) / len(reference.losses):.4f} before the export" in str(error.value)
    assert error.value.exit_code in PERMANENT_EXIT_CODES
    assert not store.exists(f"{config.run_uri}/report.html")


def test_a_base_model_that_has_changed_at_its_source_is_evaluated_as_it_was_prepared(
    store, run, prepared, bert, tmp_path, bucket
):
    config = prepared(bert, reviews())
    export_whole(trained_model(config, store, tmp_path, epochs=1), config, store, tmp_path)
    before, _ = run(config)
    store.upload_folder(save_tiny_bert(tmp_path / "other", seed=1), f"s3://{bucket}/base")
    after, record = run(config)
    assert after.baseline == before.baseline != {}
    assert record.base_model.digest == config.prepared.model_digest


def test_the_report_mentions_a_missing_test_split_and_the_warnings_of_training(store, run, prepared, bert, tmp_path):
    config = prepared(bert, reviews(), data={"test": {"fraction": 0.0}})
    export_whole(trained_model(config, store, tmp_path, epochs=1), config, store, tmp_path)
    store.put(f"{config.run_uri}/training.json", json.dumps({"warnings": ["the training diverges"]}).encode())
    result, record = run(config)
    assert (result.baseline, result.tuned) == ({}, {})
    assert (record.tuned, record.comparison) == (None, ())
    assert any("no test split" in note for note in record.notes)
    assert "There is no test split" in (page := store.get(result.report_uri).decode())
    assert "the training diverges" in page


def test_without_a_baseline_only_the_tuned_model_is_evaluated(store, run, prepared, bert, tmp_path):
    config = prepared(bert, reviews(), evaluation={"baseModel": False, "simpleBaselines": []})
    export_whole(trained_model(config, store, tmp_path, epochs=1), config, store, tmp_path)
    result, record = run(config)
    assert (result.baseline, result.baselines, record.baselines) == ({}, {}, ())
    assert set(result.tuned) == {Metric.LOSS, Metric.ACCURACY, Metric.MACRO_F1}
    assert record.comparison[0].baseline is None


def test_a_record_of_an_earlier_version_without_baselines_is_read(store, run, prepared, bert, tmp_path):
    config = prepared(bert, reviews())
    export_whole(trained_model(config, store, tmp_path, epochs=0), config, store, tmp_path)
    _, record = run(config)
    written = store.get_json(f"{config.run_uri}/evaluation.json")
    del written["baselines"]
    assert Evaluation.model_validate(written) == record.model_copy(update={"baselines": ()})


def test_a_model_with_nan_outputs_is_rejected(store, run, prepared, bert, tmp_path):
    config = prepared(bert, reviews())
    model = trained_model(config, store, tmp_path, epochs=0)
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    export_whole(model, config, store, tmp_path)
    with pytest.raises(ModelUnusableError, match="not a number"):
        run(config)


def test_the_result_and_the_missing_log_are_reported_to_mlflow(store, run, prepared, bert, tmp_path, mlflow_url):
    """The training could not reach the server. A second evaluation reports to the same MLflow run."""
    config = prepared(bert, reviews(), tracking={"mlflow": {"trackingUri": mlflow_url, "experiment": "evaluated"}})
    export_whole(trained_model(config, store, tmp_path, epochs=1), config, store, tmp_path)
    store.put(f"{config.run_uri}/training.json", json.dumps(TRAINING_LOG).encode())
    client = client_of(mlflow_url)
    for _ in range(2):
        result, _ = run(config)
        (found,) = client.search_runs([client.get_experiment_by_name("evaluated").experiment_id])
        assert found.info.status == "FINISHED"
        assert found.data.metrics["test/accuracy"] == result.tuned[Metric.ACCURACY]
        assert found.data.metrics["base/accuracy"] == result.baseline[Metric.ACCURACY]
        losses = client.get_metric_history(found.info.run_id, "train/loss")
        assert [(one.step, one.value) for one in losses] == [(1, 0.7), (2, 0.5)]
        assert len(client.get_metric_history(found.info.run_id, "test/accuracy")) == 1
        assert found.data.tags["finetune.model_uri"] == config.model_uri
        assert found.data.tags["finetune.report_uri"] == result.report_uri


def test_losses_with_new_tokens_are_per_token_of_the_base_model(store, run, prepared, llama, tmp_path):
    """The base model has the same loss as in a run without new tokens. The tuned model is the base model with rows that
    it never learned to predict, so per token of the text, it must be worse."""
    records = [{"text": f"{subject['text']} of myocarditis and {subject['label']}ness"} for subject in reviews()]
    data = {"format": "Text", "maxLength": 48}
    plain = prepared(llama, records, data=data)
    export_whole(trained_model(plain, store, tmp_path / "plain", epochs=0), plain, store, tmp_path / "plain")
    result, before = run(plain)
    assert result.baseline == pytest.approx(result.tuned)

    extended = prepared(llama, records, data=data, model={"vocabulary": {"add": ["myocarditis"], "learn": 4}})
    export_whole(trained_model(extended, store, tmp_path / "new", epochs=0), extended, store, tmp_path / "new")
    result, record = run(extended)
    assert record.base_model == before.base_model
    assert record.baseline.tokens == record.tuned.tokens == before.baseline.tokens
    assert result.baseline == pytest.approx(before.baseline.metrics, rel=1e-5)
    assert record.paired_test is not None
    note = next(note for note in record.notes if "Perplexity per word" in note)
    assert "tokens per word of the training split" in note
    # The test split is a quarter of the records, whose words differ in number by at most one.
    nats = result.baseline[Metric.LOSS] * record.baseline.tokens
    shown = float(note.split("test split: ")[-1].split(" for")[0])
    assert 8 <= nats / math.log(shown) / record.counts.test <= 10


def test_rows_that_are_too_long_in_pieces_keep_all_of_their_targets(store, run, prepared, llama, tmp_path):
    records = [{"text": f"{number} " + "myocarditis bradycardia " * 20} for number in range(40)]
    plain = {"data": {"format": "Text", "maxLength": 256}}
    extended = prepared(llama, records, **plain, model={"vocabulary": {"add": ["myocarditis", "bradycardia"]}})
    export_whole(trained_model(extended, store, tmp_path / "new", epochs=0), extended, store, tmp_path / "new")
    result, record = run(extended)
    assert record.baseline.tokens == record.tuned.tokens > 256 * record.counts.test
    assert all(math.isfinite(value) for value in result.baseline.values())


def test_a_classifier_with_new_tokens_is_compared_with_the_base_model(store, run, prepared, bert, tmp_path):
    plain = prepared(bert, reviews())
    export_whole(trained_model(plain, store, tmp_path / "plain", epochs=0), plain, store, tmp_path / "plain")
    _, before = run(plain)
    extended = prepared(bert, reviews(), model={"vocabulary": {"add": ["lovely", "awful", "bright"]}})
    export_whole(trained_model(extended, store, tmp_path / "new", epochs=6), extended, store, tmp_path / "new")
    result, record = run(extended)
    assert result.baseline == pytest.approx(before.baseline.metrics)
    assert result.tuned[Metric.ACCURACY] > 0.9
    assert not any("Perplexity" in note for note in record.notes)
