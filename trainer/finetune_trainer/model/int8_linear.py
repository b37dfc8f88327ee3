"""A linear layer with weights of 8 bits whose inputs are not quantized. Imports bitsandbytes.

bitsandbytes' own layer quantizes the inputs too (LLM.int8()), except in a training on the CPU. A model that is merged
for other programs would then not compute what was trained, and neither would a validation compute what is trained. Its
layer for the CPU also keeps its inputs for the backward pass, which does not need them, also with gradient
checkpointing.
"""

from collections.abc import Callable
from typing import Any, Self

import bitsandbytes as bnb
import torch
from bitsandbytes.nn.modules import Linear8bitLt
from torch import nn
from torch.nn import functional


def dequantized(weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The matrix of int8 `weight`, shape (outputs, inputs), and the largest magnitude of each row, shape (outputs,)."""
    values: torch.Tensor = bnb.functional.int8_vectorwise_dequant(weight, scales)
    return values.to(dtype)


class Int8Linear(Linear8bitLt):
    """PEFT finds it by its base class, and reads its weights."""

    @classmethod
    def of(cls, layer: Any) -> Self:
        """A layer with the quantized weight and the bias of a `Linear8bitLt`."""
        has_bias = layer.bias is not None
        own = cls(layer.in_features, layer.out_features, has_bias, has_fp16_weights=False, device="meta")
        own.weight, own.bias = layer.weight, layer.bias
        own.init_8bit_state()  # type: ignore[no-untyped-call]  # scales of a parameter are lost when torch moves it
        return own

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply with the dequantized matrix."""
        result: torch.Tensor = _Int8MatMul.apply(x, self.weight, self.state.SCB)
        return result if self.bias is None else result + self.bias

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        scales: Any = self.state.SCB
        self.state.SCB = scales.to(self.weight.device)
        return self


class _Int8MatMul(torch.autograd.Function):
    """x times the transposed matrix, which is dequantized again in the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """`x` has the shape (..., inputs), the result (..., outputs)."""
        ctx.save_for_backward(weight, scales)
        return functional.linear(x, dequantized(weight.data, scales, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The gradient of `x`; the matrix is frozen."""
        weight, scales = ctx.saved_tensors
        return gradients[0] @ dequantized(weight.data, scales, gradients[0].dtype), None, None
