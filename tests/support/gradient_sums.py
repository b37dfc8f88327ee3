"""How a DeepSpeed engine accumulates the gradients of many micro-batches, as seen by its optimizer."""

from dataclasses import dataclass
from typing import Any

from finetune_api.trainer_config import BatchPlan
from finetune_api.v1alpha1 import Dtype
from finetune_trainer.train.ds_config import deepspeed_config
from train_configs import train_config

MICRO_BATCHES = 64
LARGE, TINY = 1.0, 3 * 2.0**-10
"""Exact in BFloat16 and Float16; their sum is not exact in BFloat16."""


@dataclass(frozen=True)
class Kind:
    """Configuration of an engine."""

    stage: int
    dtype: Dtype
    offload: str = "None"

    @property
    def name(self) -> str:
        return f"zero{self.stage}-{self.dtype}-offload{self.offload}"


def gradient(micro: int, rank: int) -> float:
    """Gradient of every weight in one micro-batch: large in the first one of rank 0, otherwise tiny."""
    return LARGE if micro == 0 and rank == 0 else TINY


def expected_mean(size: int) -> float:
    """The mean over all micro-batches of all ranks."""
    every = [gradient(micro, rank) for micro in range(MICRO_BATCHES) for rank in range(size)]
    return sum(every) / len(every)


def mean_gradients(rank: int, size: int, kinds: list[Kind]) -> dict[str, list[float]]:
    """Kind -> what one optimizer step over 64 micro-batches subtracts from weights of 0 with a learning rate of 1."""
    import deepspeed
    import torch
    from deepspeed.utils import safe_get_full_fp32_param

    from finetune_trainer.train.world import allow_float16_on_cpu

    found: dict[str, list[float]] = {}
    for kind in kinds:
        allow_float16_on_cpu()
        model: Any = torch.nn.Linear(4, 3, bias=False)
        torch.nn.init.zeros_(model.weight)
        model = model.to({Dtype.BFLOAT16: torch.bfloat16, Dtype.FLOAT16: torch.float16}[kind.dtype])
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), config=_config(kind, size)
        )
        for micro in range(MICRO_BATCHES):
            row = torch.full((1, 4), gradient(micro, rank), dtype=model.weight.dtype)
            engine.backward(engine(row).float().sum())
            engine.step()
        found[kind.name] = (-safe_get_full_fp32_param(engine.module.weight)).flatten().tolist()
        engine.destroy()
    return found


def _config(kind: Kind, size: int) -> dict[str, Any]:
    """The train stage's configuration without clipping, because the norm of these gradients is above 1."""
    job = train_config(
        deepspeed={"zeroStage": kind.stage, "offload": kind.offload},
        training={"maxGradNorm": 0.0},
        prepared={"dtype": kind.dtype, "parameters": 12},
    )
    batch = BatchPlan(global_size=size * MICRO_BATCHES, micro_size=1, accumulation=MICRO_BATCHES)
    return deepspeed_config(job.model_copy(update={"batch": batch}))
