"""`spec.evaluation.regressionSets`: base and trained model are compared on records that are not trained on."""

from typing import Any

import pytest
import torch

from evaluation_runs import export_whole, prepared_config, questions, reviews, runtime_in, trained_model
from finetune_api.constants import Stage
from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1 import Metric, RegressionSet
from finetune_trainer.data.info import DATASET_FILE
from finetune_trainer.errors import BadConfigError, BadDataError
from finetune_trainer.evaluate.records import Evaluation
from finetune_trainer.evaluate.stage import evaluate
from finetune_trainer.model.tokenizer import load_tokenizer
from finetune_trainer.progress import ProgressReporter
from rows import jsonl, tagged
from tiny_models import CHATML, save_tiny_bert, save_tiny_llama

OTHER = ("the weather was cold and the road was long", "nobody came to the old house", "a train left the station")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    torch.manual_seed(0)
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    torch.manual_seed(0)
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), CHATML)


@pytest.fixture
def put(store, bucket):
    def go(name: str, rows: list[dict[str, Any]]) -> str:
        uri = f"s3://{bucket}/data/{name}.jsonl"
        store.put(uri, jsonl(rows))
        return uri

    return go


@pytest.fixture
def prepared(store, storage_settings, bucket, tmp_path):
    def go(base, records, **spec):
        return prepared_config(store, storage_settings, tmp_path, bucket=bucket, base=base, records=records, **spec)

    return go


@pytest.fixture
def run(store, tmp_path):
    def go(config):
        report = ProgressReporter(tmp_path, stage=Stage.EVALUATE)
        result = evaluate(config, store, runtime_in(tmp_path / "evaluate"), report)
        return result, Evaluation.model_validate(store.get_json(f"{config.run_uri}/evaluation.json"))

    return go


def with_sets(config: PreparedConfig, *sets: dict[str, Any]) -> PreparedConfig:
    """The configuration after an edit of the spec, without another prepare stage."""
    wanted = tuple(RegressionSet.model_validate(each) for each in sets)
    evaluation = config.spec.evaluation.model_copy(update={"regression_sets": wanted})
    return config.model_copy(update={"spec": config.spec.model_copy(update={"evaluation": evaluation})})


def test_a_chat_model_is_compared_with_its_base_on_general_text(store, run, prepared, put, llama, tmp_path):
    text = put("general", [{"text": text} for text in OTHER * 4])
    chats = put("other-chats", questions()[:7])
    general = {"name": "general", "sources": [{"uri": text}], "format": "Text"}
    config = prepared(
        llama,
        questions()[7:],
        evaluation={"regressionSets": [general, {"name": "chats", "sources": [{"uri": chats}]}]},
    )
    model = trained_model(config, store, tmp_path, epochs=12)
    export_whole(model, config, store, tmp_path)
    result, record = run(config)
    assert [found.name for found in record.regression_sets] == ["general", "chats"]
    forgotten, learned = record.regression_sets
    assert result.tuned_sets == {found.name: found.tuned.metrics for found in record.regression_sets}
    assert result.baseline_sets == {found.name: found.baseline.metrics for found in record.regression_sets}
    assert result.tuned_sets["general"][Metric.LOSS] > result.baseline_sets["general"][Metric.LOSS]
    assert result.tuned_sets["chats"][Metric.LOSS] < result.baseline_sets["chats"][Metric.LOSS]
    assert (forgotten.tuned.examples, learned.tuned.examples) == (12, 7)
    # More than those with a loss: not the first token of a text, and only the answers of chats.
    assert config.prepared.regression_tokens > forgotten.tuned.tokens + learned.tuned.tokens > 0
    test = forgotten.paired_test
    assert test.better + test.worse + test.same == 12
    assert learned.paired_test.better == 7
    assert forgotten.tuned.intervals[Metric.LOSS].low <= forgotten.tuned.metrics[Metric.LOSS]
    assert result.tuned_sets["general"][Metric.LOSS] == pytest.approx(loss_of(model, tmp_path), rel=1e-4)
    page = store.get(result.report_uri).decode()
    assert "Regression sets" in page
    assert "general: Perplexity rose from" in page
    card = store.get(f"{config.model_uri}/README.md").decode()
    assert "| general | Loss |" in card


