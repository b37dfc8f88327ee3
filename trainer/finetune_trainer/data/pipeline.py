"""Data preparation as an ordered list of steps, and the interface of a step.

    read -> (texts) -> format -> (examples) -> (augmentation) -> encode -> (keys) -> (features) -> split -> (features)
         -> (few-shot) -> (weights) -> shards

The optional steps, in parentheses, are named by what they see (`Phase`), except three with their own modules:
`augmentation` adds copies to examples, which no later step sees until they are written, `few_shot.py` selects rows of
the training split, and `source_weights.py` repeats or leaves out rows of it.

The steps up to `encode` process one block of a file at a time, independently of other blocks, so blocks can be
processed by any number of processes or machines. Steps that depend on all rows see only a 64-bit key per row, its
label and its source file, in key order. The key is a hash of label and text, or of
what a step compares rows by.

The digest of a dataset covers the source files and the name, version and parameters of every step, and the order of
the files if a step depends on it. It covers nothing else, so spelling out a default or a field that a later API version
adds does not create another dataset.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
import pkgutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import BadRecordAction, Spec

from ..errors import BadDataError
from . import steps as optional_steps
from .formats import Example, Formatter
from .info import FORMAT_VERSION, ShownRecord
from .problems import BadRecords, Place, RecordProblem
from .readers import Block, Columns, Record, file_type
from .runs import Features, MakeFeatures, Run, RunWriter
from .shown_records import MOST_EXAMPLES, shown_change
from .sources import SourceFile
from .tokenize import Encode, EncodedBatch, FastTokenizer, batches

Files = Mapping[str, tuple[SourceFile, ...]]
"""Split -> the files that the spec names for it."""


@dataclass
class Tally:
    """What one step counts, in one block or in all of them."""

    bad: BadRecords
    """Unusable records: they stop the run or are dropped, according to `spec.data.onBadRecord`."""
    counts: Counter[str] = field(default_factory=Counter)
    """Anything that the step reports."""
    dropped: int = 0
    """Rows that the step removes intentionally; dataset.json counts them under the step's name."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Reason -> how many of these rows it removes for it, if it has several."""
    changed: int = 0
    """Records whose text the step changes."""
    added: int = 0
    """Changed copies of records that are written to the training split."""
    examples: list[ShownRecord] = field(default_factory=list)
    """The first records that the step removes or changes."""
    in_training: bool = True
    """Whether the block is of a file of `spec.data.train`. A step must not remove records of held-out files."""

    def show(self, place: Place, text: str) -> None:
        """Add an example to the report of the step, unless it has enough of them. `text` must be safe to print."""
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(ShownRecord(place=str(place), text=text))

    def drop(self, place: Place, reason: str, text: str) -> None:
        """Count a row that the step removes for one of several reasons, and show it."""
        self.dropped += 1
        self.reasons[reason] += 1
        self.show(place, text)

    def merge(self, later: "Tally") -> None:
        """Add the counts of the next block, without its bad records."""
        self.counts.update(later.counts)
        self.dropped += later.dropped
        self.reasons.update(later.reasons)
        self.changed += later.changed
        self.added += later.added
        self.examples += later.examples[: MOST_EXAMPLES - len(self.examples)]


EMPTIED_HELD_OUT = "held-out records emptied"
"""Count of a step on texts with `is_emptied`."""
COMPARED, REMOVED = "training rows compared", "training rows removed"
"""Counts of a step on features."""

Apply = Callable[[Iterator[Any], Tally], Iterator[Any]]
"""Maps the items of one block to the items that the next step gets, in order."""


@dataclass(frozen=True)
class KeyedRows:
    """Rows of all files whose keys are in one range, in key order.

    Rows with equal keys are in the order of the files (sorted by address) and of the records in a file.
    """

    keys: NDArray[np.uint64]
    """(rows,): a keyed hash of label and text, or of what the step's `key` returns. Equal rows have equal keys."""
    labels: NDArray[np.int64]
    """(rows,): the label id; 0 if there are no labels."""
    splits: NDArray[np.int8]
    """(rows,): TRAIN, VALIDATION or TEST (`splits.py`), by the field of the spec that names the file. Among equal keys,
    training files come first."""


ApplyToKeys = Callable[[KeyedRows, Tally], NDArray[np.bool_]]
"""Which rows to keep, shape (rows,)."""


def no_remarks(_counts: Counter[str]) -> tuple[str, ...]:
    """For a step without remarks."""
    return ()


