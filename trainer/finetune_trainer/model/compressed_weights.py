"""Quantizes matrices to integers and packs them as compressed-tensors stores them, for vLLM and transformers.

Weights are rounded to the nearest of their levels. No calibration data is used, unlike in GPTQ (Frantar et al. 2023,
arXiv 2210.17323) and AWQ (Lin et al. 2024, arXiv 2306.00978). Imports torch and compressed_tensors.
"""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors import safe_open
from safetensors.torch import save_file

_LAYOUT = CompressionFormat.pack_quantized.value
_INDEX = "model.safetensors.index.json"


class Packing:
    """One way to quantize and pack matrices of shape (outputs, inputs)."""

    def __init__(self, bits: int, group: int | None) -> None:
        """`bits` for each weight, and a scale for `group` weights of a row, or for the row if it is None."""
        strategy = QuantizationStrategy.CHANNEL if group is None else QuantizationStrategy.GROUP
        self._group = group
        self._weights = QuantizationArgs(num_bits=bits, strategy=strategy, group_size=group, symmetric=True)
        self._scheme = QuantizationScheme(targets=["Linear"], weights=self._weights, format=_LAYOUT)
        self._compressor: Any = BaseCompressor.get_value_from_registry(_LAYOUT)

    def packed(self, weight: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """`weight_packed` (int32), `weight_scale` (in `dtype`) and `weight_shape` of a matrix."""
        weight = weight.float()
        groups = weight if self._group is None else weight.reshape(len(weight), -1, self._group)
        keep = self._group is None
        exact, _ = calculate_qparams(groups.amin(-1, keepdim=keep), groups.amax(-1, keepdim=keep), self._weights)
        # The nearest levels are those of the scale that is stored. As the library, 0 is replaced, which divides.
        scale = exact.to(dtype)
        scale = torch.where(scale == 0, torch.finfo(dtype).eps, scale)
        found = self._compressor.compress({"weight": weight, "weight_scale": scale.float()}, self._scheme)
        return {**found, "weight_scale": scale}

    def values(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The values that the packed matrix stands for, in `dtype`."""
        unpacked: torch.Tensor = self._compressor.decompress(self.packed(weight, dtype), self._scheme)["weight"]
        return unpacked

    def write(
        self, source: Path, folder: Path, layers: Collection[str], ignored: Collection[str], dtype: torch.dtype
    ) -> None:
        """Write weights and config.json of the model folder `source`, with the matrices of `layers` packed.

        `ignored` names the other linear layers. One weight file at a time is in memory.
        """
        files: dict[str, str] = {}
        total = 0
        for path in sorted(source.glob("*.safetensors")):
            written: dict[str, torch.Tensor] = {}
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    layer, _, last = name.rpartition(".")
                    if last == "weight" and layer in layers:
                        packed = self.packed(file.get_tensor(name), dtype)
                        written |= {f"{layer}.{part}": value for part, value in packed.items()}
                    else:
                        written[name] = file.get_tensor(name)
            save_file(written, folder / path.name, metadata={"format": "pt"})
            files |= dict.fromkeys(written, path.name)
            total += sum(value.nbytes for value in written.values())
        if len({*files.values()}) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": files}
            (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        shutil.copyfile(source / "config.json", folder / "config.json")
        stated = QuantizationConfig(
            config_groups={"group_0": self._scheme},
            format=_LAYOUT,
            quantization_status=QuantizationStatus.COMPRESSED,
            ignore=sorted(ignored),
        )
        ModelCompressor(quantization_config=stated).update_config(str(folder))
