"""The evaluate stage promotes models with a real store, prepared data and (tiny) models."""

import html
import json
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification

from evaluation_runs import export_whole, prepared_config, questions, reviews, runtime_in, trained_model
from finetune_api.constants import Stage
from finetune_api.run_layout import PromotionLayout, RunLayout
from finetune_api.v1alpha1 import Metric, PromotionOutcome
from finetune_trainer.evaluate.promote import ModelPromotion
from finetune_trainer.evaluate.records import Evaluation
from finetune_trainer.evaluate.stage import evaluate
from finetune_trainer.model.export import folder_digest
from finetune_trainer.model.files import model_files
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.promotion.by_hand import Promotions
from finetune_trainer.promotion.records import ModelFile, PromotedModel, PromotionEntry, PromotionRecord
from finetune_trainer.promotion.storage import PromotionStorage
from finetune_trainer.store import StoredVersion, join
from finetune_trainer.store.digests import sha256_of
from finetune_trainer.tracking.mlflow import client_of
from promoted_models import TIME, job_ref, promoted_files
from tiny_models import CHATML, save_tiny_bert, save_tiny_llama

PROMOTED, REFUSED, CONFLICT = PromotionOutcome.PROMOTED, PromotionOutcome.REFUSED, PromotionOutcome.CONFLICT


@pytest.fixture
def run(store, tmp_path):
    """Evaluate a run; returns the result and evaluation.json."""

    def go(config):
        report = ProgressReporter(tmp_path, stage=Stage.EVALUATE)
        result = evaluate(config, store, runtime_in(tmp_path / "evaluate"), report)
        return result, Evaluation.model_validate(store.get_json(f"{config.run_uri}/evaluation.json"))

    return go


@pytest.fixture
def prepared(store, storage_settings, bucket, tmp_path):
    def go(base: Path, records, *, promote=None, **spec):
        spec["evaluation"] = {"promote": promote or {}, **spec.get("evaluation", {})}
        return prepared_config(store, storage_settings, tmp_path, bucket=bucket, base=base, records=records, **spec)

    return go


@pytest.fixture
def bert(tmp_path) -> Path:
    torch.manual_seed(0)
    return save_tiny_bert(tmp_path / "bert")


@pytest.fixture
def trained(store, tmp_path):
    """Train and export a run; returns its configuration."""

    def go(config, number, epochs, promote=None):
        evaluation = config.spec.evaluation
        if promote is not None:
            rules = type(evaluation.promote).model_validate(promote)
            evaluation = evaluation.model_copy(update={"promote": rules})
        spec = config.spec.model_copy(update={"evaluation": evaluation})
        own = config.model_copy(update={"run": number, "spec": spec})
        if not store.exists(f"{own.model_uri}/config.json"):
            folder = tmp_path / f"run{number}"
            export_whole(trained_model(own, store, folder, epochs=epochs), own, store, folder)
        return own

    return go


def layout_of(config) -> PromotionLayout:
    return PromotionLayout.of(config.output_uri)


def check_promoted(store, config, tmp_path) -> None:
    """`promoted/` is the model of this run: it loads, and its digest is that of the evaluation."""
    layout = layout_of(config)
    record, marker = store.get_json(layout.record), store.get_json(layout.marker)
    assert record["model"]["uri"] == marker["model"]["uri"] == config.model_uri
    folder = tmp_path / f"promoted-{record['number']}"
    store.download_files(layout.folder, [file["name"] for file in marker["files"]], folder)
    evaluation = store.get_json(config.layout.evaluation)
    assert folder_digest(folder) == marker["model"]["digest"] == evaluation["model"]["digest"]
    _, found = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    source = f"{config.model_uri}/"
    exported = {info.uri.removeprefix(source): store.get(info.uri) for info in store.list(source)}
    files = promoted_files(store, config.output_uri)
    # An evaluation that is repeated with another spec writes another model card.
    assert files.pop("README.md").startswith(exported.pop("README.md")[:3])
    assert files == exported


