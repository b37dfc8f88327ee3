"""The checks for GPUs estimate memory without the prepare stage, and must get what it gets."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from gpu_check import cases
from gpu_check.prepared import make_model, trainer_config, training_shape

from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import Task
from finetune_trainer.data.prepare import _memory_choice
from finetune_trainer.model.cpu_estimate import process_bytes
from finetune_trainer.model.gpu_estimate import gpu_memory
from finetune_trainer.model.inspect import inspect_model


@pytest.mark.parametrize("case", cases.measured_memory(gpu=False), ids=lambda case: case.name)
def test_estimates_are_those_of_the_prepare_stage(case: cases.Case, tmp_path: Path) -> None:
    make_model(tmp_path, case)
    (tmp_path / "tokenizer.json").touch()
    facts = inspect_model(tmp_path, str(tmp_path))
    for gpu in (False, True):
        config = trainer_config(case, tmp_path, StorageSettings(), gpu=gpu)
        assert config.spec.model.dtype is not None
        chosen = _memory_choice(config, facts, Task.CAUSAL_LM, config.spec.model.dtype, case.length, ())
        shape = training_shape(config, facts, Task.CAUSAL_LM, case.length)
        estimate = gpu_memory(shape, chosen.stage).total if gpu else process_bytes(shape, chosen.stage)
        assert estimate == chosen.process_bytes
        assert chosen.stage == case.zero


def test_a_file_without_values_has_the_shapes_of_the_model(tmp_path: Path) -> None:
    """That of Llama 3 8B: 16 GB, of which only the header takes space on the disk."""
    case = replace(cases.measured_speed(gpu=True)["lora"], name="large")
    make_model(tmp_path, case)
    (tmp_path / "tokenizer.json").touch()
    facts = inspect_model(tmp_path, str(tmp_path))
    assert (facts.parameters, facts.layers, facts.vocabulary) == (8_030_261_248, 32, 128_256)
    assert sum(rows * columns for _, (rows, columns) in facts.linear) + 128_256 * 4096 == 7_504_658_432
    assert (tmp_path / "model.safetensors").stat().st_blocks * 512 < 1 << 20
