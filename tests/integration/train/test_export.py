"""The export is the trained model, and any user can load it."""

from pathlib import Path

import pytest

from finetune_api.progress import TrainResult
from finetune_api.support import SUPPORT
from finetune_api.v1alpha1 import ArtifactFormat
from finetune_trainer.model.fetch import fetch_model
from method_cases import METHOD_CASES, case_blocks
from training_harness import GLOBAL_BATCH, TrainingHarness

MERGED, ADAPTER = ["Merged"], ["Merged", "Adapter"]
REVERSED = ADAPTER[::-1]
CASES = [
    *((zero, "full", kind, MERGED) for zero in (2, 3) for kind in ("bert", "llama")),
    (0, "lora", "bert", ADAPTER),
    (1, "lora", "llama", REVERSED),
    (2, "lora", "bert", REVERSED),
    (2, "lora", "llama", ADAPTER),
    (3, "lora", "bert", ADAPTER),
    (3, "lora", "llama", REVERSED),
    (3, "ia3", "bert", ADAPTER),
    (2, "setFit", "bert", MERGED),
]
"""ZeRO stage, method, kind of model, formats."""
ADAPTERS = {name for name, row in SUPPORT.methods.items() if ArtifactFormat.ADAPTER in row.formats}


@pytest.mark.parametrize(("zero", "method", "kind", "formats"), CASES)
def test_every_exported_folder_loads_completely_and_has_the_final_loss_of_training(
    harness: TrainingHarness, tmp_path: Path, zero: int, method: str, kind: str, formats: list[str]
) -> None:
    config = harness.config(f"export-{zero}-{method}-{kind}", kind=kind, zero=zero, method={method: {}})
    output = config.spec.output.model_copy(update={"formats": tuple(map(ArtifactFormat, formats))})
    config = config.model_copy(update={"spec": config.spec.model_copy(update={"output": output})})
    attempt = harness.run(config)
    assert attempt.exit_codes == [0, 0], attempt.output
    result = attempt.message.trained
    assert isinstance(result, TrainResult)
    loaded = harness.loaded(config, tmp_path)
    last = [entry["eval_loss"] for entry in harness.training_log(config) if "eval_loss" in entry][-1]
    assert loaded["loss"] == pytest.approx(last, rel=1e-4)
    assert (loaded["missing"], loaded["unexpected"]) == ([], [])
    assert loaded["labels"] == (["animal", "food"] if kind == "bert" else [])
    assert result.digest == fetch_model(config.model_uri, harness.store, tmp_path / "cache").digest
    assert (result.model_uri, result.final_step) == (
        config.model_uri,
        2 * -(-config.prepared.counts.train // GLOBAL_BATCH),
    )
    if "Adapter" in formats:
        assert loaded["adapter_loss"] == pytest.approx(last, rel=1e-4)
        assert loaded["base_loss"] != pytest.approx(last, rel=1e-2), "an adapter that changes nothing would pass"
        described = harness.store.get_json(f"{config.run_uri}/adapter/adapter_config.json")
        assert described["peft_type"] == method.upper()
        if method == "lora":
            assert (described["r"], described["lora_alpha"]) == (16, 32)
        assert described["base_model_name_or_path"] == config.spec.model.uri.removeprefix("file://")
    reference = harness.store.get_json(f"{config.run_uri}/reference.json")
    assert reference["split"] == "validation"
    assert reference["losses"] == pytest.approx(loaded["row_losses"], rel=1e-4)


def test_objects_of_an_earlier_export_are_deleted(harness: TrainingHarness) -> None:
    config = harness.config("stale", kind="bert", training={"maxSteps": 1, "epochs": None})
    harness.store.put(f"{config.model_uri}/model-00002-of-00002.safetensors", b"old")
    assert harness.run(config).exit_codes == [0, 0]
    names = {info.uri.rpartition("/")[2] for info in harness.store.list(f"{config.model_uri}/")}
    assert "model-00002-of-00002.safetensors" not in names
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names


@pytest.mark.parametrize("case", [case for case, method in METHOD_CASES.items() if {*method} & ADAPTERS])
def test_the_adapter_of_every_method_is_better_than_the_base_model_for_any_user_of_peft(
    harness: TrainingHarness, tmp_path: Path, case: str
) -> None:
    blocks = case_blocks(case)
    training = {"epochs": 6, "learningRate": 2e-2, **blocks.pop("training", {})}
    blocks["output"] = {"formats": ["Adapter"]}
    config = harness.config(f"export-{case}", kind="llama", training=training, **blocks)
    attempt = harness.run(config)
    assert attempt.exit_codes == [0, 0], attempt.output
    loaded = harness.loaded(config, tmp_path)
    last = [entry["eval_loss"] for entry in harness.training_log(config) if "eval_loss" in entry][-1]
    assert loaded["adapter_loss"] == pytest.approx(last, rel=1e-4)
    assert loaded["adapter_loss"] < loaded["base_loss"]