def test_a_better_model_replaces_the_promoted_one_and_a_worse_one_does_not(
    store, run, prepared, bert, trained, tmp_path
):
    config = prepared(bert, reviews())
    first, second, third = (trained(config, number, epochs) for number, epochs in ((1, 1), (2, 6), (3, 1)))

    result, record = run(first)
    assert (result.promotion.outcome, result.promotion.uri, result.promotion.previous) == (
        PROMOTED,
        first.model_uri,
        "",
    )
    assert (record.promoted, result.promoted) == (None, {})
    assert result.promotion.message == "no model was promoted before"
    check_promoted(store, first, tmp_path)
    kept = store.get_json(layout_of(config).record)
    assert (kept["job"]["name"], kept["run"], kept["person"]) == ("reviews", 1, "")

    result, record = run(second)
    assert (result.promotion.outcome, result.promotion.uri, result.promotion.previous) == (
        PROMOTED,
        second.model_uri,
        first.model_uri,
    )
    # The promoted model has the metrics that its own evaluation found on the same rows.
    assert result.promoted == pytest.approx(store_metrics(store, first))
    assert record.promotion.paired_test.p_value < 0.05
    check_promoted(store, second, tmp_path)
    kept = store.get_json(layout_of(config).record)
    assert [check["holds"] for check in kept["checks"]] == [True, True]
    assert "Accuracy gain over the promoted model" in kept["checks"][0]["text"]
    page = store.get(result.report_uri).decode()
    assert "The model is promoted" in page
    assert "<th>Promoted before</th>" in page

    result, record = run(third)
    assert (result.promotion.outcome, result.promotion.uri, result.promotion.previous) == (
        REFUSED,
        second.model_uri,
        "",
    )
    assert result.promotion.message.startswith("does not hold: Accuracy gain over the promoted model, -0.")
    assert result.promoted == pytest.approx(store_metrics(store, second))
    page = store.get(result.report_uri).decode()
    assert "The model was not promoted" in page
    for check in record.promotion.checks:
        assert check.text in html.unescape(page)
    check_promoted(store, second, tmp_path)


def store_metrics(store, config) -> dict[str, float]:
    return store.get_json(config.layout.evaluation)["tuned"]["metrics"]


def test_an_evaluation_that_is_repeated_keeps_its_promoted_model(store, run, prepared, bert, trained, tmp_path):
    config = trained(prepared(bert, reviews()), 1, 1)
    before = run(config)[0].promotion
    record = store.get_json(layout_of(config).record)
    strict = trained(config, 1, 1, promote={"thresholds": [{"metric": "Accuracy", "min": 0.999}]})
    for again in (config, strict):
        result, _ = run(again)
        assert (result.promotion.outcome, result.promotion.uri) == (PROMOTED, config.model_uri)
        assert result.promotion.message.startswith(f"this run's model has been promoted since {before.time}")
        assert result.promoted == {}, "it is not compared with itself"
        assert store.get_json(layout_of(config).record) == record
    assert ", and stays promoted. does not hold: Accuracy 0." in result.promotion.message
    check_promoted(store, config, tmp_path)


def test_a_changed_threshold_decides_again(store, run, prepared, bert, trained, tmp_path):
    strict = {"thresholds": [{"metric": "Accuracy", "min": 0.999}, {"metric": "Loss", "max": 9}]}
    config = trained(prepared(bert, reviews(), promote=strict), 1, 1)
    result, _ = run(config)
    assert (result.promotion.outcome, result.promotion.uri) == (REFUSED, "")
    assert not list(store.list(layout_of(config).folder))
    assert not store.exists(layout_of(config).record)
    result, _ = run(trained(config, 1, 1, promote={"thresholds": [{"metric": "Accuracy", "min": 0.1}]}))
    assert result.promotion.outcome is PROMOTED
    check_promoted(store, config, tmp_path)


def test_an_attempt_that_is_killed_before_the_copy_is_completed_by_the_next_one(
    store, run, prepared, bert, trained, tmp_path, monkeypatch
):
    config = prepared(bert, reviews())
    first, second = trained(config, 1, 1), trained(config, 2, 6)
    run(first)

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PromotionStorage, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            run(second)
    assert store.get_json(layout_of(config).record)["run"] == 2
    assert store.get_json(layout_of(config).marker)["model"]["uri"] == first.model_uri
    result, _ = run(second)
    assert (result.promotion.outcome, result.promotion.previous) == (PROMOTED, first.model_uri)
    check_promoted(store, second, tmp_path)
    assert store.get_json(layout_of(config).record)["number"] == 2


def test_a_model_that_is_promoted_meanwhile_is_a_conflict(store, run, prepared, bert, trained, tmp_path, monkeypatch):
    config = prepared(bert, reviews())
    first, second, third = (trained(config, number, epochs) for number, epochs in ((1, 0), (2, 6), (3, 6)))
    run(first)
    run(trained(second, 2, 6, promote={"thresholds": [{"metric": "Accuracy", "min": 1.1}]}))
    measured = ModelPromotion.measured

    def overtaken(self, evaluator):
        Promotions(store, layout_of(config), person="ada").promote(second.run_uri, force=True)
        return measured(self, evaluator)

    monkeypatch.setattr(ModelPromotion, "measured", overtaken)
    result, record = run(third)
    assert (result.promotion.outcome, result.promotion.uri) == (CONFLICT, second.model_uri)
    assert f"{second.model_uri} was promoted while this one was being evaluated" in result.promotion.message
    assert all(check.holds for check in record.promotion.checks)
    assert "another one was promoted at the same time" in store.get(result.report_uri).decode()
    check_promoted(store, second, tmp_path)


