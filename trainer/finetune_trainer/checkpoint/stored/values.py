"""The parameters of a checkpoint as safetensors: put together from what the ranks held, under their own names, fp32."""

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
"""Of a file, and so of what is in memory at a time, but for a parameter that is larger: it has a file of its own."""

_INDEX = "model.safetensors.index.json"


def write_values(loader: Loader, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """`model.safetensors`, or numbered parts of it, and an index that says which holds which; returns the files.

    A file appears whole or not at all, and the index when all are there. Raises CorruptCheckpointError, DiskFullError,
    and BadConfigError where the ranks together do not hold a parameter whole.
    """
    wholes = _wholes(loader)
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


def _wholes(loader: Loader) -> list[Fragment]:
    """Every parameter as one fragment, in the order in which the ranks name them."""
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

    buffer = np.empty(layout.bytes(planes=1), dtype=np.uint8)
    # No rank of that number: a rank's own part would be tried first, and no rank holds everything.
    loader.stage(buffer, layout, shapes, rank=loader.manifest.world_size, planes=1)
    plane = buffer.view(np.float32)
    values = {
        fragment.name: plane[at : at + fragment.numel].reshape(fragment.shape)
        for fragment, at in zip(layout.fragments, layout.offsets(), strict=True)
    }
    partial = path.with_name(f"{path.name}.part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(values, partial, metadata={"format": "pt"})
            os.replace(partial, path)
        except SafetensorError as error:  # how the library tells of a full disk
            raise DiskFullError(f"{path} cannot be written: {error}", advice="give a folder with more room") from error
        finally:
            partial.unlink(missing_ok=True)
