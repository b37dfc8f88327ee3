"""Builds the DeepSpeed engine and what it trains with: optimizer and learning rate schedule."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import prod
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1 import OptimizerName, Training

from ..methods import METHODS
from ..model.checkpointed_layers import checkpoint_layers
from ..model.load import TORCH_DTYPES
from .ds_config import deepspeed_config
from .phases import PHASE, Phases
from .plateau import RateScale

_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")
"""Names of parameters, in lower case, without weight decay: the same as in transformers' Trainer."""


@dataclass(frozen=True)
class Engine:
    """DeepSpeed's engine, and the schedule that sets the learning rates of its optimizer."""

    deepspeed: Any
    schedule: LambdaLR
    phases: Phases | None = None
    """Absent: all parameters are trained from the first step."""
    rate_scale: RateScale = field(default_factory=RateScale)
    """What the learning rates of `schedule` are multiplied by."""

    @property
    def module(self) -> nn.Module:
        """The model inside the engine."""
        module: nn.Module = self.deepspeed.module
        return module


@contextmanager
def partitioned_models(config: PreparedConfig) -> Iterator[None]:
    """Let transformers build models for this training: under ZeRO-3, parameters are partitioned when they are created.

    The context must include the export, in which transformers gathers the parameters again.
    """
    settings = HfDeepSpeedConfig(deepspeed_config(config))
    try:
        yield
    finally:
        del settings  # transformers has a weak reference to it
        unset_hf_deepspeed_config()


def build_engine(model: nn.Module, config: PreparedConfig, rate_factor: Callable[[int], float]) -> Engine:
    """Build the engine of a training, with gradient checkpointing as the spec says. Collective.

    `rate_factor`: step, from 0 -> its learning rate as a share of the peak.
    """
    import deepspeed

    trained: Any = model
    trained.config.use_cache = False  # keys and values of earlier tokens are only used for generation
    if config.spec.training.gradient_checkpointing and config.prepared.supports_gradient_checkpointing:
        checkpoint_layers(trained, every=config.spec.training.gradient_checkpointing_every_n_layers)
    use_type_of_job(model, TORCH_DTYPES[config.prepared.dtype])
    method, block = METHODS[config.spec.method.name], config.spec.method.block
    first_phases = method.first_phases(model, block)
    optimizer = make_optimizer(model, config.spec.training, method.rate_factors(model, block), first_phases)
    # After DeepSpeed, which registers its hooks only for parameters with gradients.
    settings = deepspeed_config(config, largest_matrix=largest_matrix(model) if config.world.gpus else 0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    phases = None
    if first_phases:
        phases = Phases(model, optimizer, first_phases, steps=method.phase_steps(block, config.steps_per_epoch))
    scale = RateScale()
    return Engine(engine, LambdaLR(engine.basic_optimizer, lambda step: rate_factor(step) * scale.value), phases, scale)


def use_type_of_job(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert the trained parameters to one floating-point type, as DeepSpeed does below stage 3.

    PEFT creates adapters in 32 bit and copies a head in the type of the base model. Stage 3 of DeepSpeed 0.19 keeps
    both, and fails if they differ.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            stored = getattr(parameter, "ds_tensor", None)  # the shard of this rank, if it is partitioned already
            parameter.data = parameter.data.to(dtype)
            if stored is not None:
                stored.data = stored.data.to(dtype)


def largest_matrix(model: Any) -> int:
    """Return the elements of the largest matrix of a layer; embeddings and output layer do not count.

    Under ZeRO-3, whose parameters are partitioned, the whole matrix counts.
    """
    outer = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    excluded = {id(parameter) for layer in outer for parameter in layer.parameters()}
    shapes = [
        getattr(parameter, "ds_shape", parameter.shape)
        for parameter in model.parameters()
        if id(parameter) not in excluded
    ]
    return max((prod(shape) for shape in shapes if len(shape) == 2), default=0)


def make_optimizer(
    model: nn.Module,
    training: Training,
    rate_factors: Mapping[str, float] | None = None,
    first_phases: Mapping[str, int] | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer of the trained parameters: one group with weight decay, one without (biases and norms).

    With `rate_factors` (name -> factor of the learning rate), two groups for each factor, that of 1 first, because its
    rate is logged, and without empty ones. With `first_phases` (name -> phase since which it is trained), two groups
    for each factor and phase, with the phase as the option PHASE. The fused kernel of AdamW reads parameters and
    moments once instead of eight times.
    """
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    factors, phases = rate_factors or {}, first_phases or {}
    rates = sorted({1.0, *factors.values()}, key=lambda factor: (factor != 1.0, -factor))
    kinds = product(rates, sorted({0, *phases.values()}), (True, False))
    groups: dict[tuple[float, int, bool], list[nn.Parameter]] = {kind: [] for kind in kinds}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_decayed = name.rpartition(".")[0] not in norms and not _NOT_DECAYED.search(name.lower())
            groups[factors.get(name, 1.0), phases.get(name, 0), is_decayed].append(parameter)
    options = training.optimizer
    classes: dict[OptimizerName, Callable[..., torch.optim.Optimizer]] = {
        OptimizerName.ADAMW: partial(torch.optim.AdamW, fused=True),
        OptimizerName.RADAM: partial(torch.optim.RAdam, decoupled_weight_decay=True),
    }
    return classes[options.name](
        [
            {
                "params": parameters,
                "weight_decay": training.weight_decay if is_decayed else 0.0,
                "lr": training.peak_learning_rate * factor,
                **({PHASE: phase} if phases else {}),
            }
            for (factor, phase, is_decayed), parameters in groups.items()
            if parameters or not (factors or phases)
        ],
        lr=training.peak_learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
    )
