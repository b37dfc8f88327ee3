"""Export the parameters of a checkpoint as safetensors, in fp32, assembled from the parts of all ranks."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import DiskFullError
from ...store.faults import disk_errors
from ..format.layout import ELEMENT_BYTES, Fragment, Layout
from .blobs import parallel
from .loading import Loader

SHARD_BYTES = 1 << 30
"""Maximum size of a file, and thus of the memory in use. A larger parameter gets its own file."""

_INDEX = "model.safetensors.index.json"


def export_safetensors(loader: Loader, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Write `model.safetensors`, or numbered shards of it, and an index of the parameters; returns the files.

    Each file is written atomically, the index last. Raises CorruptCheckpointError, DiskFullError,
    and BadConfigError if the parts do not have every element of a parameter.
    """
    wholes = _full_parameters(loader)
    shards = list(_shards(wholes, shard_bytes))
    shapes = {fragment.name: fragment.shape for fragment in wholes}
    weight_map: dict[str, str] = {}
    written = []
    for number, fragments in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(loader, folder / name, Layout(fragments=fragments), shapes)
        weight_map |= dict.fromkeys((fragment.name for fragment in fragments), name)
        written.append(folder / name)
    index = {
        "metadata": {
            "checkpoint": loader.manifest.name,
            "step": loader.manifest.step,
            "total_size": sum(fragment.numel for fragment in wholes) * ELEMENT_BYTES,
        },
        "weight_map": weight_map,
    }
    with disk_errors(folder / _INDEX):
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [*written, folder / _INDEX]


def _full_parameters(loader: Loader) -> list[Fragment]:
    """Every parameter as one fragment, in the order of the layouts."""
    parts = parallel(loader.part, range(loader.manifest.world_size))
    found: dict[str, Fragment] = {}
    for layout in parallel(loader.layout, parts):
        for fragment in layout.fragments:
            whole = fragment.model_copy(update={"start": 0, "numel": math.prod(fragment.shape)})
            found.setdefault(fragment.name, whole)
    return list(found.values())


def _shards(wholes: list[Fragment], shard_bytes: int) -> Iterator[tuple[Fragment, ...]]:
    shard: list[Fragment] = []
    size = 0
    for fragment in wholes:
        if shard and size + fragment.numel * ELEMENT_BYTES > shard_bytes:
            yield tuple(shard)
            shard, size = [], 0
        shard.append(fragment)
        size += fragment.numel * ELEMENT_BYTES
    yield tuple(shard)


def _write_shard(loader: Loader, path: Path, layout: Layout, shapes: dict[str, tuple[int, ...]]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    buffer = np.empty(layout.bytes(arrays=1), dtype=np.uint8)
    # A rank that does not exist, because the rank's own part would be tried first, and no rank has everything.
    loader.stage(buffer, layout, shapes, rank=loader.manifest.world_size, arrays=1)
    array = buffer.view(np.float32)
    values = {
        fragment.name: array[at : at + fragment.numel].reshape(fragment.shape)
        for fragment, at in zip(layout.fragments, layout.offsets(), strict=True)
    }
    partial = path.with_name(f"{path.name}.part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(values, partial, metadata={"format": "pt"})
            os.replace(partial, path)
        except SafetensorError as error:  # safetensors raises it for a full disk
            raise DiskFullError(
                f"{path} cannot be written: {error}", advice="choose a folder with more free space"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