def test_a_run_that_was_rolled_back_is_promoted_again_only_by_hand(store, run, prepared, bert, trained, tmp_path):
    config = prepared(bert, reviews())
    first, second = trained(config, 1, 1), trained(config, 2, 6)
    run(first)
    before = promoted_files(store, config.output_uri)
    run(second)
    by_hand = Promotions(store, layout_of(config), person="ada")
    by_hand.roll_back(reason="slow")
    assert promoted_files(store, config.output_uri) == before
    check_promoted(store, first, tmp_path)
    result, _ = run(second)
    assert result.promotion.outcome is REFUSED
    assert "rolled back by a person" in result.promotion.message
    by_hand.promote(second.run_uri, force=True)
    check_promoted(store, second, tmp_path)
    assert run(second)[0].promotion.outcome is PROMOTED


def test_language_models_are_compared_on_the_same_texts(store, run, prepared, trained, tmp_path):
    torch.manual_seed(0)
    llama = save_tiny_llama(tmp_path / "llama", CHATML)
    config = prepared(llama, questions(), evaluation={"prompts": ["is the fox good?"], "maxNewTokens": 4})
    first, second = trained(config, 1, 1), trained(config, 2, 15)
    run(first)
    result, record = run(second)
    assert result.promotion.outcome is PROMOTED
    assert result.promoted == pytest.approx(store_metrics(store, first))
    assert record.promotion.metric is Metric.PERPLEXITY
    assert record.promotion.paired_test.name == "Sign test"
    assert "Perplexity gain over the promoted model" in record.promotion.message
    assert len(record.generations) == 1
    result, _ = run(trained(config, 3, 1))
    assert result.promotion.outcome is REFUSED


# ---- models that cannot be compared ---------------------------------------------------------------------------------


def edited_json(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def with_labels(*labels):
    def change(folder: Path) -> None:
        names = {str(index): label for index, label in enumerate(labels)}
        edited_json(
            folder / "config.json", id2label=names, label2id={label: index for index, label in enumerate(labels)}
        )
        weights = load_file(folder / "model.safetensors")
        rows = {name: value for name, value in weights.items() if name.startswith("classifier")}
        resized = {name: value[[0] * len(labels)].copy() for name, value in rows.items()}
        save_file(weights | resized, folder / "model.safetensors", {"format": "pt"})

    return change


def another_tokenizer(folder: Path) -> None:
    edited_json(folder / "tokenizer_config.json", model_max_length=7)


def another_vocabulary(folder: Path) -> None:
    edited_json(folder / "config.json", vocab_size=9)


def fewer_positions(folder: Path) -> None:
    edited_json(folder / "config.json", max_position_embeddings=4)


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if name != "classifier.bias"}, folder / "model.safetensors"
    )


