"""Masked language models: the loss of the models themselves, and exports that transformers loads."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, BertForPreTraining

import tiny_models
from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Metric, Task
from finetune_trainer.data.collate import Collator
from finetune_trainer.data.info import Masking
from finetune_trainer.data.masking import MaskedRows
from finetune_trainer.errors import ModelUnusableError
from finetune_trainer.methods import METHODS
from finetune_trainer.model.chunk_check import check_chunks
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.load import load_model
from finetune_trainer.model.reload import reload_adapter, reload_model
from finetune_trainer.model.weights import plan_weights
from finetune_trainer.tasks import IGNORED, TASKS
from finetune_trainer.tasks.chunked_loss import defer_logits
from train_configs import train_config

TASK = TASKS[Task.MASKED_LM]
LABELS = ("animal", "food")
LENGTHS = (9, 14, 3, 20)


class Texts:
    """Rows of random tokens; rows 1 and 2 are of one text."""

    def __init__(self) -> None:
        draw = np.random.default_rng(2)
        self._rows = [np.concatenate([[1], draw.integers(20, 300, length), [2]]) for length in LENGTHS]
        self.lengths = np.array([len(row) for row in self._rows], dtype=np.int32)
        self.masking = TASK.masking(tiny_models.masked_tokenizer(), "")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self._rows[index]
        return {"input_ids": ids, "labels": np.where(ids > 2, ids, IGNORED)}

    def documents(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array([1, 2, 2, 3])

    def units(self) -> None:
        return None


@pytest.fixture(scope="module", params=tiny_models.MASKED_FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny_masked(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny_masked("bert", tmp_path_factory.mktemp("model"))


def load(folder: Path) -> Any:
    return load_model(folder, task=Task.MASKED_LM, labels=(), dtype=Dtype.FLOAT32, seed=1).eval()


def batch_of(rows: Any) -> dict[str, torch.Tensor]:
    return Collator(0, Task.MASKED_LM)([rows[index] for index in range(len(rows))])


def loss_of(model: Any, batch: dict[str, torch.Tensor], *, smoothing: float = 0.0) -> torch.Tensor:
    loss: torch.Tensor = TASK.loss(model(**TASK.inputs(batch)).logits, batch, smoothing=smoothing)
    return loss


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**TASK.inputs(batch)).logits


def test_the_mean_per_target_is_the_loss_of_the_model(family: Path) -> None:
    model, batch = load(family), batch_of(MaskedRows.held_out(Texts()))
    theirs = model(**TASK.inputs(batch), labels=batch["labels"]).loss
    torch.testing.assert_close(loss_of(model, batch) / TASK.targets(batch), theirs)
    assert TASK.targets(batch) == sum(max(1, round(0.15 * length)) for length in LENGTHS)


def test_padding_rows_have_no_loss_and_all_gradients(bert: Path) -> None:
    rows = MaskedRows.held_out(Texts())
    model, batch = load(bert), Collator(0, Task.MASKED_LM)([TASK.padding_row(rows[0])] * 2)
    loss = loss_of(model, batch)
    loss.backward()
    assert (float(loss.detach()), TASK.targets(batch)) == (0.0, 0)
    assert all(not value.grad.any() for value in model.parameters())


def test_metrics_are_weighted_by_masked_token_and_intervals_count_texts(bert: Path) -> None:
    rows = MaskedRows.held_out(Texts())
    model, collate = load(bert), Collator(0, Task.MASKED_LM)
    found = TASK.measure(model, rows, collate, (), lambda _: None)
    batch = batch_of(rows)
    assert found.metrics[Metric.LOSS] == pytest.approx(float(loss_of(model, batch).detach()) / TASK.targets(batch))
    assert found.metrics[Metric.PERPLEXITY] == pytest.approx(np.exp(found.metrics[Metric.LOSS]))
    assert (found.examples, found.tokens) == (3, TASK.targets(batch))
    losses = TASK.row_losses(model, rows, collate, lambda _: None)
    tokens = [int((rows[index]["labels"] != IGNORED).sum()) for index in range(4)]
    together = (losses[1] * tokens[1] + losses[2] * tokens[2]) / (tokens[1] + tokens[2])
    assert found.scores == pytest.approx([losses[0], together, losses[3]])


def test_the_loss_in_parts_is_that_of_all_logits(family: Path) -> None:
    model, batch = load(family), batch_of(MaskedRows.held_out(Texts()))
    check_chunks(type(model), model.config, "s3://bucket/m", TASK)
    whole = loss_of(model, batch, smoothing=0.1)
    defer_logits(model)
    torch.testing.assert_close(loss_of(model, batch, smoothing=0.1), whole)


def test_a_base_model_without_the_head_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.save_tiny("bert", tmp_path / "base")
    with pytest.raises(ModelUnusableError, match="lacks") as caught:
        plan_weights(folder, "s3://bucket/m", Task.MASKED_LM)
    assert "with its head for masked language modeling" in caught.value.advice


def test_a_model_with_both_heads_of_its_first_pre_training_is_accepted(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "base")
    BertForPreTraining(AutoConfig.from_pretrained(bert)).save_pretrained(tmp_path / "base")
    plan = plan_weights(tmp_path / "base", "s3://bucket/m", Task.MASKED_LM)
    assert (plan.new, plan.unused) == ((), ())


METHODS_OF: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"rank": 4},
    "ia3": {"targetModules": ["query", "key", "value", "v_lin", "Wqkv"]},
    "layerNormTuning": {},
    "osft": {},
}


@pytest.mark.parametrize("name", METHODS_OF)
def test_what_a_method_trains_is_exported_and_the_base_of_a_classifier(family: Path, name: str, tmp_path: Path) -> None:
    method: Any = METHODS[name]
    formats = [ArtifactFormat.MERGED, *([ArtifactFormat.ADAPTER] if method.is_adapter else [])]
    config = train_config(
        model={"uri": f"file://{family}"}, method={name: METHODS_OF[name]}, prepared={"task": Task.MASKED_LM}
    )
    block, prepared = config.spec.method.block, config.prepared
    assert prepared is not None
    method.check(family, block, TASK)
    base = load(family)
    trained = method.apply(base, block, TASK, seed=1)
    batch = batch_of(MaskedRows.held_out(Texts()))
    before = logits(trained, batch)
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in trained.parameters():
            if parameter.requires_grad:
                # The factors of IA3 are about 1, and change little in a model of this size.
                parameter.add_((1.0 if name == "ia3" else 0.05) * torch.randn_like(parameter))
    expected = logits(trained, batch)
    assert not torch.allclose(expected, before, rtol=0, atol=1e-4), "a method that changes nothing would pass"
    weights = {key: value.detach() for key, value in trained.named_parameters() if value.requires_grad}
    for artifact in formats:
        write_folder(artifact, trained, weights, tmp_path / artifact.value, config=config, base=family)

    merged, found = AutoModelForMaskedLM.from_pretrained(tmp_path / "Merged", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    torch.testing.assert_close(logits(merged, batch), expected, rtol=0, atol=1e-5)
    reload_model(tmp_path / "Merged", "s3://bucket/m", prepared)
    if method.is_adapter:
        again = reload_adapter(load(family), tmp_path / "Adapter", "s3://bucket/m", prepared, method)
        torch.testing.assert_close(logits(again, batch), expected, rtol=0, atol=1e-5)

    as_trained = plan_weights(tmp_path / "Merged", "s3://bucket/m", Task.SEQUENCE_CLASSIFICATION, LABELS)
    as_base = plan_weights(family, "s3://bucket/m", Task.SEQUENCE_CLASSIFICATION, LABELS)
    assert as_trained.new == as_base.new
    assert as_trained.unused == as_base.unused == ()
    classifier = load_model(
        tmp_path / "Merged", task=Task.SEQUENCE_CLASSIFICATION, labels=LABELS, dtype=Dtype.FLOAT32, seed=1
    )
    body = dict(merged.base_model.named_parameters())
    shared = {name: value for name, value in classifier.base_model.named_parameters() if name in body}
    assert len(shared) == len(body)
    assert all(torch.equal(value, body[name]) for name, value in shared.items())


def test_masks_of_an_unprepared_data_set_are_refused() -> None:
    rows: Any = Texts()
    rows.masking = None
    with pytest.raises(AssertionError, match="prepared for the task"):
        MaskedRows.held_out(rows)
    assert Masking(mask_token=1, vocabulary=2, special_tokens=()) == Masking.model_validate_json(
        '{"mask_token": 1, "vocabulary": 2, "special_tokens": [], "added later": 1}'
    )
