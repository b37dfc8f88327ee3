"""What is exported is the model that was trained, and anybody can load it."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from finetune_api.progress import TrainResult
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.forkclient import ForkClient
from finetune_trainer.model.fetch import fetch_model
from process_support import base_environment
from train_lab import Lab

CASES = list(product((2, 3), ("full", "lora"), ("bert", "llama")))


def load(lab: Lab, config: TrainerConfig, folder: Path) -> dict[str, Any]:
    """In a fresh process, from the files alone."""
    lab.store.download_folder(config.model_uri, folder / "model")
    (folder / "config.json").write_text(config.model_dump_json())
    with (folder / "log").open("wb") as output:
        rank = ForkClient(lab.server.path).start_rank(
            base_environment(), folder, output.fileno(), target="train_ranks:load_exported"
        )
    assert rank.wait(120) == 0, (folder / "log").read_text()
    loaded: dict[str, Any] = json.loads((folder / "loaded.json").read_text())
    return loaded


@pytest.mark.parametrize(("zero", "method", "kind"), CASES)
def test_an_exported_model_loads_whole_and_has_the_loss_that_training_ended_with(
    lab: Lab, tmp_path: Path, zero: int, method: str, kind: str
) -> None:
    config = lab.config(f"export-{zero}-{method}-{kind}", kind=kind, zero=zero, method={method: {}})
    attempt = lab.run(config)
    assert attempt.exit_codes == [0, 0], attempt.output
    result = attempt.message.trained
    assert isinstance(result, TrainResult)
    loaded = load(lab, config, tmp_path)
    last = [entry["eval_loss"] for entry in lab.training_log(config) if "eval_loss" in entry][-1]
    assert loaded["loss"] == pytest.approx(last, rel=1e-4)
    assert (loaded["missing"], loaded["unexpected"]) == ([], [])
    assert loaded["labels"] == (["animal", "food"] if kind == "bert" else [])
    assert result.digest == fetch_model(config.model_uri, lab.store, tmp_path / "cache").digest
    assert (result.model_uri, result.final_step) == (config.model_uri, 10)


def test_an_adapter_is_exported_beside_the_merged_model(lab: Lab) -> None:
    output = {"uri": f"s3://{lab.bucket}/adapter", "formats": ["Merged", "Adapter"]}
    config = lab.config("adapter", kind="llama", zero=3, method={"lora": {"rank": 4}}, output=output)
    assert lab.run(config).exit_codes == [0, 0]
    names = {info.uri.rpartition("/")[2] for info in lab.store.list(f"{config.run_uri}/adapter/")}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    described = lab.store.get_json(f"{config.run_uri}/adapter/adapter_config.json")
    assert (described["r"], described["lora_alpha"]) == (4, 8)
    assert described["base_model_name_or_path"] == config.spec.model.uri
    assert lab.store.exists(f"{config.model_uri}/model.safetensors")


def test_objects_of_an_earlier_export_do_not_stay(lab: Lab) -> None:
    config = lab.config("stale", kind="bert", training={"maxSteps": 1, "epochs": None})
    lab.store.put(f"{config.model_uri}/model-00002-of-00002.safetensors", b"old")
    assert lab.run(config).exit_codes == [0, 0]
    names = {info.uri.rpartition("/")[2] for info in lab.store.list(f"{config.model_uri}/")}
    assert "model-00002-of-00002.safetensors" not in names
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
