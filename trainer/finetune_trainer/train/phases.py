"""Phases of a training in which more and more parameters are trained.

The engine has all parameters from the start, so that all phases have the same layout of the optimizer state, and a
checkpoint of one phase is restored like any other. The phase follows from the number of the step. Until its phase, a
parameter has no gradient (so that it is no part of the gradient norm, and the backward pass ends above it), and the
optimizer skips its groups: a gradient of zero would decay the weights and count as a step of Adam. Its moments are zero
and its number of steps is 0 when its phase begins.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..methods.freezing import elements
from ..methods.unfreezing import phase_at

PHASE = "_phase"
"""Option of a parameter group: the phase since which it is trained. It starts with an underscore, because checkpoints
do not contain such options."""


class Phases:
    """Enables the parameters of one phase after the other."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, first_phases: Mapping[str, int], *, steps: int
    ) -> None:
        """`first_phases`: name -> phase, from 0, of every trained parameter; `steps`: length of all but the last."""
        self._parameters = [
            (parameter, first_phases[name]) for name, parameter in model.named_parameters() if name in first_phases
        ]
        self._steps = steps
        self._count = max(first_phases.values()) + 1
        self._current = self._count - 1
        self._is_entered = False
        self._hidden: list[tuple[torch.Tensor, torch.Tensor]] = []
        optimizer.register_step_pre_hook(self._hide_gradients)
        optimizer.register_step_post_hook(self._show_gradients)

    def enter(self, step: int) -> bool:
        """Enter the phase of the step that follows `step` completed ones. Returns whether it is another one."""
        phase = phase_at(step, self._steps, self._count)
        if self._is_entered and phase == self._current:
            return False
        self._current, self._is_entered = phase, True
        for parameter, first in self._parameters:
            parameter.requires_grad_(first <= phase)
        return True

    @property
    def description(self) -> str:
        """The current phase as a line of the log."""
        return (
            f"phase {self._current + 1} of {self._count}, from step {self._current * self._steps + 1}: "
            f"{self._trained(self._current):,} parameters are trained"
        )

    def summary(self, *, last_step: int) -> list[dict[str, int]]:
        """Return first step and number of trained parameters of every phase that has begun by `last_step`."""
        begun = phase_at(max(0, last_step - 1), self._steps, self._count) + 1
        return [
            {"first_step": phase * self._steps + 1, "trained_parameters": self._trained(phase)}
            for phase in range(begun)
        ]

    def _trained(self, phase: int) -> int:
        return sum(elements(parameter) for parameter, first in self._parameters if first <= phase)

    def _hide_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Before a step: torch's optimizers skip a tensor without gradient, and leave its state as it is.

        ZeRO calls the optimizer once for each group, with a flat gradient that contains zeros.
        """
        for options in optimizer.param_groups:
            if options[PHASE] > self._current:
                self._hidden += [(tensor, tensor.grad) for tensor in options["params"] if tensor.grad is not None]
        for tensor, _gradient in self._hidden:
            tensor.grad = None

    def _show_gradients(self, *_: Any) -> None:
        """After a step: with offloading, DeepSpeed uses the same tensors for the gradients of the next step."""
        for tensor, gradient in self._hidden:
            tensor.grad = gradient
        self._hidden = []
