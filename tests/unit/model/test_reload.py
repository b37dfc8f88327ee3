"""Damaged exports: transformers and PEFT load each of them, and they are rejected here."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from finetune_api.trainer_config import SplitCounts
from finetune_api.v1alpha1 import ArtifactFormat, Batching, Dtype, Task
from finetune_trainer.errors import ExportUnusableError
from finetune_trainer.evaluate.reload import ReloadCheck
from finetune_trainer.methods import METHODS
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.load import load_model
from finetune_trainer.model.reload import reload_adapter, reload_model
from finetune_trainer.reference import Reference, Sample, choose_sample
from finetune_trainer.tasks import TASKS
from train_configs import train_config

LABELS = ("bad", "good")
CONFIG = train_config(method={"lora": {"rank": 2}})
PREPARED: Any = CONFIG.prepared
LORA = METHODS["lora"]
URI = "s3://bucket/out/model"


class Rows:
    """A split of classified rows."""

    def __init__(self, count: int, labels: Any = None) -> None:
        self.lengths = np.full(count, 6, np.int32)
        self._labels = labels

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = np.arange(6) + 40 + index
        return {"input_ids": ids, "labels": index % 2 if self._labels is None else self._labels(index, ids)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with an adapter, exported in both formats next to its base."""
    folder = tmp_path_factory.mktemp("exported")
    base = tiny_models.save_tiny("bert", folder / "base")
    model = LORA.apply(base_model(folder), CONFIG.spec.method.lora, TASKS[PREPARED.task], seed=1)
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    for artifact in (ArtifactFormat.MERGED, ArtifactFormat.ADAPTER):
        write_folder(artifact, model, weights, folder / artifact.value, config=CONFIG, base=base)
    return folder


def base_model(folder: Path) -> Any:
    task = Task.SEQUENCE_CLASSIFICATION
    return load_model(folder / "base", task=task, labels=LABELS, dtype=Dtype.FLOAT32, seed=1)


def change_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (path,) = folder.glob("*.safetensors")
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return apply


def change_config(name: str, **fields: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return apply


def without(part: str) -> Callable[[Path], None]:
    return change_weights(lambda found: {name: value for name, value in found.items() if part not in name})


MERGED = [
    (without("classifier"), "lacks weights of its own architecture: 2, first classifier.bias"),
    (without("query"), "lacks weights of its own architecture"),
    (change_weights(lambda found: found | {"extra.weight": torch.zeros(2)}), "does not use: 1, first extra.weight"),
    (change_weights(lambda found: found | {"classifier.bias": torch.zeros(3)}), "other shapes than in its config.json"),
    (change_config("config.json", id2label={"0": "good", "1": "bad"}), "names the labels good, bad, but was trained"),
    (lambda folder: (folder / "model.safetensors").unlink(), "cannot be reloaded"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 40), "cannot be reloaded"),
]
ADAPTER = [
    (change_weights(lambda _: {}), "lacks weights of its adapter"),
    (without("classifier"), "lacks weights of its adapter, among them '.*classifier"),
    (without("lora_B"), "lacks weights of its adapter"),
    (change_weights(lambda found: found | {"extra.lora_A.weight": torch.zeros(2)}), "that its adapter does not use"),
    (change_config("adapter_config.json", r=4), "does not fit its base model"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "cannot be reloaded"),
    (change_config("config.json", id2label={"0": "food", "1": "animal"}), "names the labels food, animal"),
    (lambda folder: (folder / "config.json").unlink(), "cannot be reloaded"),
]


@pytest.mark.parametrize(("damage", "message"), MERGED)
def test_a_damaged_model_folder_is_rejected(exported, tmp_path, damage, message) -> None:
    folder = shutil.copytree(exported / "Merged", tmp_path / "model")
    reload_model(folder, URI, PREPARED)
    damage(folder)
    with pytest.raises(ExportUnusableError, match=message) as error:
        reload_model(folder, URI, PREPARED)
    assert URI in str(error.value)


