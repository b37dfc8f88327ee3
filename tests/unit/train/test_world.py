"""What a rank says if CUDA cannot be used. No GPU: CUDA's answers are those of torch's sources."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune_trainer.errors import BadConfigError
from finetune_trainer.train import world

TOO_OLD = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver"
CONFIG: Any = SimpleNamespace(
    spec=SimpleNamespace(workers=SimpleNamespace(gpus_per_node=2, gpu_resource="nvidia.com/gpu"))
)
RUNTIME: Any = SimpleNamespace(local_world_size=2, local_rank=1)


def test_a_driver_that_is_too_old_is_named_if_torch_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_available() -> bool:
        warnings.warn(f"CUDA initialization: {TOO_OLD}\nAlternatively, ...", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    with pytest.raises(BadConfigError) as caught:
        world._take_gpu(CONFIG, RUNTIME)
    assert str(caught.value) == (
        f"spec.workers.gpusPerNode is 2, but the worker sees 0 GPUs: CUDA initialization: {TOO_OLD}"
    )


def test_a_driver_that_is_too_old_is_named_if_the_gpus_are_counted_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def set_device(_device: int) -> None:
        raise RuntimeError(f"{TOO_OLD}\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    with pytest.raises(BadConfigError) as caught:
        world._take_gpu(CONFIG, RUNTIME)
    assert str(caught.value) == f"spec.workers.gpusPerNode is 2, but CUDA cannot be used: {TOO_OLD}"
    assert f"this one needs CUDA {torch.version.cuda}" in str(caught.value.advice)