def not_a_number(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x")


def nothing(folder: Path) -> None:
    return None


def promoted_folder(store, config, folder: Path, **model) -> RunLayout:
    """Promote a folder as the model of another run."""
    layout = RunLayout.of(config.output_uri, 9, "other")
    uri = f"{layout.uri}/model"
    (folder / "README.md").unlink(missing_ok=True)
    store.upload_folder(folder, uri)
    names = model_files([path.name for path in folder.iterdir()], lambda: b"")
    files = tuple(
        ModelFile(name=name, size=(folder / name).stat().st_size, sha256=sha256_of(folder / name)) for name in names
    )
    entry = PromotionEntry(
        model=PromotedModel(**{"uri": uri, "digest": folder_digest(folder), **model}),
        folder=layout.uri,
        job=job_ref(),
        run=9,
        time=TIME,
    )
    store.put(
        layout_of(config).record, PromotionRecord.after_promotion(None, entry, files, "t").model_dump_json().encode()
    )
    return layout


@pytest.mark.parametrize(
    ("change", "model", "reason"),
    [
        (with_labels("bad", "good", "fair"), {}, "it has other labels: 3 instead of 2, different are fair"),
        (with_labels("good", "bad"), {}, "it has the labels in another order"),
        (another_tokenizer, {}, "it has another tokenizer"),
        (another_vocabulary, {}, "its vocabulary has 9 tokens, and that of this model"),
        (fewer_positions, {}, "it reads at most 4 tokens, and the test split has a row of"),
        (nothing, {"task": "CausalLM"}, "it was trained for CausalLM, and this model for SequenceClassification"),
        (without_a_weight, {}, "lacks weights of its own architecture: 1, first classifier.bias"),
        (not_a_number, {}, "has a loss on the test split that is not a number"),
        (damaged_config, {}, "config.json"),
        (damaged_weights, {}, "model.safetensors is not a complete safetensors file"),
        (nothing, {"digest": "0" * 64}, "its files were changed after its promotion: its digest must be 000000000000"),
    ],
)
def test_a_promoted_model_that_cannot_be_compared_refuses_the_promotion_with_the_reason(
    store, run, prepared, trained, tmp_path, change, model, reason
):
    torch.manual_seed(0)
    config = trained(prepared(save_tiny_bert(tmp_path / "bert"), reviews()), 1, 6)
    folder = tmp_path / "other"
    store.download_folder(config.model_uri, folder)
    change(folder)
    layout = promoted_folder(store, config, folder, **model)
    before = store.get_version(layout_of(config).record, most_bytes=10**6)
    result, record = run(config)
    assert result.promotion.outcome is REFUSED
    assert reason in result.promotion.message
    assert "`finetune promote --force` promotes this model" in result.promotion.message
    assert (result.promoted, record.promoted) == ({}, None)
    assert result.promotion.uri == f"{layout.uri}/model"
    assert isinstance(before, StoredVersion)
    assert store.get_version(layout_of(config).record, most_bytes=10**6) == before
    assert not list(store.list(layout_of(config).folder + "/"))
    # The way to go on that the message names.
    Promotions(store, layout_of(config), person="ada").promote(config.run_uri, force=True)
    check_promoted(store, config, tmp_path)


def test_a_promoted_model_that_was_deleted_refuses_the_promotion(store, run, prepared, bert, trained, tmp_path):
    config = trained(prepared(bert, reviews()), 1, 6)
    folder = tmp_path / "other"
    store.download_folder(config.model_uri, folder)
    layout = promoted_folder(store, config, folder)
    store.delete_many([info.uri for info in store.list(layout.uri)])
    result, _ = run(config)
    assert result.promotion.outcome is REFUSED
    assert f"{layout.uri}/model has no model files" in result.promotion.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not a record of a promoted model"),
        (b'{"version": 99}', "must have format version 1 or older, not 99"),
    ],
)
def test_a_record_that_cannot_be_read_refuses_the_promotion(store, run, prepared, bert, trained, content, reason):
    config = trained(prepared(bert, reviews()), 1, 1)
    store.put(layout_of(config).record, content)
    result, _ = run(config)
    assert result.promotion.outcome is REFUSED
    assert reason in result.promotion.message
    assert store.get(layout_of(config).record) == content


def test_without_promote_nothing_is_promoted_or_compared(store, run, prepared, bert, trained):
    config = prepared(bert, reviews())
    evaluation = config.spec.evaluation.model_copy(update={"promote": None})
    config = config.model_copy(update={"spec": config.spec.model_copy(update={"evaluation": evaluation})})
    result, record = run(trained(config, 1, 1))
    assert (result.promotion, record.promotion) == (None, None)
    assert not list(store.list(join(config.output_uri, "promot")))
    assert "Promotion</h2>" not in store.get(result.report_uri).decode()


def test_promoted_models_are_registered_and_a_failure_is_repeated(
    store, run, prepared, bert, trained, mlflow_url, tmp_path
):
    """The first evaluation cannot reach the server; the second one registers the model. The next model gets the alias,
    and a refused one does not."""
    rules = {"maxPValue": 1.0, "mlflow": {"trackingUri": "http://127.0.0.1:9", "model": "reviews", "alias": "best"}}
    reachable = {**rules, "mlflow": {**rules["mlflow"], "trackingUri": mlflow_url}}
    config = prepared(bert, reviews(), promote=rules)
    client = client_of(mlflow_url)

    first = trained(config, 1, 1)
    result, record = run(first)
    warning = "the model was not registered as reviews@best on http://127.0.0.1:9: MlflowException: "
    assert result.promotion.outcome is PROMOTED
    assert warning in result.promotion.message
    assert record.promotion.warning.startswith(warning)
    check_promoted(store, first, tmp_path)
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert any(text.startswith(warning) for text in progress["warnings"])

    first, second, worse = (trained(config, number, epochs, reachable) for number, epochs in ((1, 1), (2, 6), (3, 0)))
    for each, promoted in ((first, first), (second, second), (worse, second), (second, second)):
        result, record = run(each)
        assert (result.promotion.outcome is PROMOTED) == (each is promoted)
        assert record.promotion.warning == ""
        version = client.get_model_version_by_alias("reviews", "best")
        assert (version.source, version.tags["finetune.run"]) == (promoted.model_uri, str(promoted.run))
    assert len(client.search_model_versions("name='reviews'")) == 2

    change = Promotions(store, layout_of(config), person="someone", tracking_uri=mlflow_url).roll_back()
    assert change.warning == ""
    assert client.get_model_version_by_alias("reviews", "best").source == first.model_uri
