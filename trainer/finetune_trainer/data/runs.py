"""Encoded rows on local disk, between the steps that see one block and those that see the keys of all rows.

A run holds the rows of one block, sorted by key, as Arrow record batches: one for each bucket, a range of keys. Taking
the same bucket out of every run gives all rows of that range, so that the rows of a data set of any size can be visited
in the order of their keys with the memory for one bucket.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..store.faults import disk_errors
from .formats import Example
from .labels import canonical_name
from .splits import row_keys
from .tokenise import EncodedBatch


@dataclass
class Run:
    """Where the rows of one block are, and what is known of them without reading."""

    path: Path
    uri: str
    """The file that the records are from."""
    unit: str
    """What the numbers of its records count: `line`, `row` or `element`."""
    spellings: tuple[str, ...]
    """Labels as they are written, by the numbers in the column `label`."""
    counts: NDArray[np.int64]
    """(spellings,): examples with each of them."""
    columns: tuple[str, ...]
    has_other_keys: bool
    """Whether keys depend on what `1.0` means: then a column has those for the case that it is not `1`."""
    starts: NDArray[np.int64]
    """(buckets + 1,): the position of the first row of each bucket, and at the end the number of rows."""
    token_spellings: tuple[str, ...] = ()
    """Labels of tokens as they are written, by the numbers in the column `token labels`."""
    token_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(token_spellings,): tokens with each of them."""
    kept: NDArray[np.uint8] | None = None
    """(ceil(rows / 8),): one bit for each row, by its position; None: no step has removed one."""


class RunWriter:
    """Collects the rows of a block and writes them sorted by key."""

    def __init__(
        self, path: Path, seed: int, buckets: int, step_keys: Mapping[str, Callable[[Example], str]], *, wide: bool
    ) -> None:
        self._path = path
        self._seed = seed
        self._buckets = buckets
        self._step_keys = step_keys
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
        if batch.loss is not None:
            columns["loss"] = pa.ListArray.from_arrays(token_ends, pa.array(batch.loss))
        if batch.token_labels is not None:
            numbers = np.array([*places, -1], dtype=np.int32)[batch.token_labels]
            columns["token labels"] = pa.ListArray.from_arrays(token_ends, pa.array(numbers))
        self._batches.append(pa.RecordBatch.from_pydict(columns))

    def finish(self, uri: str) -> Run | None:
        """Write the file. None, and no file, where there are no examples. Raises DiskFullError."""
        if not self._batches:
            return None
        table = pa.Table.from_batches(self._batches)
        if not self._has_other_keys:
            table = table.drop_columns("other key")
        starts = _write_sorted(self._path, table, self._buckets)
        columns = tuple(table.column_names)
        counts = np.bincount(table["label"].to_numpy(), minlength=len(self._spellings)).astype(np.int64)
        run = Run(self._path, uri, self._unit, tuple(self._spellings), counts, columns, self._has_other_keys, starts)
        if "token labels" in columns:
            numbers = table["token labels"].combine_chunks().flatten().to_numpy()
            run.token_spellings = tuple(self._token_spellings)
            run.token_counts = np.bincount(numbers[numbers >= 0], minlength=len(run.token_spellings)).astype(np.int64)
        return run

    def _keys(self, batch: EncodedBatch, names: dict[str, str]) -> NDArray[np.uint64]:
        def written(example: Example) -> str:
            labels = (names[label] for label in example.span_labels) if example.span_labels else (names[example.label],)
            return "\n".join(labels)

        return row_keys([f"{written(each)}\0{each.text}" for each in batch.examples], self._seed)


def _column_of(step: str) -> str:
    """The column that has the keys of a step."""
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
    """Sort a run by its other keys, in place."""
    with pa.OSFile(str(run.path)) as file:
        table = pa.ipc.open_file(file).read_all()
    # Rows of a block with equal keys have to be in the order of the block, as they are after the first sorting.
    table = table.sort_by("number")
    table = table.set_column(0, "key", table["other key"]).drop_columns("other key")
    run.starts = _write_sorted(run.path, table, buckets)
    run.has_other_keys = False


