"""Preparation as an ordered list of steps, and what one of them is.

    read -> format -> (optional steps on examples) -> encode -> (optional steps on keys) -> split -> shards

The steps up to `encode` take one block of a file at a time and know nothing of the others, so blocks may be processed
in any number of processes, or on any number of machines. What depends on all rows at once sees of each row only a
64-bit key, its label and which file it is from, in the order of the keys. The key is a hash of label and text, or of
what a step chooses to compare.

The digest of a data set is made of the source files and of the name, the version and the parameters of every step; and
of the order of the files, if a step depends on it. Nothing else enters, so that neither a default that is spelled out
nor a field that the API gets later makes another data set.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
import pkgutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import BadRecordAction, Spec

from ..errors import BadDataError
from . import steps as optional_steps
from .formats import Example, Formatter
from .info import FORMAT_VERSION
from .problems import BadRecords, RecordProblem
from .readers import Block, Columns, Record, file_type
from .runs import Run, RunWriter
from .sources import SourceFile
from .tokenise import Encode, EncodedBatch, FastTokenizer, batches

Files = Mapping[str, tuple[SourceFile, ...]]
"""Split -> the files that the spec names for it."""


@dataclass
class Tally:
    """What one step counts in one block, or in all of them."""

    bad: BadRecords
    """Records that cannot be used: they stop the run, or are left out, by `spec.data.onBadRecord`."""
    counts: Counter[str] = field(default_factory=Counter)
    """Whatever the step reports."""
    dropped: int = 0
    """Rows that the step removes on purpose; dataset.json counts them under its name."""

    def merge(self, later: "Tally") -> None:
        """Add what was counted in the block that follows, but not its bad records."""
        self.counts.update(later.counts)
        self.dropped += later.dropped


Apply = Callable[[Iterator[Any], Tally], Iterator[Any]]
"""Takes the items of one block and gives those that the next step gets, in their order."""


@dataclass(frozen=True)
class KeyedRows:
    """Rows of all files whose keys are in one range, in the order of the keys.

    Rows with equal keys are in the order of the files, which are sorted by address, and of the records in them.
    """

    keys: NDArray[np.uint64]
    """(rows,): a keyed hash of label and text, or of what the step's `key` returns. Equal rows have equal keys."""
    labels: NDArray[np.int64]
    """(rows,): the number of the label; 0 where there are no labels."""
    splits: NDArray[np.int8]
    """(rows,): TRAIN, VALIDATION or TEST (`splits.py`), by the field of the spec that names the file. Training files
    come first among equal keys."""


ApplyToKeys = Callable[[KeyedRows, Tally], NDArray[np.bool_]]
"""Which rows to keep, shape (rows,)."""


def no_remarks(_counts: Counter[str]) -> tuple[str, ...]:
    """For a step that has nothing to say."""
    return ()


@dataclass(frozen=True)
class Step:
    """A step with its parameters. Pickled for worker processes: by reference to its function's module."""

    name: str
    version: int
    """Raised when the same parameters would give other rows."""
    parameters: Mapping[str, Any]
    """Resolved, as JSON: part of the digest. What does not change rows stays out."""
    apply: Any
    """An Apply, an ApplyToKeys, or of the step `split` a function that makes a Splitter."""
    report: Callable[[Counter[str]], tuple[str, ...]] = no_remarks
    """What a user should know, one line each, by the counts of all blocks."""
    key: Callable[[Example], str] | None = None
    """Of a step on keys: what it compares rows by. None: label and text."""
    depends_on_file_order: bool = False
    """Whether other rows may result when the same files come in another order, as after a renaming. Then the order is
    part of the digest."""


@dataclass(frozen=True)
class DataStep:
    """An optional step: `STEP` of a module in `steps/`.

    `parameters` resolves a typed field of the spec to a dataclass of JSON values; None: the step is not enabled, and
    then the digest does not change by its existence. `apply` gets the dataclass first.
    """

    name: str
    version: int
    order: int
    """Among the optional steps; those of equal order go by name."""
    parameters: Callable[[Spec], Any]
    apply: Callable[..., Any]
    report: Callable[[Counter[str]], tuple[str, ...]] = no_remarks
    on_keys: bool = False
    """`apply` is an ApplyToKeys, not an Apply."""
    key: Callable[[Any, Example], str] | None = None
    """Only with `on_keys`. (parameters, example) -> the text that rows are compared by: those for which it is equal get
    equal keys. None: label and text. Costs, on disk, 8 bytes a row in the rows' file and 20 bytes in another one."""
    depends_on_file_order: bool = False
    """See `Step`."""

    def of(self, spec: Spec) -> Step | None:
        """The step as this spec wants it; None where it does not."""
        parameters = self.parameters(spec)
        if parameters is None:
            return None
        return Step(
            self.name,
            self.version,
            dataclasses.asdict(parameters),
            functools.partial(self.apply, parameters),
            self.report,
            None if self.key is None else functools.partial(self.key, parameters),
            self.depends_on_file_order,
        )