@dataclass(frozen=True)
class Step:
    """A step with its parameters. Pickled for worker processes, so `apply` must be importable from its module."""

    name: str
    version: int
    """Increased when the same parameters would give different rows."""
    parameters: Mapping[str, Any]
    """Resolved, as JSON: part of the digest. Parameters that do not change rows are omitted."""
    apply: Any
    """An Apply or an ApplyToKeys; for the step `split`, a function that makes a Splitter."""
    report: Callable[[Counter[str]], tuple[str, ...]] = no_remarks
    """Remarks for the user, one line each, from the counts of all blocks."""
    key: Callable[[Example], str] | None = None
    """For steps on keys: what the step compares rows by. None: label and text."""
    features: MakeFeatures | None = None
    """For steps on features: what the step compares rows by."""
    after_split: bool = False
    """See `DataStep`."""
    depends_on_file_order: bool = False
    """Whether the rows may change when the files come in another order, for example after renaming. If so, the order is
    part of the digest."""


class Phase(Enum):
    """What an optional step sees."""

    TEXTS = "texts"
    """Each text of a record before it is formatted, in all splits. `apply` is (parameters, text) -> text."""
    EXAMPLES = "examples"
    """The formatted records of one block. `apply` is (parameters, examples, tally) -> examples."""
    FEATURES = "features"
    """What rows have in common with others, in all files. `apply` is (parameters, Comparison) -> whether to remove each
    row; see `comparison.py`."""
    KEYS = "keys"
    """A key, the label and the source split of every row. `apply` is (parameters, KeyedRows, tally) -> rows to keep."""


@dataclass(frozen=True)
class DataStep:
    """An optional step: `STEP` of a module in `steps/`.

    `parameters` resolves a typed field of the spec to a dataclass of JSON values. It returns None if the step is not
    enabled; the digest then does not depend on the step. `apply` gets the dataclass as its first argument.
    """

    name: str
    version: int
    order: int
    """Position among the optional steps of its phase; ties are ordered by name."""
    parameters: Callable[[Spec], Any]
    apply: Callable[..., Any]
    report: Callable[[Counter[str]], tuple[str, ...]] = no_remarks
    phase: Phase = Phase.EXAMPLES
    key: Callable[[Any, Example], str] | None = None
    """Only for keys. (parameters, example) -> the text that rows are compared by: equal texts get equal keys.
    None: label and text. Takes 8 bytes per row in the file of the rows and 20 bytes in another file on disk."""
    depends_on_file_order: bool = False
    """See `Step`."""
    features: Callable[[Any, Sequence[Example]], Features] | None = None
    """Only for features. (parameters, examples) -> what they are compared by."""
    after_split: bool = False
    """Only for features. Whether training rows are compared only with rows of held-out splits, also those that are a
    fraction of the training files. If not, the step runs before fractions are held out."""
    is_emptied: Callable[[Any, Sequence[str]], bool] | None = None
    """Only for texts. (parameters, changed texts of a record) -> whether nothing is left to learn from. Such training
    records are dropped, and such records of held-out files are counted."""
    shown: Callable[[str, str], str | None] = shown_change
    """Only for texts. (text, changed text) -> the example in the report; None: the record is not shown."""

    def of(self, spec: Spec, formatter: Formatter | None = None) -> Step | None:
        """The step for this spec; None if it is not enabled. Steps on texts need the formatter."""
        parameters = self.parameters(spec)
        if parameters is None:
            return None
        apply = functools.partial(self.apply, parameters)
        if self.phase is Phase.TEXTS:
            assert formatter is not None, "the format decides which values are texts"
            is_emptied = None if self.is_emptied is None else functools.partial(self.is_emptied, parameters)
            apply = functools.partial(change_texts, formatter, apply, is_emptied, self.shown)
        return Step(
            self.name,
            self.version,
            dataclasses.asdict(parameters),
            apply,
            self.report,
            key=None if self.key is None else functools.partial(self.key, parameters),
            features=None if self.features is None else functools.partial(self.features, parameters),
            after_split=self.after_split,
            depends_on_file_order=self.depends_on_file_order,
        )


def optional(spec: Spec, phase: Phase, formatter: Formatter | None = None) -> list[Step]:
    """The optional steps of a phase that the spec enables, in order."""
    names = [module.name for module in pkgutil.iter_modules(optional_steps.__path__)]
    modules = [importlib.import_module(f"{optional_steps.__name__}.{name}") for name in names]
    found: list[DataStep] = sorted((module.STEP for module in modules), key=lambda step: (step.order, step.name))
    enabled = (step.of(spec, formatter) for step in found if step.phase is phase)
    return [step for step in enabled if step is not None]


