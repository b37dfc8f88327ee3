"""Reads the weights of a model folder one by one, and compares a model with quantized weights with them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

from ..errors import ExportUnusableError
from ..methods.base import EXPORT_ADVICE


@dataclass(frozen=True)
class StoredWeights:
    """The safetensors files of a folder."""

    files: Mapping[str, Path]
    """Weight -> its file."""
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, folder: Path) -> "StoredWeights":
        """Read the headers of the files."""
        files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    files[name], shapes[name] = path, tuple(file.get_slice(name).get_shape())
        return cls(files, shapes)

    def read(self, name: str) -> torch.Tensor:
        """A weight, in 32 bits."""
        with safe_open(self.files[name], framework="pt") as file:
            weight: torch.Tensor = file.get_tensor(name)
        return weight.float()


@dataclass(frozen=True)
class Rounding:
    """Maximum distance of a stored weight from the weight that it stands for."""

    relative: float = 0.0
    """Relative to the weight."""
    absolute: float = 0.0
    of_largest: float = 0.0
    """Relative to the largest magnitude of its block."""
    block: int = 0
    """Weights of a row that share a scale; 0: the whole row."""

    @classmethod
    def of_steps(cls, *, levels: int, block: int = 0, steps: float = 0.5) -> "Rounding":
        """Of integers from 0 to `levels`, and a scale in 16 bits. `steps`: how many integers a weight may be off."""
        # The scale is rounded too, and very small ones become zero.
        return cls(of_largest=(steps + levels * 2**-11) / levels, absolute=levels * 2**-25, block=block)

    def allowed(self, weights: torch.Tensor) -> torch.Tensor:
        """Maximum distance of each weight, in the shape of the weights."""
        allowed = self.relative * weights.abs() + self.absolute
        if self.of_largest:
            blocks = weights.abs().reshape(-1, self.block or weights.shape[-1])
            largest = blocks.amax(dim=-1, keepdim=True).expand_as(blocks).reshape(weights.shape)
            allowed = allowed + self.of_largest * largest
        return allowed


_LOADED = {
    torch.float32: Rounding(),
    torch.bfloat16: Rounding(relative=2**-8),
    torch.float16: Rounding(relative=2**-11, absolute=2**-25),
}
"""Type that a weight is loaded in."""
_INT8 = Rounding.of_steps(levels=127)
"""Of bitsandbytes, which also rounds the weights to 16 bits before."""


@torch.no_grad()
def check_weights(model: Any, source: Path, uri: str, rounding: Callable[[str, tuple[int, ...]], Rounding]) -> None:
    """Raise ExportUnusableError if a weight of a reloaded model is not the rounded one of the folder `source`.

    A loss would not show it if few weights are wrong. `rounding` has the name and shape of a weight as arguments, and
    does not apply to the layers of bitsandbytes.
    """
    stored, modules = StoredWeights.of(source), dict(model.named_modules())
    values = model.state_dict()
    for name in stored.files:
        if name not in values:  # transformers has renamed it; missing and unused weights were rejected before
            continue
        layer = modules[name.rpartition(".")[0]]
        expected, found = stored.read(name), values[name].float().cpu()
        own = values[name].dtype
        if own is torch.int8:
            found, own = found * _scales(layer)[:, None] / 127, torch.float32
            # bitsandbytes has the rows of a linear layer, which are the columns of a Conv1D.
            expected = expected.T.contiguous() if issubclass(layer.source_cls, Conv1D) else expected
            allowed = _INT8.allowed(expected)
        else:
            allowed = rounding(name, tuple(expected.shape)).allowed(expected)
        allowed = allowed + _LOADED[own].allowed(expected.abs() + allowed)
        distance = (found - expected).abs()
        if not bool((distance <= allowed).all()):
            excess = distance - allowed
            worst = int(excess.nan_to_num(nan=torch.inf).argmax())
            raise ExportUnusableError(
                f"{uri} is not the trained model: a weight of {name} differs from the trained one by "
                f"{float(distance.flatten()[worst]):.3g}, but rounding changes it by at most "
                f"{float(allowed.flatten()[worst]):.3g}",
                advice=EXPORT_ADVICE,
            )


def _scales(layer: Any) -> torch.Tensor:
    """Largest magnitude of each row of a layer of bitsandbytes, which moves it when the layer is first used."""
    scales: torch.Tensor = layer.weight.SCB if getattr(layer.weight, "SCB", None) is not None else layer.state.SCB
    return scales.float().cpu()
