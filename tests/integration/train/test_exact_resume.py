"""A run that is killed and resumed logs the same metrics, in every bit, as an uninterrupted one."""

from itertools import product
from typing import Any

import pytest

from finetune_api.support import SUPPORT
from method_cases import METHOD_CASES, case_blocks
from training_harness import STEPS_PER_EPOCH, TrainingHarness

MID_EPOCH = 2
SCALE = {"TEST_SCALE_POWER": "24"}
CASES = [
    pytest.param(zero, method, kind, id=f"zero{zero}-{method}-{kind}")
    for zero, method, kind in [
        *product((0, 1, 2, 3), ("full", "lora"), ("bert-dropout", "llama")),
        (2, "lora-RsLoRA", "bert-dropout"),
        (2, "lora-DoRA", "bert-dropout"),
        (3, "lora-DoRA", "llama"),
        (2, "lora-PiSSA", "bert-dropout"),
        (2, "lora-plus", "bert-dropout"),
        (3, "lora-plus", "llama"),
        (2, "ia3", "bert-dropout"),
        (2, "layerNormTuning", "bert-dropout"),
        (1, "layerNormTuning", "llama"),
        (2, "osft", "bert-dropout"),
        (2, "setFit", "bert-dropout"),
        (0, "setFit", "bert-dropout"),
        (3, "promptTuning", "llama"),
        (2, "freeze", "bert-dropout"),
        (2, "pruned", "bert-dropout"),
        (3, "pruned", "llama"),
        (2, "dropped-layers", "bert-dropout"),
        (2, "unfreeze", "bert-dropout"),
        (3, "lora", "llama-packed"),
        (2, "full", "masked"),
        (2, "full", "llama-vocabulary"),
        (3, "full", "llama-vocabulary"),
        (2, "lora", "llama-vocabulary"),
        (2, "promptTuning", "llama-dropout"),
        (2, "promptTuning-text", "llama"),
        (3, "promptTuning-text", "llama"),
        (2, "prefixTuning", "llama-dropout"),
        (2, "prefixTuning-projection", "llama"),
        (3, "prefixTuning-projection", "llama"),
        (2, "pTuning", "llama-dropout"),
        (2, "pTuning-LSTM", "llama"),
        (3, "pTuning-LSTM", "llama"),
    ]
]


def test_every_method_has_a_case() -> None:
    assert {case.values[1] for case in CASES} == {*METHOD_CASES}
    assert {name for case in METHOD_CASES.values() for name in case} == {*SUPPORT.methods}


@pytest.mark.parametrize(("zero", "method", "kind"), CASES)
def test_losses_after_kills_during_and_at_the_end_of_an_epoch_are_bitwise_equal(
    harness: TrainingHarness, zero: int, method: str, kind: str
) -> None:
    check_resume(harness, f"{zero}-{method}-{kind}", {"kind": kind, "zero": zero, **case_blocks(method)})


@pytest.mark.parametrize(
    ("zero", "method", "kind", "quantization"),
    [
        (2, "lora", "bert-dropout", "NF4"),
        (2, "lora", "llama", "Int8"),
        (0, "lora-DoRA", "llama", "NF4"),
        (0, "lora", "llama-vocabulary", "NF4"),
    ],
)
def test_quantized_weights_are_the_same_after_a_kill(
    harness: TrainingHarness, zero: int, method: str, kind: str, quantization: str
) -> None:
    blocks = {"kind": kind, "zero": zero, "model": {"quantization": quantization}, **case_blocks(method)}
    check_resume(harness, f"{zero}-{method}-{kind}-{quantization}", blocks)


def test_an_adapter_and_a_head_train_in_16_bits_under_zero_3_as_under_zero_2(harness: TrainingHarness) -> None:
    """PEFT creates the adapter in 32 bits, and the head has the type of the base model."""
    losses = {}
    for zero in (2, 3):
        blocks = {"kind": "bert", "zero": zero, "dtype": "BFloat16", **case_blocks("lora")}
        config = harness.config(f"half-adapter-{zero}", **blocks)
        harness.finish(config)
        losses[zero] = [entry["loss"] for entry in harness.training_log(config) if "loss" in entry]
    assert losses[3] == pytest.approx(losses[2], rel=2e-2)


def check_resume(harness: TrainingHarness, name: str, blocks: dict[str, Any]) -> None:
    _, last = harness.check_resume(name, kills=[MID_EPOCH, STEPS_PER_EPOCH], **blocks)
    assert last.message.progress is not None
    # The save of this step is skipped if the previous one is still being stored.
    assert STEPS_PER_EPOCH <= (last.message.progress.resumed_from_step or 0) < 2 * STEPS_PER_EPOCH


def test_a_save_after_a_skipped_validation_contains_the_generators_of_its_step(harness: TrainingHarness) -> None:
    """A stop skips the validation of step 2. The next attempt starts with it, saves its best state, and is killed."""
    blocks = {
        "kind": "bert-dropout",
        "evaluation": {"everySteps": 2},
        "training": {"earlyStopping": {"metric": "Loss", "patience": 10}},
    }
    through, name = harness.config("validated-through", **blocks), "validated-killed"
    whole = harness.finish(through)
    harness.interrupt(harness.config(name, **blocks), 2, how="stop")
    harness.interrupt(harness.config(name, attempt=2, **blocks), 2, how="kill")
    config = harness.config(name, attempt=3, **blocks)
    assert "00000002-a0002" in harness.manifests(config)
    last = harness.finish(config)
    assert last.message.progress is not None
    assert last.message.progress.resumed_from_step == 2
    harness.check_same_result(config, last, through, whole)


@pytest.mark.parametrize("zero", [2, 3])
def test_float16_skips_steps_that_overflow_and_resumes_exactly(harness: TrainingHarness, zero: int) -> None:
    """The loss scale starts too high: the first steps change nothing, and the stop comes while it is still
    decreasing."""
    blocks = {"kind": "bert-dropout", "zero": zero, "dtype": "Float16"}
    through, config = (harness.config(f"half-{name}-{zero}", **blocks) for name in ("through", "stopped"))
    whole = harness.finish(through, **SCALE)
    harness.interrupt(config, MID_EPOCH, how="stop", **SCALE)
    again = harness.config(f"half-stopped-{zero}", **blocks, attempt=2)
    harness.finish(again, **SCALE)

    log = [entry for entry in harness.training_log(through) if "loss" in entry]
    skipped = [entry["step"] for entry in log if "grad_norm" not in entry]
    assert 2 * STEPS_PER_EPOCH > len(skipped) > MID_EPOCH
    rates = [entry["learning_rate"] for entry in log]
    steps = range(2 * STEPS_PER_EPOCH - len(skipped))
    assert sorted(set(rates), reverse=True) == pytest.approx([5e-3 * (1 - step / len(rates)) for step in steps])
    assert harness.store.get_json(f"{through.run_uri}/training.json")["skipped_steps"] == len(skipped)
    assert whole.message.progress is not None
    assert any("steps changed nothing" in warning for warning in whole.message.progress.warnings)
    assert harness.training_log(again) == harness.training_log(through)
