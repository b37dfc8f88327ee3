"""Reads the weights of a model folder one by one, and compares a model with quantized weights with them."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

from ..errors import ExportUnusableError
from ..methods.base import EXPORT_ADVICE, Weights


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


def check_stored(folder: Path, weights: Weights) -> None:
    """Raise ExportUnusableError if a weight in the files of a folder is not the given one, or if one is missing.

    The reloaded model is compared with the trained one by its loss, which a few wrong weights hardly change.
    """
    stored = StoredWeights.of(folder)
    both = stored.files.keys() & weights.keys()
    for name in sorted(both):
        if not _is_equal(stored.read(name), weights[name]):
            raise ExportUnusableError(f"{name} in {folder} is not the weight that was trained", advice=EXPORT_ADVICE)

    # transformers writes a matrix that two layers share once, and some architectures under other names than it loads
    # them, with joined matrices divided: that keeps the number of their values and their sums.
    shapes = {stored.shapes[name] for name in both}
    left = [
        name
        for name in sorted(weights.keys() - both)
        if tuple(weights[name].shape) not in shapes
        or not any(_is_equal(weights[name], weights[other]) for other in both)
    ]
    others = sorted(stored.files.keys() - both)
    trained, written = _Totals.of(weights[name] for name in left), _Totals.of(map(stored.read, others))
    if not trained.is_close(written):
        raise ExportUnusableError(
            f"the files in {folder} must have all trained weights: {trained} were trained as {_names(left)}, and "
            f"{written} were written as {_names(others)}",
            advice=EXPORT_ADVICE,
        )


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """A weight that is not a number is a fault of the training, which the evaluation names."""
    return one.shape == other.shape and torch.allclose(
        one.float().cpu(), other.float().cpu(), rtol=0, atol=0, equal_nan=True
    )


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "no weight"


_SUM_EPSILON = 1e-12
"""Of sums in 64 bits in another order, relative to the sum of the absolute values."""


@dataclass(frozen=True)
class _Totals:
    """What a change of names and the division of joined matrices keep."""

    values: int
    total: float
    magnitude: float
    """Sum of the absolute values."""
    squares: float
    """Sum of the squares."""

    @classmethod
    def of(cls, weights: Iterable[torch.Tensor]) -> "_Totals":
        values, total, magnitude, squares = 0, 0.0, 0.0, 0.0
        for weight in weights:
            values += weight.numel()
            # In 64 bits, in which the order of the sum changes less than any weight of the trained types would.
            exact = weight.double()
            total += float(exact.sum())
            magnitude += float(exact.abs().sum())
            squares += float(exact.square().sum())
        return cls(values, total, magnitude, squares)

    def __str__(self) -> str:
        return f"{self.values} values with the sum {self.total:.9g} and the sum of squares {self.squares:.9g}"

    def is_close(self, other: "_Totals") -> bool:
        if self.values != other.values or not math.isfinite(self.total):
            return self.values == other.values and not math.isfinite(other.total)
        # Two values that are wrong by the same amount in opposite directions change the magnitude or the squares.
        pairs = (
            (self.total, other.total, self.magnitude),
            (self.magnitude, other.magnitude, self.magnitude),
            (self.squares, other.squares, self.squares),
        )
        return all(abs(one - another) <= _SUM_EPSILON * size for one, another, size in pairs)


_LEVELS = 127
"""Of bitsandbytes: the largest weight of a row has this number."""


@torch.no_grad()
def check_weights(
    model: Any, source: Path, uri: str, stored_values: Callable[[str, torch.Tensor], torch.Tensor]
) -> None:
    """Raise ExportUnusableError if a weight of a reloaded model is not the quantized one of the folder `source`.

    A loss would not show it if few weights are wrong. `stored_values` returns for the name and the values of a weight
    those that its quantized form stands for. It does not apply to the layers of bitsandbytes, whose weights must be
    within half a step of their scale: processors round differently. Weights that the model has under other names than
    the folder, such as joined experts, must have the same number and sum of values.
    """
    stored, modules = StoredWeights.of(source), dict(model.named_modules())
    values = model.state_dict()
    both = stored.files.keys() & values.keys()
    for name in sorted(both):
        weight, found = stored.read(name), values[name].cpu()
        if found.dtype is torch.int8:
            layer = modules[name.rpartition(".")[0]]
            found = found.float() * _scales(layer)[:, None] / _LEVELS
            # bitsandbytes has the rows of a linear layer, which are the columns of a Conv1D.
            expected = weight.T if issubclass(layer.source_cls, Conv1D) else weight
            # The weights were rounded to 16 bits before.
            largest = expected.abs().amax(dim=-1, keepdim=True)
            allowed = (0.5 / _LEVELS + 2**-11) * largest + 2**-24
        else:
            expected, allowed = stored_values(name, weight).to(found.dtype).float(), torch.zeros(())
        distance = (found.float() - expected).abs()
        if not bool((distance <= allowed).all()):
            worst = float((distance - allowed).nan_to_num(nan=torch.inf).max())
            raise ExportUnusableError(
                f"{uri} is not the trained model: a weight of {name} differs from the trained one by {worst:.3g} more "
                "than its quantization explains",
                advice=EXPORT_ADVICE,
            )

    # Names that are tied to a compared one are left out.
    compared = {values[name].data_ptr() for name in both}
    named = [*model.named_parameters(), *model.named_buffers()]
    own = {name: value for name, value in named if name in values.keys() - both and value.data_ptr() not in compared}
    others = sorted(stored.files.keys() - both)
    if quantized := sorted(name for name, value in own.items() if not value.is_floating_point()):
        raise ExportUnusableError(
            f"{uri} cannot be compared with the trained model: transformers has quantized weights under other names "
            f"than they are stored under, {_names(quantized)}",
            advice=EXPORT_ADVICE,
        )
    trained = _Totals.of(stored_values(name, stored.read(name)) for name in others)
    reloaded = _Totals.of(value.detach().cpu() for value in own.values())
    if not trained.is_close(reloaded):
        raise ExportUnusableError(
            f"{uri} is not the trained model: {trained} were trained as {_names(others)}, and {reloaded} were reloaded "
            f"as {_names(sorted(own))}",
            advice=EXPORT_ADVICE,
        )


def _scales(layer: Any) -> torch.Tensor:
    """Largest magnitude of each row of a layer of bitsandbytes, which moves it when the layer is first used."""
    scales: torch.Tensor = layer.weight.SCB if getattr(layer.weight, "SCB", None) is not None else layer.state.SCB
    return scales.float().cpu()