def dataset_digest(files: Files, steps: Iterable[Step]) -> str:
    """SHA-256 of what the rows depend on: contents and types of the files (not their names), and the steps."""
    steps = tuple(steps)
    ordered = list if any(step.depends_on_file_order for step in steps) else sorted
    depends_on = {
        "version": FORMAT_VERSION,
        "files": {split: ordered((file_type(file), file.sha256) for file in found) for split, found in files.items()},
        "steps": [[step.name, step.version, dict(step.parameters)] for step in steps],
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def change_texts(
    formatter: Formatter,
    change: Callable[[str], str],
    is_emptied: Callable[[Sequence[str]], bool] | None,
    shown: Callable[[str, str], str | None],
    records: Iterator[Record],
    tally: Tally,
) -> Iterator[Record]:
    """A step on texts: the records with their changed texts. Unusable records are left to the step `format`."""
    for record in records:
        texts: list[tuple[str, str]] = []

        def changed(text: str, texts: list[tuple[str, str]] = texts) -> str:
            texts.append((text, change(text)))
            return texts[-1][1]

        try:
            values = formatter.with_texts(record.values, record.place, changed)
        except RecordProblem:
            yield record
            continue
        different = next(((before, after) for before, after in texts if before != after), None)
        if different is None:
            yield record
            continue
        if len(tally.examples) < MOST_EXAMPLES and (text := shown(*different)) is not None:
            tally.show(record.place, text)
        if is_emptied is not None and is_emptied([after for _, after in texts]):
            if tally.in_training:
                tally.dropped += 1
                continue
            tally.counts[EMPTIED_HELD_OUT] += 1
        tally.changed += 1
        yield Record(values, record.place)


def format_records(formatter: Formatter, records: Iterator[Record], tally: Tally) -> Iterator[Example]:
    """The step `format`: one example for each usable record."""
    for record in records:
        try:
            example = formatter(record.values, record.place)
            if formatter.group_by is not None and tally.in_training:
                example = dataclasses.replace(example, group=formatter.group(record.values))
            yield example
        except RecordProblem as problem:
            tally.bad.add(str(record.place), problem)
    tally.counts.update(formatter.take_counts())


def group_of(example: Example) -> str:
    """The key of rows that must be in the same split."""
    return example.group


def encode_examples(
    encode: Encode, tokenizer: FastTokenizer, max_length: int, examples: Iterator[Example], tally: Tally
) -> Iterator[EncodedBatch]:
    """The step `encode`: rows of tokens, one batch of examples at a time."""
    for batch in batches(examples):
        started = time.perf_counter_ns()
        encoded = encode(batch, tokenizer, max_length)
        if batch[0].copies is not None:
            copies = (copy for example in batch for copy in example.copies or ())
            encoded = dataclasses.replace(
                encoded, copies=tuple(encode(part, tokenizer, max_length) for part in batches(copies))
            )
        tally.counts[ENCODE_NS] += time.perf_counter_ns() - started
        yield encoded


ENCODE_NS = "encode nanoseconds"


@dataclass(frozen=True)
class BlockPlan:
    """Everything that a process needs to make the rows of a block."""

    steps: tuple[Step, ...]
    """The steps up to `encode`."""
    columns: Columns
    action: BadRecordAction
    seed: int
    """Seed of the keys."""
    buckets: int
    wide: bool
    """Whether token ids need more than 16 bits."""
    folder: Path
    """Folder for the rows until all blocks are processed."""
    step_keys: Mapping[str, Callable[[Example], str]] = field(default_factory=dict)
    """Step on keys -> what it compares rows by, for steps that do not use label and text."""
    features: Mapping[str, MakeFeatures] = field(default_factory=dict)
    """Step on features -> what it compares rows by."""


@dataclass(frozen=True)
class BlockResult:
    """The result of a block; its rows are on disk."""

    records: int
    """Records read, including those that were dropped later."""
    tallies: dict[str, Tally]
    """Step name -> its counts."""
    bad: BadRecords
    run: Run | None
    """None: no rows."""
    seconds: float
    error: BadDataError | None = None
    """Why reading stopped within the block."""


def process_block(plan: BlockPlan, block: Block, number: int) -> BlockResult:
    """Apply the steps to a block and write its rows as run `number`."""
    started = time.perf_counter()
    bad = BadRecords(plan.action)
    in_training = block.file.split == "train"
    tallies = {step.name: Tally(bad, in_training=in_training) for step in plan.steps}
    path = plan.folder / f"{number:06d}.arrow"
    writer = RunWriter(path, plan.seed, plan.buckets, plan.step_keys, wide=plan.wide, features=plan.features)
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