def loss_of(model: Any, folder) -> float:
    """The mean loss of the tokens of OTHER, with the model's own loss."""
    tokenizer = load_tokenizer(folder / "base")
    total, count = 0.0, 0
    for text in OTHER:
        ids = tokenizer(f"{text}{tokenizer.eos_token}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


def test_a_set_that_is_added_later_needs_no_other_stage_and_is_stored_once(store, run, prepared, put, bert, tmp_path):
    records = reviews()
    config = prepared(bert, records[16:])
    export_whole(trained_model(config, store, tmp_path, epochs=1), config, store, tmp_path)
    _, record = run(config)
    assert record.regression_sets == ()
    held_out = put("held-out", [*records[:16], {"text": "x", "label": "good"}])
    later = with_sets(config, {"name": "held-out", "sources": [{"uri": held_out}]})
    (_, first), (_, second) = run(later), run(later)
    (found,), (again,) = first.regression_sets, second.regression_sets
    assert found.tuned.examples == 17
    assert set(found.tuned.metrics) == set(first.tuned.metrics)
    assert found.tuned.classification is None
    assert (found.tuned.metrics, found.paired_test) == (again.tuned.metrics, again.paired_test)
    assert len(data_sets(store, config)) == 2
    assert (first.tuned.metrics, first.dataset) == (record.tuned.metrics, record.dataset)


def test_words_with_labels_are_measured_by_the_labels_of_the_training_data(store, run, prepared, put, bert, tmp_path):
    rows = tagged(80)
    words = put("words", rows[60:])
    config = prepared(bert, rows[:60], evaluation={"regressionSets": [{"name": "words", "sources": [{"uri": words}]}]})
    export_whole(trained_model(config, store, tmp_path, epochs=6), config, store, tmp_path)
    result, _ = run(config)
    assert result.tuned_sets["words"][Metric.ENTITY_F1] > 0.9
    assert result.baseline_sets["words"][Metric.ENTITY_F1] < 0.5


def test_without_test_split_and_baseline_the_sets_are_still_measured(store, run, prepared, put, bert, tmp_path):
    records = reviews()
    config = prepared(
        bert,
        records[16:],
        data={"test": {"fraction": 0.0}},
        evaluation={
            "baseModel": False,
            "regressionSets": [{"name": "held-out", "sources": [{"uri": put("held-out", records[:16])}]}],
        },
    )
    export_whole(trained_model(config, store, tmp_path, epochs=1), config, store, tmp_path)
    result, record = run(config)
    assert record.tuned is None
    (found,) = record.regression_sets
    assert (found.baseline, found.paired_test, found.tuned.examples) == (None, None, 16)
    assert (result.baseline_sets, [*result.tuned_sets]) == ({}, ["held-out"])
    assert "held-out: Accuracy is " in store.get(result.report_uri).decode()


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"text": "a film", "label": "goood"}], BadDataError, "label 'goood' is not among the 2 labels"),
        ([{"text": "a film"}], BadDataError, "no column 'label'"),
        (None, BadConfigError, "must not be a file of spec.data.train, because the model has learned its records"),
    ],
)
def test_unusable_files_are_found_by_the_prepare_stage(prepared, put, bucket, bert, rows, error, message):
    uri = f"s3://{bucket}/data/train.jsonl" if rows is None else put("other", rows)
    with pytest.raises(error, match=message):
        prepared(bert, reviews(), evaluation={"regressionSets": [{"name": "other", "sources": [{"uri": uri}]}]})


def test_records_that_cannot_be_used_are_skipped_and_counted(store, run, prepared, put, bert, tmp_path):
    uri = put("some", [*reviews()[:8], {"text": "a film", "label": "unknown"}, {"text": "", "label": "good"}])
    config = prepared(
        bert,
        reviews()[8:],
        data={"onBadRecord": "Skip"},
        evaluation={"regressionSets": [{"name": "some", "sources": [{"uri": uri}]}]},
    )
    export_whole(trained_model(config, store, tmp_path, epochs=1), config, store, tmp_path)
    result, record = run(config)
    (found,) = record.regression_sets
    assert (found.tuned.examples, found.dropped) == (8, 2)
    assert "2 records cannot be used." in store.get(result.report_uri).decode()


def test_cleaning_changes_the_texts_of_a_set_and_leaves_none_out(store, prepared, put, llama):
    texts = {"clean": "caf\u00e9 of my friend", "dirty": "caf\u00c3\u00a9   of my friend "}
    sets = [
        {"name": name, "sources": [{"uri": put(name, [{"text": text}, {"text": text}])}], "format": "Text"}
        for name, text in texts.items()
    ]
    config = prepared(
        llama,
        questions(),
        data={"cleaning": {"unicode": True, "whitespace": True, "exactDuplicates": True}},
        evaluation={"regressionSets": sets},
    )
    clean, dirty = (content for content in data_sets(store, config) if not content["counts"]["train"])
    assert clean["digest"] != dirty["digest"]
    assert clean["shards"] == dirty["shards"]
    assert clean["counts"]["test"] == 2


def data_sets(store, config) -> list[dict[str, Any]]:
    """dataset.json of every dataset of the output."""
    found = store.list(f"{config.output_uri}/datasets/")
    return [store.get_json(info.uri) for info in found if info.uri.endswith(DATASET_FILE)]
