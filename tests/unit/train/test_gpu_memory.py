"""The GPUs of an attempt, compared with what the job says and what the training needs."""

from typing import Any

import pytest

from finetune_api.rules import memory_fingerprint
from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1 import AttemptPlan
from finetune_trainer.errors import BadConfigError
from finetune_trainer.train.gpu_memory import check_gpu_memory
from train_configs import train_config

GIB = 2**30


def config(needed: float, memory: str | None = "80Gi", *, gpus: bool = True, **training: Any) -> PreparedConfig:
    workers = {"nodes": 2, "gpusPerNode": 1, "gpuMemory": memory}
    found = train_config(
        gpus=gpus, workers=workers, prepared={"memory_estimate_bytes": int(needed * GIB)}, training=training
    )
    original = train_config(gpus=gpus, workers=workers).spec
    prepared = found.prepared.model_copy(update={"memory_fingerprint": memory_fingerprint(original)})
    return found.model_copy(update={"prepared": prepared})


@pytest.mark.parametrize("present", [80 * GIB, 90 * GIB, int(79.2 * GIB)])
def test_a_gpu_of_the_expected_size_is_not_reported(present: int) -> None:
    assert check_gpu_memory(config(70), present) == ""


def test_a_smaller_gpu_that_is_large_enough_is_reported() -> None:
    assert check_gpu_memory(config(30), 40 * GIB) == (
        "the smallest GPU of this job has 40.0 GiB; the estimate assumed 80Gi (spec.workers.gpuMemory)"
    )


@pytest.mark.parametrize("present", [40.0, 79.2])
def test_a_gpu_that_is_too_small_ends_the_training_before_it_starts(present: float) -> None:
    found = int(present * GIB) >> 20
    with pytest.raises(BadConfigError) as error:
        check_gpu_memory(config(79.5), int(present * GIB))
    assert str(error.value) == (
        f"spec.workers.gpuMemory must be at most {found}Mi, the memory of the smallest GPU of this job, not 80Gi; "
        "training needs about 79.5 GiB on each GPU"
    )
    assert "set spec.workers.nodeSelector to nodes with larger GPUs" in error.value.advice
    assert f"set spec.workers.gpuMemory: {found}Mi and change spec.runNonce" in error.value.advice


def test_a_memory_that_is_declared_too_late_ends_a_training_that_does_not_fit_it() -> None:
    """The settings were chosen without it."""
    late = config(89.5)
    with pytest.raises(BadConfigError) as error:
        check_gpu_memory(late, 96 * GIB)
    assert str(error.value) == (
        "spec.workers.gpuMemory must be at least 90Gi for the settings of this run, not 80Gi (it was changed after the "
        "prepare stage)"
    )
    assert "change spec.runNonce" in error.value.advice
    # The operator has halved the micro-batch since.
    reduced = late.model_copy(update={"plan": AttemptPlan(nodes=2, micro_batch_limit=2)})
    assert check_gpu_memory(reduced, 96 * GIB) == ""


def test_an_estimate_for_a_smaller_micro_batch_is_not_compared() -> None:
    """The memory was raised after the prepare stage, so that its maximum does not apply anymore."""
    found = config(70)
    limited = found.prepared.model_copy(update={"micro_batch_limit": found.batch.micro_size})
    with pytest.raises(BadConfigError, match="at most 40960Mi"):
        check_gpu_memory(found.model_copy(update={"prepared": limited}), 40 * GIB)
    smaller = limited.model_copy(update={"micro_batch_limit": found.batch.micro_size - 1})
    assert "the estimate assumed 80Gi" in check_gpu_memory(found.model_copy(update={"prepared": smaller}), 40 * GIB)


@pytest.mark.parametrize("change", [{"microBatchSize": 1}, {"gradientCheckpointingEveryNLayers": 2}], ids=str)
def test_an_estimate_for_other_settings_is_not_compared(change: dict[str, int]) -> None:
    """The spec was corrected after the prepare stage."""
    edited = config(70, **change)
    assert "has 40.0 GiB; the estimate assumed 80Gi" in check_gpu_memory(edited, 40 * GIB)


@pytest.mark.parametrize("unlimited", [config(70, None), config(70, gpus=False)])
def test_without_a_declared_memory_nothing_is_compared(unlimited: PreparedConfig) -> None:
    assert check_gpu_memory(unlimited, GIB) == ""