def optional(spec: Spec, *, on_keys: bool) -> list[Step]:
    """The optional steps that the spec enables, in their order."""
    names = [module.name for module in pkgutil.iter_modules(optional_steps.__path__)]
    modules = [importlib.import_module(f"{optional_steps.__name__}.{name}") for name in names]
    found: list[DataStep] = sorted((module.STEP for module in modules), key=lambda step: (step.order, step.name))
    enabled = (step.of(spec) for step in found if step.on_keys == on_keys)
    return [step for step in enabled if step is not None]


def dataset_digest(files: Files, steps: Iterable[Step]) -> str:
    """SHA-256 of what the rows depend on: contents and types of the files, not their names; the steps."""
    steps = tuple(steps)
    ordered = list if any(step.depends_on_file_order for step in steps) else sorted
    depends_on = {
        "version": FORMAT_VERSION,
        "files": {split: ordered((file_type(file), file.sha256) for file in found) for split, found in files.items()},
        "steps": [[step.name, step.version, dict(step.parameters)] for step in steps],
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def format_records(formatter: Formatter, records: Iterator[Record], tally: Tally) -> Iterator[Example]:
    """The step `format`: an example for each record that can be used."""
    for record in records:
        try:
            yield formatter(record.values, record.place)
        except RecordProblem as problem:
            tally.bad.add(str(record.place), problem)
    tally.counts.update(formatter.take_counts())


def encode_examples(
    encode: Encode, tokenizer: FastTokenizer, max_length: int, examples: Iterator[Example], tally: Tally
) -> Iterator[EncodedBatch]:
    """The step `encode`: rows of tokens, a batch of examples at a time."""
    for batch in batches(examples):
        started = time.perf_counter_ns()
        encoded = encode(batch, tokenizer, max_length)
        tally.counts[ENCODE_NS] += time.perf_counter_ns() - started
        yield encoded


ENCODE_NS = "encode nanoseconds"


@dataclass(frozen=True)
class BlockPlan:
    """All that a process needs to make the rows of a block."""

    steps: tuple[Step, ...]
    """Those up to `encode`."""
    columns: Columns
    action: BadRecordAction
    seed: int
    """Of the keys."""
    buckets: int
    wide: bool
    """Whether token ids need more than 16 bits."""
    folder: Path
    """Where the rows are kept until all blocks are done."""
    step_keys: Mapping[str, Callable[[Example], str]] = field(default_factory=dict)
    """Name of a step on keys -> what it compares rows by, for those that do not use label and text."""


@dataclass(frozen=True)
class BlockResult:
    """What came of a block; its rows are on disk."""

    records: int
    """That were read, also those that were left out later."""
    tallies: dict[str, Tally]
    """Name of the step -> what it counted."""
    bad: BadRecords
    run: Run | None
    """None: no rows."""
    seconds: float
    error: BadDataError | None = None
    """Why reading ended within the block."""


def process_block(plan: BlockPlan, block: Block, number: int) -> BlockResult:
    """Apply the steps to a block and write its rows as the run of that number."""
    started = time.perf_counter()
    bad = BadRecords(plan.action)
    tallies = {step.name: Tally(bad) for step in plan.steps}
    path = plan.folder / f"{number:06d}.arrow"
    writer = RunWriter(path, plan.seed, plan.buckets, plan.step_keys, wide=plan.wide)
    records = 0

    def counted() -> Iterator[Record]:
        nonlocal records
        for record in block.read(bad, plan.columns):
            records += 1
            yield record

    items: Iterator[Any] = counted()
    for step in plan.steps:
        items = step.apply(items, tallies[step.name])
    run, error = None, None
    try:
        for batch in items:
            writer.add(batch)
        run = writer.finish(block.file.uri)
    except BadDataError as raised:
        error = raised
    return BlockResult(records, tallies, bad, run, time.perf_counter() - started, error)