def read_bucket(run: Run, bucket: int, columns: Sequence[str] | None = None) -> pa.RecordBatch:
    """The rows of a run in one bucket that no step has removed, sorted by key; absent `columns`: with all of them."""
    with pa.OSFile(str(run.path)) as file:
        batch = _open(file, columns).get_batch(bucket)
    if run.kept is None:
        return batch
    return batch.filter(pa.array(_are_kept(run, np.arange(run.starts[bucket], run.starts[bucket + 1]))))


def sort_by_step_key(run: Run, step: str, buckets: int) -> Path:
    """Write key, label and position of the rows of a run, in the order of the step's own key, for `read_keys`.

    Rows with equal keys are in the order of the block. Another step with a key of its own replaces the file.
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
    """Key, label and position in the run of the rows in one bucket that no step has removed, sorted by key.

    `path`: the file that `sort_by_step_key` wrote. None: by the keys of the run.
    """
    with pa.OSFile(str(path or run.path)) as file:
        batch = _open(file, ["key", "label"] if path is None else None).get_batch(bucket)
    if path is None:
        positions = np.arange(run.starts[bucket], run.starts[bucket + 1])
        batch = pa.RecordBatch.from_pydict({"key": batch["key"], "label": batch["label"], "position": positions})
    return batch if run.kept is None else batch.filter(pa.array(_are_kept(run, batch["position"].to_numpy())))


def remove_rows(run: Run, positions: NDArray[np.int64]) -> None:
    """Leave out the rows at these positions from now on."""
    if not len(positions):
        return
    if run.kept is None:
        run.kept = np.full((int(run.starts[-1]) + 7) // 8, 0xFF, dtype=np.uint8)
    np.bitwise_and.at(run.kept, positions >> 3, ~(np.uint8(0x80) >> (positions & 7).astype(np.uint8)))


def _are_kept(run: Run, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    assert run.kept is not None, "all rows are kept"
    bits = run.kept[positions >> 3] << (positions & 7).astype(np.uint8)
    return np.asarray(bits & 0x80, dtype=np.bool_)


def _open(file: pa.NativeFile, columns: Sequence[str] | None) -> pa.ipc.RecordBatchFileReader:
    """A reader of these columns, in the order of the file; absent: of all."""
    if columns is None:
        return pa.ipc.open_file(file)
    names = pa.ipc.open_file(file).schema.names
    return pa.ipc.open_file(
        file, options=pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns])
    )


def keep_rows(run: Run, bucket: int, is_kept: NDArray[np.bool_]) -> None:
    """Remove rows from what `read_bucket` gives; `is_kept` has a value for each row that it gives now."""
    positions = np.arange(run.starts[bucket], run.starts[bucket + 1])
    if run.kept is not None:
        positions = positions[_are_kept(run, positions)]
    remove_rows(run, positions[~is_kept])


def with_numbers(batch: pa.RecordBatch, numbers: NDArray[np.int64]) -> pa.RecordBatch:
    """The batch with other numbers for the labels of tokens: `numbers[i]` in place of i; -1 stays."""
    place = batch.schema.get_field_index("token labels")
    lists = batch.column(place)
    replaced = np.append(numbers, -1).astype(np.int32)[lists.values.to_numpy()]
    return batch.set_column(place, "token labels", pa.ListArray.from_arrays(lists.offsets, pa.array(replaced)))


def in_key_order(batches: Sequence[pa.RecordBatch]) -> tuple[pa.Table, NDArray[np.int64]]:
    """The rows of the same bucket of several runs as one table, and their order by key; equal keys stay in order."""
    table = pa.Table.from_batches(batches).combine_chunks()
    return table, np.argsort(table["key"].to_numpy(), kind="stable")