@pytest.mark.parametrize(("damage", "message"), ADAPTER)
def test_a_damaged_adapter_folder_is_rejected(exported, tmp_path, damage, message) -> None:
    folder = shutil.copytree(exported / "Adapter", tmp_path / "adapter")
    reload_adapter(base_model(exported), folder, URI, PREPARED, LORA)
    damage(folder)
    with pytest.raises(ExportUnusableError, match=message) as error:
        reload_adapter(base_model(exported), folder, URI, PREPARED, LORA)
    assert URI in str(error.value)


def check_of(losses: list[float], dtype: Dtype = Dtype.FLOAT32) -> ReloadCheck:
    rows = tuple(range(len(losses)))
    sample = Sample("test", Rows(len(losses)), rows)  # type: ignore[arg-type]
    prepared = PREPARED.model_copy(update={"dtype": dtype})
    return ReloadCheck(prepared, sample, Reference(split="test", rows=rows, losses=tuple(losses)))


def own_losses(model: Any) -> list[float]:
    rows = Rows(4)
    with torch.no_grad():
        return [
            float(model(input_ids=torch.tensor(rows[i]["input_ids"])[None], labels=torch.tensor([i % 2])).loss)
            for i in range(4)
        ]


@pytest.mark.parametrize(
    ("dtype", "added", "accepted"),
    [
        (Dtype.FLOAT32, 1e-5, True),
        (Dtype.FLOAT32, 1e-2, False),
        (Dtype.BFLOAT16, 1e-2, True),
        (Dtype.BFLOAT16, 0.2, False),
        (Dtype.FLOAT32, float("nan"), False),
    ],
)
def test_losses_may_differ_by_the_rounding_of_their_type(exported, dtype: Dtype, added: float, accepted: bool) -> None:
    model = reload_model(exported / "Merged", URI, PREPARED).eval()
    losses = own_losses(model)
    check = check_of([loss + added for loss in losses], dtype)
    if accepted:
        found = check(model, URI, 0)
        assert found.reloaded == pytest.approx(sum(losses) / 4, abs=1e-5)
        assert found.rows == 4
        return
    with pytest.raises(ExportUnusableError, match=URI):
        check(model, URI, 0)


def test_differences_that_cancel_out_in_the_mean_are_found(exported) -> None:
    model = reload_model(exported / "Merged", URI, PREPARED).eval()
    shifted = [loss + (0.1 if index % 2 else -0.1) for index, loss in enumerate(own_losses(model))]
    with pytest.raises(ExportUnusableError, match=r"mean difference per row 0\.1000, allowed 0\.0010"):
        check_of(shifted)(model, URI, 0)


@pytest.mark.parametrize(
    ("counts", "split", "rows"),
    [
        (SplitCounts(train=100, validation=7, test=9), "validation", 7),
        (SplitCounts(train=100, validation=0, test=9), "test", 9),
        (SplitCounts(train=100), "train", 32),
    ],
)
def test_the_rows_are_from_the_first_held_out_split(counts: SplitCounts, split: str, rows: int) -> None:
    prepared = PREPARED.model_copy(update={"counts": counts, "batching": Batching.PADDED})
    sample = choose_sample(prepared, lambda name: Rows(getattr(counts, name)))  # type: ignore[arg-type,return-value]
    assert (sample.split, len(sample.rows)) == (split, rows)
    assert (sample.rows[0], sample.rows[-1]) == (0, getattr(counts, split) - 1)


def test_long_rows_and_rows_without_targets_are_excluded() -> None:
    counts = SplitCounts(train=10, validation=10)
    prepared = PREPARED.model_copy(update={"counts": counts, "task": Task.CAUSAL_LM})

    def open_split(name: str) -> Any:
        found = Rows(10, lambda index, ids: np.where(name == "train", ids, np.full(6, -100)))
        found.lengths = np.full(10, 4096, np.int32)
        return found

    sample = choose_sample(prepared, open_split)
    assert (sample.split, len(sample.rows)) == ("train", 4)


def test_a_sample_without_rows_is_reported() -> None:
    found = check_of([])(SimpleNamespace(), URI, 0)
    assert (found.rows, found.sentence.startswith("reloaded with all weights")) == (0, True)
