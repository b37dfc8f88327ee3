"""Token shards: flat arrays in safetensors files, written once and read through memory maps.

A shard has `tokens` (all rows concatenated), `offsets` (row i is tokens[offsets[i]:offsets[i+1]]) and one of `labels`
(a class id per row), `token_labels` (one per token, -1 for none) and `loss` (a flag per token). If texts were split
into several rows, `documents` has the number of its text for each row. If rows are pairs of texts, `first_lengths` has
the tokens of the first one. File names contain the digest of the
content.
"""

import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from ..errors import BadDataError
from ..locks import locked
from ..store.client import ObjectStore
from ..store.digests import sha256_of
from ..store.transfer import inside
from ..store.uri import join
from ..tasks import IGNORED
from .info import DatasetInfo, Masking, ShardInfo, read_dataset_info

MAX_SHARD_BYTES = 64 * 2**20
_PARALLEL_DOWNLOADS = 8
_OF_TOKENS = ("tokens", "loss", "token_labels")
"""Arrays with one value per token."""
_DTYPES = {"U16": "<u2", "I16": "<i2", "I32": "<i4", "I64": "<i8", "BOOL": "|b1"}


class ShardWriter:
    """Collects the rows of one split and uploads a shard when it is full."""

    def __init__(
        self, store: ObjectStore, dataset_uri: str, split: str, *, vocabulary: int, max_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        self._store = store
        self._folder = join(dataset_uri, "shards")
        self._split = split
        self._dtype = np.dtype(np.uint16 if vocabulary <= 2**16 else np.int32)
        self._max_bytes = max_bytes
        self._waiting: list[dict[str, NDArray[Any]]] = []
        self._bytes = 0
        self.shards: list[ShardInfo] = []
        self.lengths: Counter[int] = Counter()
        self.largest_token = 0

    @property
    def rows(self) -> int:
        """Rows added so far."""
        return self.lengths.total()

    def add(
        self,
        lengths: NDArray[np.int64],
        tokens: NDArray[Any],
        *,
        labels: NDArray[Any] | None = None,
        loss: NDArray[np.bool_] | None = None,
        token_labels: NDArray[Any] | None = None,
        first_lengths: NDArray[Any] | None = None,
        documents: NDArray[np.int64] | None = None,
    ) -> None:
        """Add R rows of T tokens: `lengths` (R,) and `tokens` (T,); one of the class ids `labels` (R,), the class ids
        `token_labels` (T,) with -1 for none, and the flags of the tokens that carry loss, `loss` (T,); the
        tokens of the first text of each row that is a pair, `first_lengths` (R,); and the number of its text for each
        row, `documents` (R,)."""
        arrays = {"lengths": lengths.astype(np.int64), "tokens": tokens.astype(self._dtype)}
        if labels is not None:
            arrays["labels"] = labels.astype(np.int32)
        if loss is not None:
            arrays["loss"] = loss
        if token_labels is not None:
            arrays["token_labels"] = token_labels.astype(np.int16)  # at most MAX_CLASSES labels
        if first_lengths is not None:
            arrays["first_lengths"] = first_lengths.astype(np.int32)
        if documents is not None:
            arrays["documents"] = documents
        each = self._dtype.itemsize + (0 if loss is None else 1) + (0 if token_labels is None else 2)
        sizes = lengths * each + 8 + (0 if labels is None else 4) + (0 if first_lengths is None else 4)
        sizes += 0 if documents is None else 8
        ends = np.cumsum(sizes)
        begin = 0
        while begin < len(lengths):
            room = self._max_bytes - 4096 - self._bytes  # space for the header
            before = int(ends[begin - 1]) if begin else 0
            end = int(np.searchsorted(ends, before + room, side="right"))
            if end == begin and not self._waiting:
                end = begin + 1  # a single row that is larger than a shard
            if end > begin:
                self._waiting.append(_rows_of(arrays, begin, end))
                self._bytes += int(ends[end - 1]) - before
            if end < len(lengths):
                self.flush()
            begin = end
        found, counts = np.unique(lengths, return_counts=True)
        self.lengths.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        self.largest_token = max(self.largest_token, int(tokens.max(initial=0)))

    def flush(self) -> None:
        """Write the collected rows as a shard."""
        if not self._waiting:
            return
        arrays = {name: np.concatenate([part[name] for part in self._waiting]) for name in self._waiting[0]}
        lengths = arrays.pop("lengths")
        arrays["offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        data = save(arrays)
        digest = hashlib.sha256(data).hexdigest()
        name = f"{self._split}-{len(self.shards):05d}-{digest[:16]}.safetensors"
        self._store.put(join(self._folder, name), data)
        self.shards.append(
            ShardInfo(name=name, sha256=digest, size=len(data), rows=len(lengths), tokens=int(lengths.sum()))
        )
        self._waiting, self._bytes = [], 0


def _rows_of(arrays: dict[str, NDArray[Any]], begin: int, end: int) -> dict[str, NDArray[Any]]:
    """The rows from `begin` to `end`."""
    starts = np.concatenate([[0], np.cumsum(arrays["lengths"])])
    tokens = slice(int(starts[begin]), int(starts[end]))
    return {name: array[tokens if name in _OF_TOKENS else slice(begin, end)] for name, array in arrays.items()}


class TokenDataset:
    """The rows of one split, map-style; shards are memory-mapped, so processes share the memory."""

    def __init__(self, shards: list[dict[str, NDArray[Any]]], info: DatasetInfo) -> None:
        self.info = info
        self._shards = shards
        sizes = [len(shard["offsets"]) - 1 for shard in shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        parts = [np.diff(shard["offsets"]).astype(np.int32) for shard in shards]
        self.lengths: NDArray[np.int32] = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)

    @classmethod
    def open(
        cls, store: ObjectStore, dataset_uri: str, split: str, cache: Path, *, rows: int | None = None
    ) -> "TokenDataset":
        """Download the shards that are not cached, verified by digest. All processes of a node may call it at once.

        `rows`: open only the first shards that together have at least so many rows.
        """
        info = read_dataset_info(store, dataset_uri)
        folder = cache / "datasets" / info.digest
        folder.mkdir(parents=True, exist_ok=True)
        wanted = info.shards.get(split, ())
        if rows is not None:
            before = accumulate((shard.rows for shard in wanted), initial=0)
            wanted = tuple(shard for shard, start in zip(wanted, before, strict=False) if start < rows)
        with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
            paths = list(pool.map(lambda shard: _local_copy(store, dataset_uri, shard, folder), wanted))
        return cls([_mapped(path) for path in paths], info)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def documents(self) -> NDArray[np.int64]:
        """The number of its text for each row, shape (rows,): rows of the same text have the same number."""
        if not self._shards or "documents" not in self._shards[0]:
            return np.arange(len(self), dtype=np.int64)
        return np.concatenate([shard["documents"] for shard in self._shards])

    def occurring(self, tokens: Collection[int]) -> set[int]:
        """Which of these tokens are in a row. Reads all rows."""
        found: set[int] = set()
        for shard in self._shards:
            is_one = np.isin(shard["tokens"], list(tokens))
            found.update(np.unique(shard["tokens"][is_one]).tolist())
        return found

    @property
    def masking(self) -> Masking | None:
        """What replaces masked tokens. None: the task masks none."""
        return self.info.masking

    def units(self) -> NDArray[np.int64] | None:
        """None: losses of language models are divided by the tokens that carry loss."""
        return None

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids` (L,) int64; `labels`: a class id, or (L,) int64 with token or class ids, and -100 where there is
        no loss. Of a pair of texts also `first_length`, the tokens of the first one."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        shard, row = self._shards[number], index - int(self._starts[number])
        begin, end = int(shard["offsets"][row]), int(shard["offsets"][row + 1])
        tokens = np.asarray(shard["tokens"][begin:end], dtype=np.int64)
        if "labels" in shard:
            return {"input_ids": tokens, "labels": int(shard["labels"][row])}
        if "token_labels" in shard:
            classes = np.asarray(shard["token_labels"][begin:end], dtype=np.int64)
            return {"input_ids": tokens, "labels": np.where(classes >= 0, classes, IGNORED)}
        found = {"input_ids": tokens, "labels": np.where(shard["loss"][begin:end], tokens, IGNORED)}
        return found | ({"first_length": int(shard["first_lengths"][row])} if "first_lengths" in shard else {})


def _local_copy(store: ObjectStore, dataset_uri: str, shard: ShardInfo, folder: Path) -> Path:
    """The local copy of a shard. A cached file is checked against the digest: other jobs may write there too."""
    path = inside(folder, shard.name)
    if _is_intact(path, shard):
        return path
    with locked(folder / f"{shard.name}.lock"):
        if _is_intact(path, shard):
            return path
        uri = join(dataset_uri, "shards", shard.name)
        with tempfile.TemporaryDirectory(dir=folder, prefix="partial-") as temporary:
            partial = Path(temporary) / shard.name
            store.download(uri, partial)
            digest = sha256_of(partial)
            if digest != shard.sha256:
                raise BadDataError(
                    f"{uri}: the content does not match its digest in dataset.json ({digest[:16]} instead of "
                    f"{shard.sha256[:16]})",
                    advice=f"delete {dataset_uri} and start a new run: it prepares the dataset again",
                )
            os.replace(partial, path)
    return path


def _is_intact(path: Path, shard: ShardInfo) -> bool:
    return path.is_file() and path.stat().st_size == shard.size and sha256_of(path) == shard.sha256


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file, memory-mapped: an 8-byte header length, a JSON header, the data.

    (safetensors' own numpy reader copies every array into the memory of each process.)
    """
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_length))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + header_length)
    arrays = {}
    for name, entry in header.items():
        if re.fullmatch("__.*__", name):
            continue
        begin, end = entry["data_offsets"]
        arrays[name] = data[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays
