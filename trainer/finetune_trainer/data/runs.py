"""Encoded rows on local disk, between the steps on single blocks and the steps on the keys of all rows.

A run has the rows of one block, sorted by key, as Arrow record batches: one for each bucket (a range of keys). Reading
the same bucket of every run gives all rows of that range, so the rows of a dataset of any size can be visited in key
order with memory for one bucket.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..store.faults import disk_errors
from .formats import Example
from .labels import canonical_name
from .splits import TRAIN, row_keys
from .tokenize import EncodedBatch


@dataclass
class Run:
    """The file with the rows of one block, and an index of it."""

    path: Path
    uri: str
    """The file that the records come from."""
    unit: str
    """Unit of the record numbers: `line`, `row` or `element`."""
    spellings: tuple[str, ...]
    """Labels as written in the file, indexed by the ids in the column `label`."""
    counts: NDArray[np.int64]
    """(spellings,): number of examples of each."""
    columns: tuple[str, ...]
    has_other_keys: bool
    """Whether keys depend on how `1.0` is interpreted: then a column has the keys for the case that it is not `1`."""
    starts: NDArray[np.int64]
    """(buckets + 1,): the position of the first row of each bucket; the last value is the number of rows."""
    token_spellings: tuple[str, ...] = ()
    """Token labels as written in the file, indexed by the ids in the column `token labels`."""
    token_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(token_spellings,): number of tokens of each."""
    features: dict[str, "FeatureFile"] = field(default_factory=dict)
    """Step -> what it compares rows by."""
    splits: NDArray[np.int8] | None = None
    """(rows,): the split that each row of a training file is assigned to, by position. None: not assigned yet."""
    repeats: NDArray[np.uint8] | None = None
    """(rows,): how often each row is written, by position. None: once."""
    kept: NDArray[np.uint8] | None = None
    """(ceil(rows / 8),): one bit per row, by position; None: no row was removed."""


@dataclass(frozen=True)
class Features:
    """What a step compares N examples by, with other rows of all files: K keys and E values."""

    keys: NDArray[np.uint64]
    """(K,): examples with a key in common may be similar."""
    key_counts: NDArray[np.int64]
    """(N,): number of keys of each example."""
    evidence: NDArray[np.uint32]
    """(E,): values that show whether examples with a key in common are similar."""
    evidence_counts: NDArray[np.int64]
    """(N,): number of values of each example."""


MakeFeatures = Callable[[Sequence[Example]], Features]


@dataclass(frozen=True)
class FeatureFile:
    """The features of the rows of one run, in a file: sorted keys, the row of each in the order of the block, the ends
    of the evidence of each row, and the evidence of all rows.

    The file is open only while a part of it is read: there may be more runs than files that a process may open.
    """

    path: Path
    keys: int
    """Number of keys."""
    rows: int
    """Number of rows."""

    @classmethod
    def write(cls, path: Path, parts: Sequence[Features]) -> "FeatureFile":
        """Write the features of the batches of a block. Raises DiskFullError."""
        keys, key_counts, evidence, counts = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("keys", "key_counts", "evidence", "evidence_counts")
        )
        order = np.argsort(keys, kind="stable")
        rows = np.repeat(np.arange(len(key_counts), dtype=np.uint32), key_counts)
        ends = np.concatenate([[0], np.cumsum(counts)])
        with disk_errors(path), path.open("wb") as file:
            for array, kind in ((keys[order], _KEY), (rows[order], _VALUE), (ends, _END), (evidence, _VALUE)):
                file.write(array.astype(kind, copy=False).tobytes())
        return cls(path, len(keys), len(key_counts))

    def places(self, edges: Sequence[int]) -> NDArray[np.int64]:
        """The number of keys below each edge. Edges are sorted, and at most 2^64."""
        inside = np.array([edge for edge in edges if edge < 1 << 64], dtype=np.uint64)
        found = np.fromfile(self.path, _KEY, self.keys).searchsorted(inside)
        return np.concatenate([found, np.full(len(edges) - len(inside), self.keys)]).astype(np.int64)

    def read(self, begin: int, end: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """The keys from place `begin` to `end`, and the row of each."""
        with self.path.open("rb", buffering=0) as file:
            keys = _read(file, _KEY, 8 * begin, end - begin)
            return keys, _read(file, _VALUE, 8 * self.keys + 4 * begin, end - begin)

    def ends(self) -> NDArray[np.int64]:
        """(rows + 1,): the evidence of row `i` is from `ends[i]` to `ends[i + 1]`."""
        with self.path.open("rb", buffering=0) as file:
            return _read(file, _END, 12 * self.keys, self.rows + 1)

    def values(self, begin: int, end: int) -> NDArray[np.uint32]:
        """The evidence of all rows, from `begin` to `end`."""
        with self.path.open("rb", buffering=0) as file:
            return self._values(file, begin, end)

    def evidence(self, row: int) -> NDArray[np.uint32]:
        """The evidence of one row."""
        with self.path.open("rb", buffering=0) as file:
            begin, end = _read(file, _END, 12 * self.keys + 8 * row, 2).tolist()
            return self._values(file, begin, end)

    def _values(self, file: FileIO, begin: int, end: int) -> NDArray[np.uint32]:
        return _read(file, _VALUE, 12 * self.keys + 8 * (self.rows + 1) + 4 * begin, end - begin)


_KEY, _VALUE, _END = np.dtype(np.uint64), np.dtype(np.uint32), np.dtype(np.int64)


def _read(file: FileIO, kind: np.dtype[Any], offset: int, count: int) -> NDArray[Any]:
    return np.frombuffer(os.pread(file.fileno(), count * kind.itemsize, offset), kind)


class RunWriter:
    """Collects the rows of a block and writes them sorted by key."""

    def __init__(
        self,
        path: Path,
        seed: int,
        buckets: int,
        step_keys: Mapping[str, Callable[[Example], str]],
        *,
        wide: bool,
        features: Mapping[str, MakeFeatures] | None = None,
    ) -> None:
        self._path = path
        self._seed = seed
        self._buckets = buckets
        self._step_keys = step_keys
        self._make_features = features or {}
        self._features: dict[str, list[Features]] = {step: [] for step in self._make_features}
        self._tokens = pa.int32() if wide else pa.uint16()
        self._batches: list[pa.RecordBatch] = []
        self._spellings: dict[str, int] = {}
        self._token_spellings: dict[str, int] = {}
        self._unit = "line"
        self._has_other_keys = False

    def add(self, batch: EncodedBatch) -> None:
        """Add encoded examples, in the order of the block."""
        examples = batch.examples
        spellings = self._spellings
        labels = np.array([spellings.setdefault(each.label, len(spellings)) for each in examples], dtype=np.int32)
        token_spellings = self._token_spellings
        places = [token_spellings.setdefault(name, len(token_spellings)) for name in batch.token_label_names]
        row_ends = np.concatenate([[0], np.cumsum(batch.rows)]).astype(np.int32)
        token_ends = np.concatenate([[0], np.cumsum(batch.row_lengths)]).astype(np.int32)[row_ends]
        self._unit = examples[0].place.unit
        whole, other = (
            {label: canonical_name(label, floats_are_whole=are_whole) for label in (*spellings, *token_spellings)}
            for are_whole in (True, False)
        )
        keys = self._keys(batch, whole)
        self._has_other_keys |= whole != other
        columns = {
            "key": keys,
            "other key": keys if whole == other else self._keys(batch, other),
            "number": np.array([each.place.number for each in examples], dtype=np.int64),
            "label": labels,
            "truncated": batch.truncated,
            "dropped": batch.dropped,
            "rows": pa.ListArray.from_arrays(row_ends, batch.row_lengths),
            "tokens": pa.ListArray.from_arrays(token_ends, pa.array(batch.tokens).cast(self._tokens)),
        }
        for step, key in self._step_keys.items():
            columns[_column_of(step)] = row_keys([key(each) for each in examples], self._seed)
        for step, make in self._make_features.items():
            self._features[step].append(make(examples))
        if batch.loss is not None:
            columns["loss"] = pa.ListArray.from_arrays(token_ends, pa.array(batch.loss))
        if batch.token_labels is not None:
            numbers = np.array([*places, -1], dtype=np.int32)[batch.token_labels]
            columns["token labels"] = pa.ListArray.from_arrays(token_ends, pa.array(numbers))
        if batch.first_lengths is not None:
            columns["first lengths"] = pa.ListArray.from_arrays(row_ends, pa.array(batch.first_lengths))
        if batch.copies is not None:
            columns["copies"] = _copies(batch, self._tokens)
        self._batches.append(pa.RecordBatch.from_pydict(columns))

    def finish(self, uri: str) -> Run | None:
        """Write the file. Returns None, without a file, if there are no examples. Raises DiskFullError."""
        if not self._batches:
            return None
        table = pa.Table.from_batches(self._batches)
        if not self._has_other_keys:
            table = table.drop_columns("other key")
        starts = _write_sorted(self._path, table, self._buckets)
        columns = tuple(table.column_names)
        counts = np.bincount(table["label"].to_numpy(), minlength=len(self._spellings)).astype(np.int64)
        run = Run(self._path, uri, self._unit, tuple(self._spellings), counts, columns, self._has_other_keys, starts)
        for number, (step, parts) in enumerate(self._features.items()):
            path = self._path.with_name(f"{self._path.stem}-{number}.features")
            run.features[step] = FeatureFile.write(path, parts)
        if "token labels" in columns:
            numbers = table["token labels"].combine_chunks().flatten().to_numpy()
            run.token_spellings = tuple(self._token_spellings)
            run.token_counts = np.bincount(numbers[numbers >= 0], minlength=len(run.token_spellings)).astype(np.int64)
        return run

    def _keys(self, batch: EncodedBatch, names: dict[str, str]) -> NDArray[np.uint64]:
        def written(example: Example) -> str:
            labels = (names[label] for label in example.span_labels) if example.span_labels else (names[example.label],)
            return "\n".join(labels)

        def content(example: Example) -> str:
            return example.text if example.rejected is None else f"{example.text}\0{example.rejected.text}"

        return row_keys([f"{written(each)}\0{content(each)}" for each in batch.examples], self._seed)


def _copies(batch: EncodedBatch, tokens: pa.DataType) -> pa.ListArray:
    """The copies of each example: for each copy, the columns of an example that shards are written from."""
    fields = {"rows": pa.list_(pa.int32()), "tokens": pa.list_(tokens), "truncated": pa.bool_(), "dropped": pa.int64()}
    if batch.loss is not None:
        fields["loss"] = pa.list_(pa.bool_())
    parts = [pa.array([], pa.struct(fields))]
    for part in batch.copies or ():
        row_ends = np.concatenate([[0], np.cumsum(part.rows)]).astype(np.int32)
        token_ends = np.concatenate([[0], np.cumsum(part.row_lengths)]).astype(np.int32)[row_ends]
        values = [
            pa.ListArray.from_arrays(row_ends, part.row_lengths),
            pa.ListArray.from_arrays(token_ends, pa.array(part.tokens).cast(tokens)),
            pa.array(part.truncated),
            pa.array(part.dropped),
        ]
        if part.loss is not None:
            values.append(pa.ListArray.from_arrays(token_ends, pa.array(part.loss)))
        parts.append(pa.StructArray.from_arrays(values, names=list(fields)))
    ends = np.concatenate([[0], np.cumsum([len(example.copies or ()) for example in batch.examples])])
    return pa.ListArray.from_arrays(ends.astype(np.int32), pa.concat_arrays(parts))


def copies_of(table: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
    """The copies of all rows as a table of their own, and the number of copies of each row."""
    lists = table["copies"].combine_chunks()
    counts = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(lists.flatten())]), counts


