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
        "a GPU of this job has 40.0 GiB, but spec.workers.gpuMemory is 80Gi; the memory of the training was planned "
        "for that"
    )


@pytest.mark.parametrize("present", [40.0, 79.2])
def test_a_gpu_that_is_too_small_ends_the_training_before_it_starts(present: float) -> None:
    with pytest.raises(
        BadConfigError, match=rf"has {present} GiB, but .* is 80Gi, and training needs about 79\.5"
    ) as error:
        check_gpu_memory(config(79.5), int(present * GIB))
    assert f"set spec.workers.gpuMemory: {int(present * GIB) >> 20}Mi" in error.value.advice


def test_a_memory_that_is_declared_too_late_ends_a_training_that_does_not_fit_it() -> None:
    """The settings were chosen without it."""
    late = config(90)
    with pytest.raises(BadConfigError, match=r"needs about 90\.0 GiB on each GPU, but .* is 80Gi since") as error:
        check_gpu_memory(late, 96 * GIB)
    assert "change spec.runNonce" in error.value.advice
    # The operator has halved the micro-batch since.
    reduced = late.model_copy(update={"plan": AttemptPlan(nodes=2, micro_batch_limit=2)})
    assert check_gpu_memory(reduced, 96 * GIB) == ""


def test_an_estimate_for_other_settings_is_not_compared() -> None:
    """The spec was corrected after the prepare stage."""
    edited = config(70, microBatchSize=1)
    assert "has 40.0 GiB, but" in check_gpu_memory(edited, 40 * GIB)


@pytest.mark.parametrize("unlimited", [config(70, None), config(70, gpus=False)])
def test_without_a_declared_memory_nothing_is_compared(unlimited: PreparedConfig) -> None:
    assert check_gpu_memory(unlimited, GIB) == ""
