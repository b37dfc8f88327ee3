"""The learning rate range test (Smith 2015, arXiv 1506.01186): some steps with a rising learning rate, from the weights
that the training starts with."""

import gc
import logging
from collections.abc import Callable
from itertools import islice

import torch
from torch import nn

from ..collectives import stop_if_agreed
from ..errors import DivergedError
from ..learning_rate import ChosenRate, has_diverged
from ..stop import StopFlag
from .engine import Engine
from .loop import Parts, TrainingLoop

log = logging.getLogger("finetune")

BuildEngine = Callable[[Callable[[int], float]], Engine]
"""`rate_factor` -> an engine of its own, whose peak learning rate is the highest of the test."""


def measure_losses(rates: tuple[float, ...], parts: Parts, build: BuildEngine, stop: StopFlag) -> list[float]:
    """Train one step with each rate and return the losses; fewer if the training diverges. Collective.

    The weights are discarded and their memory is freed. Raises StoppedError after a requested stop.
    """

    def factor(step: int) -> float:
        return rates[min(step, len(rates) - 1)] / rates[-1]

    engine = build(factor)
    losses: list[float] = []
    try:
        for loss in islice(TrainingLoop(parts, engine).trial_losses(), len(rates)):
            losses.append(loss)
            if has_diverged(losses):
                break
            stop_if_agreed(stop.requested, where="during the test of learning rates")
    except DivergedError as error:
        log.info("the test of learning rates ends: %s", error)
    finally:
        module = engine.deepspeed.module
        engine.deepspeed.destroy()
        _release_values(module)
        del engine, module
    return losses


def _release_values(module: nn.Module) -> None:
    """Free the values of all parameters. Under ZeRO-3 the model itself is never collected: DeepSpeed's hooks and nodes
    of the autograd graph refer to each other."""
    for parameter in module.parameters():
        for tensor in (parameter, getattr(parameter, "ds_tensor", None)):
            if tensor is not None:
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                tensor.grad = None


def free_memory() -> None:
    """Free an engine that was discarded. There must be no other one."""
    from deepspeed.runtime.zero import parameter_offload

    parameter_offload.FWD_MODULE_STACK.clear()  # ZeRO-3 never removes the model from it
    gc.collect()  # engine and model have cycles of references
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def log_choice(chosen: ChosenRate) -> None:
    """Log the result of a test."""
    log.info("%s", chosen.sentence)