def _column_of(step: str) -> str:
    """The column with the keys of a step."""
    return f"key of {step}"


def _write_sorted(path: Path, table: pa.Table, buckets: int) -> NDArray[np.int64]:
    """Write the rows in the order of the column `key`; returns `Run.starts`. Raises DiskFullError."""
    (rows,) = table.combine_chunks().to_batches(max_chunksize=None)
    keys = rows["key"].to_numpy()
    order = np.argsort(keys, kind="stable")
    rows = rows.take(pa.array(order))
    edges = np.array([(bucket << 64) // buckets for bucket in range(1, buckets)], dtype=np.uint64)
    ends = [0, *np.searchsorted(keys[order], edges).tolist(), len(keys)]
    with disk_errors(path), pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as out:
        for begin, end in pairwise(ends):
            out.write_batch(rows.slice(begin, end - begin))
    return np.array(ends, dtype=np.int64)


def use_other_keys(run: Run, buckets: int) -> None:
    """Sort a run by its alternative keys, in place."""
    with pa.OSFile(str(run.path)) as file:
        table = pa.ipc.open_file(file).read_all()
    # Rows with equal keys must be in the order of the block, as after the first sort.
    table = table.sort_by("number")
    table = table.set_column(0, "key", table["other key"]).drop_columns("other key")
    run.starts = _write_sorted(run.path, table, buckets)
    run.has_other_keys = False


def read_bucket(run: Run, bucket: int, columns: Sequence[str] | None = None) -> pa.RecordBatch:
    """The rows of a run in one bucket that no step removed, sorted by key. Without `columns`: all columns."""
    with pa.OSFile(str(run.path)) as file:
        batch = _open(file, columns).get_batch(bucket)
    if run.kept is None:
        return batch
    return batch.filter(pa.array(_are_kept(run, np.arange(run.starts[bucket], run.starts[bucket + 1]))))


def sort_by_step_key(run: Run, step: str, buckets: int) -> Path:
    """Write key, label and position of a run's rows, sorted by the step's own key, for `read_keys`.

    Rows with equal keys are in the order of the block. The next step with its own key replaces the file.
    Raises DiskFullError.
    """
    with pa.OSFile(str(run.path)) as file:
        table = _open(file, [_column_of(step), "label", "number"]).read_all()
    rows = pa.table(
        {
            "key": table[_column_of(step)],
            "label": table["label"],
            "position": np.arange(table.num_rows, dtype=np.int64),
            "number": table["number"],
        }
    )
    path = run.path.with_suffix(".keys")
    _write_sorted(path, rows.sort_by("number").drop_columns("number"), buckets)
    return path


def read_keys(run: Run, bucket: int, path: Path | None) -> pa.RecordBatch:
    """Key, label and position in the run of the rows in one bucket that no step removed, sorted by key.

    `path`: the file written by `sort_by_step_key`. None: use the keys of the run.
    """
    with pa.OSFile(str(path or run.path)) as file:
        batch = _open(file, ["key", "label"] if path is None else None).get_batch(bucket)
    if path is None:
        positions = np.arange(run.starts[bucket], run.starts[bucket + 1])
        batch = pa.RecordBatch.from_pydict({"key": batch["key"], "label": batch["label"], "position": positions})
    return batch if run.kept is None else batch.filter(pa.array(_are_kept(run, batch["position"].to_numpy())))


def remove_rows(run: Run, positions: NDArray[np.int64]) -> None:
    """Remove the rows at these positions."""
    if not len(positions):
        return
    if run.kept is None:
        run.kept = np.full((int(run.starts[-1]) + 7) // 8, 0xFF, dtype=np.uint8)
    np.bitwise_and.at(run.kept, positions >> 3, ~(np.uint8(0x80) >> (positions & 7).astype(np.uint8)))


def block_order(run: Run) -> NDArray[np.int64]:
    """The positions of all rows, also of removed ones, in the order of the block."""
    with pa.OSFile(str(run.path)) as file:
        return np.argsort(_open(file, ["number"]).read_all()["number"].to_numpy(), kind="stable")


def usable_rows(run: Run, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows, by position, no step removed and have a label id of at least 0 in `codes`."""
    with pa.OSFile(str(run.path)) as file:
        labels = _open(file, ["label"]).read_all()["label"].to_numpy()
    usable: NDArray[np.bool_] = codes[labels] >= 0
    return usable if run.kept is None else usable & _are_kept(run, np.arange(len(usable)))


def assign_splits(
    runs: Sequence[Run], batches: Sequence[pa.RecordBatch], order: NDArray[np.int64], splits: NDArray[np.int8]
) -> None:
    """Assign the rows of one bucket: `batches` is the result of `read_keys` for each run, and `splits` has the split of
    each row, in the order of their keys."""
    assigned = np.empty(len(order), dtype=np.int8)
    assigned[order] = splits
    ends = np.cumsum([batch.num_rows for batch in batches])[:-1]
    for run, batch, values in zip(runs, batches, np.split(assigned, ends), strict=True):
        if run.splits is None:
            run.splits = np.full(int(run.starts[-1]), TRAIN, dtype=np.int8)
        run.splits[batch["position"].to_numpy()] = values


def read_splits(run: Run, bucket: int) -> NDArray[np.int8]:
    """The assigned splits of the rows that `read_bucket` returns."""
    assert run.splits is not None, "splits are assigned before rows are written"
    return run.splits[_positions(run, bucket)]


def repeat_rows(run: Run, bucket: int, times: NDArray[np.uint8]) -> None:
    """Set how often the rows are written that `read_bucket` returns now. Rows with 0 are removed."""
    if run.repeats is None:
        run.repeats = np.ones(int(run.starts[-1]), dtype=np.uint8)
    run.repeats[_positions(run, bucket)] = times
    keep_rows(run, bucket, times > 0)


def read_repeats(run: Run, bucket: int) -> NDArray[np.uint8]:
    """How often the rows that `read_bucket` returns are written."""
    positions = _positions(run, bucket)
    return np.ones(len(positions), dtype=np.uint8) if run.repeats is None else run.repeats[positions]


def removed_since(run: Run, kept: NDArray[np.uint8] | None, most: int) -> list[int]:
    """The numbers of the first records, in the order of the block, that are removed and that `kept`, an earlier value
    of `Run.kept`, keeps."""
    if run.kept is None:
        return []
    lost = (np.full_like(run.kept, 0xFF) if kept is None else kept) & ~run.kept
    positions = np.flatnonzero(np.unpackbits(lost)[: int(run.starts[-1])])
    if not len(positions):
        return []
    with pa.OSFile(str(run.path)) as file:
        numbers = _open(file, ["number"]).read_all()["number"].to_numpy()[positions]
    found: list[int] = np.sort(numbers)[:most].tolist()
    return found


def _are_kept(run: Run, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    assert run.kept is not None, "all rows are kept"
    bits = run.kept[positions >> 3] << (positions & 7).astype(np.uint8)
    return np.asarray(bits & 0x80, dtype=np.bool_)


def _open(file: pa.NativeFile, columns: Sequence[str] | None) -> pa.ipc.RecordBatchFileReader:
    """A reader of these columns, in file order; None: all columns."""
    if columns is None:
        return pa.ipc.open_file(file)
    names = pa.ipc.open_file(file).schema.names
    return pa.ipc.open_file(
        file, options=pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns])
    )


def keep_rows(run: Run, bucket: int, is_kept: NDArray[np.bool_]) -> None:
    """Remove rows from the result of `read_bucket`; `is_kept` has a value for each row that it returns now."""
    remove_rows(run, _positions(run, bucket)[~is_kept])


def _positions(run: Run, bucket: int) -> NDArray[np.int64]:
    """The positions of the rows that `read_bucket` returns."""
    positions = np.arange(run.starts[bucket], run.starts[bucket + 1])
    return positions if run.kept is None else positions[_are_kept(run, positions)]


def with_numbers(batch: pa.RecordBatch, numbers: NDArray[np.int64]) -> pa.RecordBatch:
    """The batch with token labels mapped by `numbers`: `numbers[i]` replaces i; -1 is kept."""
    place = batch.schema.get_field_index("token labels")
    lists = batch.column(place)
    replaced = np.append(numbers, -1).astype(np.int32)[lists.values.to_numpy()]
    return batch.set_column(place, "token labels", pa.ListArray.from_arrays(lists.offsets, pa.array(replaced)))


def in_key_order(batches: Sequence[pa.RecordBatch]) -> tuple[pa.Table, NDArray[np.int64]]:
    """The rows of one bucket of several runs as one table, and the stable permutation that sorts them by key."""
    table = pa.Table.from_batches(batches).combine_chunks()
    return table, np.argsort(table["key"].to_numpy(), kind="stable")
