"""Persistent module buffers: state that is in the model but not in the optimizer, such as running statistics."""

from collections.abc import Iterator

import torch

from ..format.manifest import Buffer


def read(module: torch.nn.Module) -> tuple[tuple[Buffer, ...], bytes]:
    """The bytes of all persistent buffers, concatenated, and the position of each."""
    entries: list[Buffer] = []
    content = bytearray()
    for name, tensor in _persistent(module):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = tuple(tensor.shape)
        entries.append(Buffer(name=name, dtype=dtype, shape=shape, offset=len(content), size=len(raw)))
        content += raw
    return tuple(entries), bytes(content)


def write(module: torch.nn.Module, entries: tuple[Buffer, ...], content: bytes) -> None:
    """Set the buffers to what `read` returned."""
    present = dict(_persistent(module))
    for entry in entries:
        raw = bytearray(content[entry.offset : entry.offset + entry.size])
        tensor = torch.frombuffer(raw, dtype=getattr(torch, entry.dtype)).reshape(entry.shape)
        present[entry.name].copy_(tensor)


def _persistent(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, part in module.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.numel() and name not in part._non_persistent_buffers_set:
                yield f"{prefix}.{name}".lstrip("."), buffer
