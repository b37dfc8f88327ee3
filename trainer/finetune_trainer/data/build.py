"""Builds a dataset in object storage: processes blocks of files, assigns splits, writes shards, then dataset.json."""

import dataclasses
import functools
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from finetune_api.run_layout import dataset_folder
from finetune_api.trainer_config import SplitCounts, TrainerConfig
from finetune_api.v1alpha1 import BadRecordAction, Holdout, Spec, Task

from ..errors import BadConfigError, BadDataError, StorageProtocolError
from ..progress import ProgressReporter
from ..store.client import ObjectStore
from ..store.uri import join
from ..tasks import TASKS
from . import few_shot, source_weights, splits
from .augmentation import Augmentation
from .augmentation import step as augmentation_step
from .augmentation.step import CopiesPerClass, augment_examples
from .chat import TEMPLATE_DATE
from .comparison import Comparison
from .formats import FORMATS, Formatter
from .info import (
    DATASET_FILE,
    FORMAT_VERSION,
    SPLITS,
    DatasetInfo,
    RuleInfo,
    SourceInfo,
    WeightInfo,
    read_dataset_info,
    reasons_text,
)
from .labels import canonical_name, canonical_names, check_label_column, label_names, unknown_label
from .pipeline import (
    COMPARED,
    ENCODE_NS,
    REMOVED,
    BlockPlan,
    BlockResult,
    Files,
    KeyedRows,
    Phase,
    Step,
    Tally,
    encode_examples,
    format_records,
    group_of,
    optional,
)
from .problems import BadRecords, Place, listed, shown
from .readers import BLOCK_BYTES, blocks, unread_columns
from .runs import (
    Run,
    assign_splits,
    block_order,
    copies_of,
    in_key_order,
    keep_rows,
    read_bucket,
    read_keys,
    read_repeats,
    read_splits,
    remove_rows,
    removed_since,
    repeat_rows,
    sort_by_step_key,
    usable_rows,
    use_other_keys,
    with_numbers,
)
from .shards import ShardWriter
from .shown_records import MOST_EXAMPLES, is_private, shown_change
from .splits import Share, Splitter, split_groups
from .tokenize import FastTokenizer
from .workers import process_blocks, worker_count

log = logging.getLogger("finetune")

_LISTED_LABELS = 5
_EXAMINED = 100
"""Records of a bucket among which examples of copies are searched."""
_BUCKET_BYTES = 32 << 20
"""Approximate size of the text whose rows are sorted in memory at a time."""
_LARGEST_BLOCK = 8 << 20
_BLOCKS = 64
"""Target number of blocks, as long as a block has 1 to 8 MiB."""
_COMPRESSED = {".gz": 5, ".parquet": 3}
"""Suffix -> approximate number of bytes of text per byte of the file."""

SPLIT_CODES = {"train": splits.TRAIN, "validation": splits.VALIDATION, "test": splits.TEST}


@dataclass(frozen=True)
class Inputs:
    """Everything except the spec that the rows of a dataset depend on."""

    files: Files
    formatter: Formatter
    tokenizer: Any
    tokenizer_digest: str
    task: Task
    max_length: int
    augmentation: Augmentation | None = None


@dataclass(frozen=True)
class Steps:
    """The steps of a job, in order."""

    on_examples: tuple[Step, ...]
    """From `format` to `encode`; each runs on one block at a time."""
    on_keys: tuple[Step, ...]
    """Optional steps that run on the keys of all rows."""
    on_features: tuple[Step, ...]
    """Optional steps that compare rows by their features."""
    split: Step
    optional: tuple[str, ...] = ()
    """Names of the optional steps in `on_examples`."""
    few_shot: Step | None = None
    """Selects training rows after all other steps."""
    weights: Step | None = None
    """Repeats training rows or leaves them out, after all other steps."""

    @property
    def rules(self) -> tuple[Step, ...]:
        """The optional steps, in order."""
        on_examples = (step for step in self.on_examples if step.name in self.optional)
        return (*on_examples, *self.on_keys, *self.on_features, *self._last)

    @property
    def _last(self) -> tuple[Step, ...]:
        return tuple(step for step in (self.few_shot, self.weights) if step is not None)

    def __iter__(self) -> Iterator[Step]:
        return iter((*self.on_examples, *self.on_keys, *self.on_features, self.split, *self._last))


def steps_of(spec: Spec, inputs: Inputs) -> Steps:
    """The steps that make the rows. Raises BadConfigError for `stratify` without labels."""
    data, formatter = spec.data, inputs.formatter
    form, encode = format_step(data.on_bad_record, formatter), encode_step(inputs)
    shares = {name: _share(getattr(data, name), name, inputs.task) for name in ("validation", "test")}
    split = Step(
        "split",
        1 if formatter.group_by is None else 2,
        {"seed": spec.training.seed}
        | {name: [share.fraction, share.fraction > 0 and share.stratify] for name, share in shares.items()}
        | ({} if formatter.group_by is None else {"group by": formatter.group_by}),
        functools.partial(
            Splitter if formatter.group_by is None else split_groups,
            validation=shares["validation"],
            test=shares["test"],
        ),
        key=None if formatter.group_by is None else group_of,
    )
    texts, examples, keys, features = (
        optional(spec, phase, formatter) for phase in (Phase.TEXTS, Phase.EXAMPLES, Phase.KEYS, Phase.FEATURES)
    )
    examples += _augmentation_steps(inputs.augmentation)
    return Steps(
        on_examples=(*texts, form, *examples, encode),
        on_keys=tuple(keys),
        on_features=tuple(features),
        split=split,
        optional=tuple(step.name for step in texts + examples),
        few_shot=_few_shot_step(spec),
        weights=_weights_step(spec, inputs),
    )


def format_step(action: BadRecordAction, formatter: Formatter) -> Step:
    """The step that makes examples of records."""
    parameters: dict[str, Any] = {
        "format": formatter.data_format,
        "columns": {field: list(names) for field, names in formatter.fields.items()},
        "skips bad records": action is BadRecordAction.SKIP,
    }
    if formatter.renderer is not None:
        parameters["template date"] = TEMPLATE_DATE.isoformat()
    if formatter.train_on_inputs:
        parameters["trains on inputs"] = True
    version = FORMATS[formatter.data_format].version
    return Step("format", version, parameters, functools.partial(format_records, formatter), formatter.remarks)


def encode_step(inputs: Inputs) -> Step:
    """The step that makes rows of tokens of examples."""
    return Step(
        "encode",
        1,
        {"task": inputs.task, "tokenizer": inputs.tokenizer_digest, "max length": inputs.max_length},
        functools.partial(
            encode_examples, TASKS[inputs.task].encode, FastTokenizer.of(inputs.tokenizer), inputs.max_length
        ),
    )


def _augmentation_steps(augmentation: Augmentation | None) -> list[Step]:
    if augmentation is None:
        return []
    apply = functools.partial(augment_examples, augmentation)
    return [Step(augmentation_step.NAME, 1, augmentation.parameters, apply)]


def _few_shot_step(spec: Spec) -> Step | None:
    parameters = few_shot.parameters(spec)
    if parameters is None:
        return None
    return Step(few_shot.NAME, 1, dataclasses.asdict(parameters), functools.partial(few_shot.Subset, parameters))


def _weights_step(spec: Spec, inputs: Inputs) -> Step | None:
    parameters = source_weights.parameters(spec, inputs.files.get("train", ()))
    if parameters is None:
        return None
    apply = functools.partial(source_weights.Repeats, [source.weight for source in spec.data.train])
    return Step(source_weights.NAME, 1, dataclasses.asdict(parameters), apply)


def _share(holdout: Holdout, name: str, task: Task) -> Share:
    has_labels = TASKS[task].support.labels_records
    if holdout.stratify and not has_labels:
        raise BadConfigError(
            f"spec.data.{name}.stratify: the records have no labels to keep the shares of", advice="remove stratify"
        )
    stratify = has_labels and holdout.group_by is None if holdout.stratify is None else holdout.stratify
    return Share(holdout.fraction or 0.0, stratify)


def build_dataset(
    config: TrainerConfig,
    inputs: Inputs,
    steps: Steps,
    digest: str,
    store: ObjectStore,
    scratch: Path,
    report: ProgressReporter,
) -> DatasetInfo:
    """Build the dataset and commit it. `scratch` is a folder for rows that are not in shards yet.

    Raises BadDataError for unusable records, labels or splits, and DiskFullError where `scratch` is full.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="rows-") as folder:
        return _build(config, inputs, steps, digest, store, Path(folder), report)


def _build(
    config: TrainerConfig,
    inputs: Inputs,
    steps: Steps,
    digest: str,
    store: ObjectStore,
    folder: Path,
    report: ProgressReporter,
) -> DatasetInfo:
    spec, dataset_uri = config.spec, dataset_folder(config.output_uri, digest)
    rows = _process(spec, inputs, steps, folder, report)
    with report.phase("split", "splitting"):
        remarks = inputs.formatter.remarks(rows.tallies["format"].counts) + _unread_columns(inputs) + rows.name_labels()
        support = TASKS[inputs.task].support
        labels = rows.check_labels(of_tokens=support.labels_tokens) if support.has_labels else ()
        rows.bad.raise_if_any()
        rows.number_labels(labels, of_tokens=support.labels_tokens)
        rows.apply_to_keys(steps.on_keys)
        rows.apply_to_features([step for step in steps.on_features if not step.after_split])
        removed = _removed_text(rows.tallies)
        sizes = rows.training_sizes()
        remarks += _check_labels_left(labels, sizes, removed)
        if steps.split.key is None:
            splitter = rows.splitter(steps.split, sizes)
            if splitter.too_small:
                names = listed([labels[label] for label in splitter.too_small], most=_LISTED_LABELS)
                remarks += (f"{len(splitter.too_small):,} labels have too few records to be in every split: {names}",)
            _check_counts(rows.counts(splitter.counts), spec, removed)
            rows.assign(splitter)
        else:
            assigned = rows.assign_groups(steps.split, spec)
            remarks += _group_remarks(assigned, spec)
            _check_counts(rows.counts(assigned), spec, removed)
        rows.apply_to_features([step for step in steps.on_features if step.after_split])
        if steps.few_shot is not None:
            remarks += rows.take_subset(steps.few_shot, labels)
        weights: tuple[WeightInfo, ...] = ()
        if steps.weights is not None:
            weights = rows.apply_weights(steps.weights, spec)
        removed = _removed_text(rows.tallies)
    for step in steps.rules:
        tally = rows.tallies[step.name]
        remarks += step.report(tally.counts) + _reasons_remark(step.name, tally)
        rows.bad.dropped[step.name] += tally.dropped
    with report.phase("write", "writing shards"):
        written = {split: _SplitWriter(store, dataset_uri, split, inputs, len(labels)) for split in SPLITS}
        remarks += rows.write(written, inputs, labels, report)
    is_checked_again = steps.split.key or steps.weights or any(step.after_split for step in steps.on_features)
    if support.labels_tokens or (labels and is_checked_again):
        remarks += _check_labels_left(labels, written["train"].label_counts, removed)
    if lost := sum(split.without_loss for split in written.values()):
        rows.bad.dropped[WITHOUT_LOSS] += lost
    counts = {name: split.writer.rows for name, split in written.items()}
    _check_counts(counts, spec, removed + _without_loss_text(rows.bad, inputs.max_length))
    info = DatasetInfo(
        version=FORMAT_VERSION,
        digest=digest,
        format=inputs.formatter.data_format,
        task=inputs.task,
        seed=spec.training.seed,
        max_length=inputs.max_length,
        tokenizer_digest=inputs.tokenizer_digest,
        largest_token=max(split.writer.largest_token for split in written.values()),
        counts=SplitCounts(**counts),
        labels=labels,
        label_counts={name: split.named_label_counts(labels) for name, split in written.items()} if labels else {},
        lengths={name: dict(sorted(split.writer.lengths.items())) for name, split in written.items()},
        dropped={rule: count for rule, count in sorted(rows.bad.dropped.items()) if count},
        rules=tuple(_rule(step.name, rows.tallies[step.name]) for step in steps.rules),
        weights=weights,
        truncated={name: split.truncated for name, split in written.items()},
        divided={name: split.divided for name, split in written.items()},
        documents={name: split.documents for name, split in written.items()},
        tokens={name: split.tokens for name, split in written.items()},
        dropped_tokens={name: split.dropped_tokens for name, split in written.items()},
        masking=TASKS[inputs.task].masking(inputs.tokenizer, spec.model.uri),
        template_date=TEMPLATE_DATE,
        sources=tuple(rows.sources),
        shards={name: tuple(split.writer.shards) for name, split in written.items()},
        remarks=remarks,
    )
    uri, content = join(dataset_uri, DATASET_FILE), info.content()
    try:
        is_new = store.put_if_absent(uri, content)
    except StorageProtocolError:  # the store has no conditional writes: the last writer wins
        store.put(uri, content)
        return info
    return info if is_new else read_dataset_info(store, dataset_uri)  # another run committed the same shards first


def _unread_columns(inputs: Inputs) -> tuple[str, ...]:
    """A remark about columns of CSV and Parquet files, which are not even read. The formatter counts those of JSON."""
    files = {file.uri: file for found in inputs.files.values() for file in found}
    unread: dict[str, str] = {}
    for uri, file in files.items():
        for name in unread_columns(file, inputs.formatter.columns_of):
            unread.setdefault(name, uri)
    if not unread:
        return ()
    names = [f"{shown(name)} ({uri})" for name, uri in unread.items() if name]
    return (f"columns that the format {inputs.formatter.data_format} does not use: {listed(names, most=6)}",)


def _rule(name: str, tally: Tally) -> RuleInfo:
    return RuleInfo(
        rule=name,
        changed=tally.changed,
        dropped=tally.dropped,
        reasons=_by_count(tally.reasons),
        added=tally.added,
        examples=tuple(tally.examples),
    )


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def _process(spec: Spec, inputs: Inputs, steps: Steps, folder: Path, report: ProgressReporter) -> "_Rows":
    """Process all blocks of all files; each becomes a run on disk."""
    files = [(split, file) for split, found in inputs.files.items() for file in found]
    text_bytes = sum(file.size * _COMPRESSED.get(file.path.suffix.lower(), 1) for _, file in files)
    plan = BlockPlan(
        steps=steps.on_examples,
        columns=inputs.formatter.columns_of,
        action=spec.data.on_bad_record,
        seed=spec.training.seed,
        buckets=1 + text_bytes // _BUCKET_BYTES,
        wide=len(inputs.tokenizer) > 2**16,
        folder=folder,
        step_keys={step.name: step.key for step in (*steps.on_keys, steps.split) if step.key is not None},
        features={step.name: step.features for step in steps.on_features if step.features is not None},
    )
    size = min(_LARGEST_BLOCK, max(BLOCK_BYTES, text_bytes // _BLOCKS))
    bad = BadRecords(spec.data.on_bad_record)
    rows = _Rows(bad, {step.name: Tally(bad) for step in steps}, plan.buckets)
    rows.sources = [SourceInfo(split=split, uri=file.uri, sha256=file.sha256, rows=0) for split, file in files]
    rows.source_of = {file.uri: file.source for split, file in files if split == "train"}
    started = time.monotonic()
    seconds = 0.0
    report.update(activity="reading and tokenizing records", flush=True)
    tasks = ((number, block) for number, (_, file) in enumerate(files) for block in blocks(file, plan.columns, size))
    workers = worker_count(text_bytes)
    if workers and not FastTokenizer.of(inputs.tokenizer).is_picklable():
        log.warning("the data is tokenized in one process, because the tokenizer has parts that are written in Python")
        workers = 0
    for number, result in process_blocks(plan, tasks, workers):
        rows.add(result, number)
        seconds += result.seconds
        done = sum(source.rows for source in rows.sources)
        report.update(activity=f"reading and tokenizing: {done:,} records")
    # Workers format and encode in parallel, so the wall time is divided in proportion to the CPU time of each step.
    spent = time.monotonic() - started
    tokenizing = min(1.0, rows.tallies["encode"].counts[ENCODE_NS] / 1e9 / seconds) if seconds else 0.0
    report.add_seconds("read", spent * (1 - tokenizing))
    report.add_seconds("tokenize", spent * tokenizing)
    return rows


@dataclass
class _Rows:
    """The rows of all blocks: on disk, with an index in memory."""

    bad: BadRecords
    tallies: dict[str, Tally]
    """Step name -> its counts over all blocks."""
    buckets: int
    sources: list[SourceInfo] = field(default_factory=list)
    source_of: dict[str, int] = field(default_factory=dict)
    """Training file -> index of its source in `spec.data.train`."""
    runs: list[tuple[str, Run]] = field(default_factory=list)
    """By split of the source file; runs are in the order of the files."""
    names: list[list[str]] = field(default_factory=list)
    """For each run: its label names, indexed by the run's own label ids."""
    codes: list[NDArray[np.int64]] = field(default_factory=list)
    """For each run: run label id -> dataset label id. -1: the label is not in the training files."""
    token_names: list[list[str]] = field(default_factory=list)
    """For each run: the names of its token labels."""
    token_codes: list[NDArray[np.int64]] = field(default_factory=list)
    """For each run: run token label id -> dataset label id."""

    def add(self, result: BlockResult, number: int) -> None:
        """Add the next block; `number` is that of its source. Raises BadDataError as reading in one process would."""
        source = self.sources[number]
        self.sources[number] = source.model_copy(update={"rows": source.rows + result.records})
        for name, tally in result.tallies.items():
            self.tallies[name].merge(tally)
        self.bad.merge(result.bad)
        if result.error is not None:
            raise result.error
        if result.run is not None:
            self.runs.append((source.split, result.run))

    def name_labels(self) -> tuple[str, ...]:
        """Give one name to labels that are spelled in different ways. Returns remarks about it."""
        changed, remarks = canonical_names({spelling for _, run in self.runs for spelling in _spellings(run)})
        for _, run in self.runs:
            names = [changed.get(spelling, spelling) for spelling in _spellings(run)]
            whole = [canonical_name(spelling, floats_are_whole=True) for spelling in _spellings(run)]
            if run.has_other_keys and names != whole:
                use_other_keys(run, self.buckets)
            self.names.append(names[: len(run.spellings)])
            self.token_names.append(names[len(run.spellings) :])
        return remarks

    def check_labels(self, *, of_tokens: bool) -> tuple[str, ...]:
        """Collect the label names of the training files; report and drop held-out examples with any other label."""
        names_of = self.token_names if of_tokens else self.names
        things, column = ("labeled training tokens", "tags") if of_tokens else ("training records", "label")
        training = [(run, names) for (split, run), names in zip(self.runs, names_of, strict=True) if split == "train"]
        rows = sum(int((run.token_counts if of_tokens else run.counts).sum()) for run, _ in training)
        # Tokens beyond the maximum length are in no row, so labels that occur only there are not counted.
        labels = label_names(
            name
            for run, names in training
            for name, count in zip(names, run.token_counts if of_tokens else run.counts, strict=True)
            if count
        )
        if len(labels) < 2 and rows:
            self.bad.raise_if_any()  # the missing label may be in a line that cannot be read
            raise BadDataError(
                f"all {rows} {things} have the label {labels[0]!r}; a classifier needs two",
                advice=f"add records of another label, or set spec.data.columns.{column} to the column with "
                "the class names",
            )
        check_label_column(labels, rows, things, column)
        known = frozenset(labels)
        report = self._report_unknown_tokens if of_tokens else self._report_unknown
        for (split, run), names in zip(self.runs, names_of, strict=True):
            unknown = [number for number, name in enumerate(names) if name not in known]
            if split != "train" and known and unknown:
                report(run, names, unknown, labels)
        return labels

    def _report_unknown(self, run: Run, names: Sequence[str], unknown: Sequence[int], labels: Sequence[str]) -> None:
        problems = {number: unknown_label(names[number], labels, with_nearest=not self.bad.skips) for number in unknown}
        if self.bad.skips:
            for number in unknown:
                self.bad.add(run.uri, problems[number], int(run.counts[number]))
            return
        rows = self._all_rows(run, ["number", "label"])
        for place, label in zip(rows["number"].to_pylist(), rows["label"].to_pylist(), strict=True):
            if label in problems:
                self.bad.add(str(Place(run.uri, place, run.unit)), problems[label])

    def _report_unknown_tokens(
        self, run: Run, names: Sequence[str], unknown: Sequence[int], labels: Sequence[str]
    ) -> None:
        """Report each record that has a token with an unknown label, once, and drop it."""
        problems = {number: unknown_label(names[number], labels, with_nearest=not self.bad.skips) for number in unknown}
        found: list[tuple[int, int]] = []
        for bucket in range(self.buckets):
            batch = read_bucket(run, bucket, ["number", "token labels"])
            lists = batch["token labels"]
            rows = np.repeat(np.arange(batch.num_rows), lists.value_lengths().to_numpy(zero_copy_only=False))
            numbers = lists.flatten().to_numpy()
            is_wrong = np.isin(numbers, unknown)
            wrong, first = np.unique(rows[is_wrong], return_index=True)
            places = batch["number"].to_numpy()[wrong]
            found += zip(places.tolist(), numbers[is_wrong][first].tolist(), strict=True)
            is_kept = np.ones(batch.num_rows, dtype=np.bool_)
            is_kept[wrong] = False
            keep_rows(run, bucket, is_kept)
        for place, number in sorted(found):
            self.bad.add(str(Place(run.uri, place, run.unit)), problems[number])

    def number_labels(self, labels: Sequence[str], *, of_tokens: bool) -> None:
        """Assign dataset label ids. Records without labels all get 0."""
        numbers = {name: number for number, name in enumerate(labels)}
        if of_tokens:
            self.token_codes = [np.array([numbers.get(name, -1) for name in names]) for names in self.token_names]
            self.codes = [np.zeros(len(names), dtype=np.int64) for names in self.names]
            return
        absent = -1 if labels else 0
        self.codes = [np.array([numbers.get(name, absent) for name in names], dtype=np.int64) for names in self.names]

    def apply_to_keys(self, steps: Sequence[Step]) -> None:
        """Apply each step to the keys of all rows, one bucket at a time, and mark the rows that it removes.

        Memory: one bucket, and one bit per row. Raises DiskFullError.
        """
        for step in steps:
            runs = [run for _, run in self.runs]
            before = [None if run.kept is None else run.kept.copy() for run in runs]
            paths = [None if step.key is None else sort_by_step_key(run, step.name, self.buckets) for run in runs]
            for bucket in range(self.buckets) if runs else ():
                self._apply(step, [read_keys(run, bucket, path) for run, path in zip(runs, paths, strict=True)])
            self._show_removed(self.tallies[step.name], before)

    def _apply(self, step: Step, batches: Sequence[pa.RecordBatch]) -> None:
        """Apply a step to the keys of one bucket; `batches` has one batch per run."""
        table, order = in_key_order(batches)
        labels = np.concatenate(
            [codes[batch["label"].to_numpy()] for codes, batch in zip(self.codes, batches, strict=True)]
        )
        order = order[labels[order] >= 0]
        if not len(order):
            return
        runs = np.repeat(np.arange(len(batches)), [batch.num_rows for batch in batches])
        split_codes = np.array([SPLIT_CODES[split] for split, _ in self.runs], dtype=np.int8)
        rows = KeyedRows(table["key"].to_numpy()[order], labels[order], split_codes[runs[order]])
        tally = self.tallies[step.name]
        removed = order[~step.apply(rows, tally)]
        tally.dropped += len(removed)
        positions = table["position"].to_numpy()
        for number in np.unique(runs[removed]):
            remove_rows(self.runs[number][1], positions[removed[runs[removed] == number]])

    def _show_removed(self, tally: Tally, before: Sequence[NDArray[np.uint8] | None]) -> None:
        """Add the places of the first rows that a step removed to its report. `before`: `kept` of each run before the
        step.

        Without their text: only tokens are left of it, and in the text of tokens, which may be in lower case and have
        other spaces, personal data is not found.
        """
        for (_, run), kept in zip(self.runs, before, strict=True):
            missing = MOST_EXAMPLES - len(tally.examples)
            if not missing:
                return
            for number in removed_since(run, kept, missing):
                tally.show(Place(run.uri, number, run.unit), "")

    @property
    def _training_runs(self) -> list[Run]:
        """The runs of the training files, in their order."""
        return [run for split, run in self.runs if split == "train"]

    def training_sizes(self) -> NDArray[np.int64]:
        """Number of training rows per label, shape (labels,)."""
        training = [(run, codes) for (split, run), codes in zip(self.runs, self.codes, strict=True) if split == "train"]
        sizes = np.zeros(1 + max((int(codes.max(initial=0)) for _, codes in training), default=0), dtype=np.int64)
        for run, codes in training:
            np.add.at(sizes, codes, self._label_counts(run))
        return sizes

    def splitter(self, step: Step, sizes: NDArray[np.int64]) -> Splitter:
        """Return the object that assigns training rows to splits; `sizes` is the number of rows per label."""

        def in_order() -> Iterator[NDArray[np.int64]]:
            for bucket in range(self.buckets) if self._training_runs else ():
                yield self._training_rows(bucket, ["key", "label"])[2]

        made: Splitter = step.apply(sizes, in_order)
        return made

    def counts(self, assigned: Mapping[int, int]) -> dict[str, int]:
        """Number of examples per split; `assigned` has those of the training files."""
        found = {name: assigned[code] for name, code in SPLIT_CODES.items()}
        for (split, run), codes in zip(self.runs, self.codes, strict=True):
            if split != "train":
                found[split] += int(self._label_counts(run)[codes >= 0].sum())
        return found

    def assign(self, splitter: Splitter) -> None:
        """Assign every row of the training files to a split. Memory: one byte per row."""
        training = [(run, codes) for (split, run), codes in zip(self.runs, self.codes, strict=True) if split == "train"]
        runs = [run for run, _ in training]
        for bucket in range(self.buckets) if training else ():
            batches = [read_keys(run, bucket, None) for run in runs]
            order = in_key_order(batches)[1]
            labels = [codes[batch["label"].to_numpy()] for (_, codes), batch in zip(training, batches, strict=True)]
            assign_splits(runs, batches, order, splitter.assign(np.concatenate(labels)[order]))

    def assign_groups(self, step: Step, spec: Spec) -> dict[int, int]:
        """Assign all rows of a group to the same split. Returns the number of rows of each split.

        Memory: one byte per row and 16 bytes per group. Raises BadDataError if there are fewer groups than splits.
        """
        runs = self._training_runs
        if not runs:
            return dict.fromkeys(SPLIT_CODES.values(), 0)
        paths = [sort_by_step_key(run, step.name, self.buckets) for run in runs]
        sizes: list[NDArray[np.int64]] = []
        for bucket in range(self.buckets):
            table, order = in_key_order([read_keys(run, bucket, path) for run, path in zip(runs, paths, strict=True)])
            sizes.append(np.unique(table["key"].to_numpy()[order], return_counts=True)[1].astype(np.int64))
        all_sizes = np.concatenate(sizes)
        _check_groups(len(all_sizes), spec)
        assigned: NDArray[np.int8] = step.apply(all_sizes)
        ends = np.cumsum([len(part) for part in sizes])[:-1]
        for bucket, (part, found) in enumerate(zip(sizes, np.split(assigned, ends), strict=True)):
            batches = [read_keys(run, bucket, path) for run, path in zip(runs, paths, strict=True)]
            assign_splits(runs, batches, in_key_order(batches)[1], np.repeat(found, part))
        return {code: int(all_sizes[assigned == code].sum()) for code in SPLIT_CODES.values()}

    def apply_to_features(self, steps: Sequence[Step]) -> None:
        """Apply each step to the features of all rows, and mark the rows that it removes. See `comparison.py`."""
        for step in steps if self.runs else ():
            runs = [run for _, run in self.runs]
            ends = np.cumsum([0, *(int(run.starts[-1]) for run in runs)])
            usable, training = (np.empty(ends[-1], dtype=np.bool_) for _ in range(2))
            for (split, run), codes, (begin, end) in zip(self.runs, self.codes, pairwise(ends.tolist()), strict=True):
                order = block_order(run)
                usable[begin:end] = usable_rows(run, codes)[order]
                training[begin:end] = split == "train" if run.splits is None else run.splits[order] == splits.TRAIN
            removed = step.apply(Comparison([run.features[step.name] for run in runs], usable, training))
            before = [None if run.kept is None else run.kept.copy() for run in runs]
            for run, (begin, end) in zip(runs, pairwise(ends.tolist()), strict=True):
                if removed[begin:end].any():
                    remove_rows(run, block_order(run)[removed[begin:end]])
            tally = self.tallies[step.name]
            tally.dropped += int(removed.sum())
            tally.counts.update({COMPARED: int((usable & training).sum()), REMOVED: int(removed.sum())})
            self._show_removed(tally, before)

    def take_subset(self, step: Step, labels: Sequence[str]) -> tuple[str, ...]:
        """Keep the rows of the training split that the step takes, in key order, and mark the others as removed.
        Returns its remarks. Rows without loss are kept: they are counted when they are written.

        Memory: one bucket, and one bit per row.
        """
        subset: few_shot.Subset = step.apply(max(1, len(labels)))
        training = [(run, codes) for (split, run), codes in zip(self.runs, self.codes, strict=True) if split == "train"]
        before = [None if run.kept is None else run.kept.copy() for _, run in self.runs]
        for bucket in range(self.buckets) if training else ():
            batches = [read_bucket(run, bucket, ["key", "label", "rows"]) for run, _ in training]
            order = in_key_order(batches)[1]
            found = [codes[batch["label"].to_numpy()] for (_, codes), batch in zip(training, batches, strict=True)]
            sizes = np.concatenate([batch["rows"].value_lengths().to_numpy(zero_copy_only=False) for batch in batches])
            assigned = np.concatenate([read_splits(run, bucket) for run, _ in training])
            chosen = order[assigned[order] == splits.TRAIN]
            has_loss = sizes[chosen] > 0
            is_kept = np.ones(len(order), dtype=np.bool_)
            is_kept[chosen] = subset.take(np.concatenate(found)[chosen], has_loss) | ~has_loss
            ends = np.cumsum([batch.num_rows for batch in batches])[:-1]
            for (run, _), part in zip(training, np.split(is_kept, ends), strict=True):
                keep_rows(run, bucket, part)
        tally = self.tallies[step.name]
        tally.dropped += subset.left_out
        self._show_removed(tally, before)
        return subset.remarks(labels)

    def apply_weights(self, step: Step, spec: Spec) -> tuple[WeightInfo, ...]:
        """Decide how often each row of the training split is written. Rows without loss are kept: they are counted when
        they are written.

        Memory: one bucket, and one byte per row.
        """
        training = [(run, self.source_of[run.uri]) for run in self._training_runs]
        before = [None if run.kept is None else run.kept.copy() for _, run in self.runs]
        sizes = np.zeros(len(spec.data.train), dtype=np.int64)
        for run, source in training:
            for bucket in range(self.buckets):
                has_loss = _has_loss(read_bucket(run, bucket, ["rows"]))
                sizes[source] += int((has_loss & (read_splits(run, bucket) == splits.TRAIN)).sum())
        repeats: source_weights.Repeats = step.apply(sizes)
        for bucket in range(self.buckets) if training else ():
            batches = [read_bucket(run, bucket, ["key", "rows"]) for run, _ in training]
            order = in_key_order(batches)[1]
            sources = np.repeat([source for _, source in training], [batch.num_rows for batch in batches])
            has_loss = np.concatenate([_has_loss(batch) for batch in batches])
            assigned = np.concatenate([read_splits(run, bucket) for run, _ in training])
            chosen = order[assigned[order] == splits.TRAIN]
            times = np.ones(len(order), dtype=np.uint8)
            times[chosen] = repeats.take(sources[chosen], has_loss[chosen])
            ends = np.cumsum([batch.num_rows for batch in batches])[:-1]
            for (run, _), part in zip(training, np.split(times, ends), strict=True):
                repeat_rows(run, bucket, part)
        tally = self.tallies[step.name]
        tally.dropped += repeats.left_out
        self._show_removed(tally, before)
        return repeats.info(spec)

    def write(
        self, written: dict[str, "_SplitWriter"], inputs: Inputs, names: Sequence[str], report: ProgressReporter
    ) -> tuple[str, ...]:
        """Write the rows of the training files in key order, each to its split, then those of the held-out files.

        Copies are written after the rows of a bucket, if their record is in the training split. Rows that are written
        several times follow each other only after all rows of the bucket, so that memory does not depend on weights.
        `names`: of the labels. Returns remarks for the user.
        """
        decode = functools.partial(_decoded, inputs.tokenizer)
        least = inputs.augmentation.min_per_class if inputs.augmentation else None
        per_class = None if least is None else CopiesPerClass(self._training_counts(len(names)), least)
        columns = ["key", "number", *self._columns()]
        total = sum(source.rows for source in self.sources)
        done = 0
        for bucket in range(self.buckets):
            table, order, codes = self._training_rows(bucket, columns)
            assigned = [read_splits(run, bucket) for run in self._training_runs]
            splits_of = np.concatenate(assigned)[order]
            times = np.concatenate([read_repeats(run, bucket) for run in self._training_runs])[order]
            for name, chosen in _parts_of(splits_of, times):
                rows = table.take(pa.array(order[chosen]))
                written[name].add(rows, codes[chosen])
                if name == "train" and "copies" in columns:
                    ends = np.cumsum([len(part) for part in assigned])
                    runs = np.searchsorted(ends, order[chosen], side="right")
                    self._write_copies(rows, runs, codes[chosen], written[name], decode, per_class)
            done += len(order)
            report.update(activity=f"writing shards: {done:,} of {total:,} records")
        for (split, run), codes, token_codes in zip(self.runs, self.codes, self._token_codes(), strict=True):
            if split != "train":
                held_out = ["number", *(name for name in self._columns() if name != "copies")]
                rows = self._all_rows(run, held_out, token_codes)
                labels = codes[rows["label"].to_numpy()]
                written[split].add(rows.take(pa.array(np.flatnonzero(labels >= 0))), labels[labels >= 0])
        for writer in written.values():
            writer.writer.flush()
        return () if least is None else _check_classes(names, written["train"].label_counts, least)

    def _write_copies(
        self,
        rows: pa.Table,
        runs: NDArray[np.int64],
        codes: NDArray[np.int64],
        writer: "_SplitWriter",
        decode: Callable[[Sequence[int]], str],
        per_class: CopiesPerClass | None,
    ) -> None:
        """Write the copies of training rows. `runs` has the number of each row's run among those of training files."""
        copies, counts = copies_of(rows)
        is_usable = _has_loss(copies)
        copies = copies.filter(pa.array(is_usable))
        records = np.repeat(np.arange(len(counts)), counts)[is_usable]
        if per_class is not None:
            is_taken = per_class.take(records, codes[records])
            copies, records = copies.filter(pa.array(is_taken)), records[is_taken]
        writer.add(copies, codes[records])
        tally = self.tallies[augmentation_step.NAME]
        tally.added += len(records)
        training = self._training_runs
        first = (each[:_EXAMINED].tolist() for each in np.unique(records, return_index=True))
        for record, copy in zip(*first, strict=True):
            if len(tally.examples) == MOST_EXAMPLES:
                return
            before, after = (decode(tokens.as_py()) for tokens in (rows["tokens"][record], copies["tokens"][copy]))
            text = None if is_private(before) else shown_change(before, after)
            if text is not None:
                run = training[runs[record]]
                tally.show(Place(run.uri, rows["number"][record].as_py(), run.unit), text)

    def _training_counts(self, classes: int) -> NDArray[np.int64]:
        """(classes,): rows of each class that the training split gets from the files."""
        counts = np.zeros(classes, dtype=np.int64)
        for bucket in range(self.buckets):
            table, order, codes = self._training_rows(bucket, ["key", "label", "rows"])
            assigned = np.concatenate([read_splits(run, bucket) for run in self._training_runs])[order]
            times = np.concatenate([read_repeats(run, bucket) for run in self._training_runs])[order]
            is_used = (assigned == splits.TRAIN) & _has_loss(table)[order]
            counts += np.bincount(codes[is_used], times[is_used], minlength=classes).astype(np.int64)
        return counts

    def _columns(self) -> list[str]:
        names = ["label", "truncated", "dropped", "rows", "tokens", "loss", "token labels", "first lengths", "copies"]
        return [name for name in names if self.runs and name in self.runs[0][1].columns]

    def _training_rows(
        self, bucket: int, columns: Sequence[str]
    ) -> tuple[pa.Table, NDArray[np.int64], NDArray[np.int64]]:
        """The rows of a bucket, the permutation that sorts them by key, and their labels in that order."""
        training = [
            (run, codes, token_codes)
            for (split, run), codes, token_codes in zip(self.runs, self.codes, self._token_codes(), strict=True)
            if split == "train"
        ]
        batches = [_read(run, bucket, columns, token_codes) for run, _, token_codes in training]
        table, order = in_key_order(batches)
        labels = [codes[batch["label"].to_numpy()] for (_, codes, _), batch in zip(training, batches, strict=True)]
        return table, order, np.concatenate(labels)[order]

    def _token_codes(self) -> Sequence[NDArray[np.int64] | None]:
        return self.token_codes or [None] * len(self.runs)

    def _all_rows(self, run: Run, columns: Sequence[str], token_codes: NDArray[np.int64] | None = None) -> pa.Table:
        """All rows of a run, in file order."""
        table = pa.Table.from_batches([_read(run, bucket, columns, token_codes) for bucket in range(self.buckets)])
        return table.combine_chunks().sort_by("number")

    def _label_counts(self, run: Run) -> NDArray[np.int64]:
        """Number of examples per label of the run."""
        if run.kept is None:
            return run.counts
        found = np.zeros(len(run.counts), dtype=np.int64)
        for bucket in range(self.buckets):
            found += np.bincount(read_bucket(run, bucket, ["label"])["label"].to_numpy(), minlength=len(found))
        return found


def _spellings(run: Run) -> tuple[str, ...]:
    """All labels as written in the files: record labels, then token labels."""
    return (*run.spellings, *run.token_spellings)


def _parts_of(splits_of: NDArray[np.int8], times: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Split and rows of each part of a bucket that is written at a time. A row that is written several times is in as
    many parts."""
    for name, code in SPLIT_CODES.items():
        in_split = splits_of == code
        for written in range(int(times[in_split].max(initial=0))):
            yield name, in_split & (times > written)


def _has_loss(examples: pa.RecordBatch | pa.Table) -> NDArray[np.bool_]:
    """Which examples have rows, shape (examples,)."""
    lists = examples["rows"]
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    return np.asarray(lists.value_lengths().to_numpy(zero_copy_only=False) > 0)


def _read(run: Run, bucket: int, columns: Sequence[str], token_codes: NDArray[np.int64] | None) -> pa.RecordBatch:
    """Rows of a run, with token labels mapped to dataset label ids."""
    batch = read_bucket(run, bucket, columns)
    return batch if token_codes is None or "token labels" not in columns else with_numbers(batch, token_codes)


class _SplitWriter:
    """Writes the shards of one split and collects its statistics for dataset.json."""

    def __init__(self, store: ObjectStore, dataset_uri: str, split: str, inputs: Inputs, labels: int) -> None:
        self.writer = ShardWriter(store, dataset_uri, split, vocabulary=len(inputs.tokenizer))
        self._labels_records = TASKS[inputs.task].support.labels_records
        self._divides = FORMATS[inputs.formatter.data_format].is_divisible
        self.label_counts = np.zeros(labels, dtype=np.int64)
        self.truncated = self.divided = self.documents = self.tokens = self.dropped_tokens = self.without_loss = 0

    def add(self, examples: pa.Table, labels: NDArray[np.int64]) -> None:
        """Add the next examples; `labels` has the label id of each."""
        table = examples.combine_chunks()
        columns = {name: table[name].chunk(0) for name in table.column_names} if table.num_rows else {}
        if not columns:
            return
        rows = columns["rows"].value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        has_rows = rows > 0
        documents = self.documents + np.cumsum(has_rows)
        tokens = columns["tokens"].flatten().to_numpy()
        token_labels = columns["token labels"].flatten().to_numpy() if "token labels" in columns else None
        self.writer.add(
            columns["rows"].flatten().to_numpy().astype(np.int64),
            tokens,
            labels=np.repeat(labels, rows) if self._labels_records else None,
            loss=columns["loss"].flatten().to_numpy(zero_copy_only=False) if "loss" in columns else None,
            token_labels=token_labels,
            first_lengths=columns["first lengths"].flatten().to_numpy() if "first lengths" in columns else None,
            documents=np.repeat(documents, rows) if self._divides else None,
        )
        dropped = int(columns["dropped"].to_numpy().sum())
        self.truncated += int(columns["truncated"].to_numpy(zero_copy_only=False).sum())
        self.divided += int((rows > 1).sum())
        self.documents += int(has_rows.sum())
        self.tokens += len(tokens) + dropped
        self.dropped_tokens += dropped
        self.without_loss += int((~has_rows).sum())
        if token_labels is not None:
            labels = token_labels[token_labels >= 0]
        elif self._labels_records:
            labels = labels[has_rows]
        self.label_counts += np.bincount(labels, minlength=len(self.label_counts))[: len(self.label_counts)]

    def named_label_counts(self, labels: Sequence[str]) -> dict[str, int]:
        """Label -> number of examples or tokens, for the labels that occur in the split."""
        found = dict(zip(labels, self.label_counts.tolist(), strict=True))
        return {label: count for label, count in sorted(found.items()) if count}


def _check_classes(labels: Sequence[str], counts: NDArray[np.int64], min_per_class: int) -> tuple[str, ...]:
    """A remark on classes that have too few different copies."""
    few = [f"{label} ({count})" for label, count in zip(labels, counts.tolist(), strict=True) if count < min_per_class]
    if not few:
        return ()
    return (
        f"{len(few)} classes have fewer than spec.data.augmentation.minPerClass ({min_per_class}) training records, "
        f"because their records have too few different copies; raise copies: {listed(few, most=4)}",
    )


WITHOUT_LOSS = "no loss within maxLength"
"""Rule under which dataset.json counts records without a row: those of a language model whose answer begins beyond the
maximum length, and those of a classifier of whose text the tokenizer keeps nothing."""


def _without_loss_text(bad: BadRecords, max_length: int) -> str:
    lost = bad.dropped[WITHOUT_LOSS]
    return f"; {lost} records have nothing to learn within spec.data.maxLength ({max_length} tokens)" if lost else ""


def _removed_text(tallies: Mapping[str, Tally]) -> str:
    removed = {step: tally for step, tally in tallies.items() if tally.dropped}
    return "".join(
        f"; the step {step!r} removed {tally.dropped:,} records {reasons_text(_by_count(tally.reasons))}".rstrip()
        for step, tally in removed.items()
    )


def _reasons_remark(rule: str, tally: Tally) -> tuple[str, ...]:
    """How many records a rule with several reasons dropped for each."""
    if not tally.reasons:
        return ()
    return (f"{rule} dropped {tally.dropped:,} records {reasons_text(_by_count(tally.reasons))}",)


def _by_count(reasons: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _check_labels_left(labels: Sequence[str], sizes: NDArray[np.int64], removed: str) -> tuple[str, ...]:
    """Return a remark on labels that have no training record left after the steps. Raises BadDataError if fewer than
    two labels have any. If none has, the training split is empty, which `_check_counts` reports."""
    empty = [label for label, size in zip(labels, sizes, strict=False) if not size]
    left = len(labels) - len(empty)
    if not empty or not left:
        return ()
    if left == 1:
        (label,) = set(labels) - set(empty)
        raise BadDataError(
            f"all training records that are left have the label {label!r}; a classifier needs two{removed}",
            advice="add records of another label, or disable the step in spec.data",
        )
    names = listed(empty, most=_LISTED_LABELS)
    return (f"{len(empty):,} labels have no training records left and are not learned: {names}",)


def _check_groups(groups: int, spec: Spec) -> None:
    """Raise BadDataError if there are too few groups for a group in every split."""
    column = spec.data.validation.group_by or spec.data.test.group_by
    needed = 1 + sum(bool(holdout.fraction) for holdout in (spec.data.validation, spec.data.test))
    if 0 < groups < needed:
        found = "the same value" if groups == 1 else f"only {groups} different values"
        raise BadDataError(
            f"the training records have {found} in the column {column!r} of groupBy; every one of the {needed} splits "
            "must have a group of its own",
            advice="set groupBy to a column with more values, or remove it",
        )


_MOST_DEVIATION = 0.25
"""Relative deviation from a fraction from which on a remark says so."""


def _group_remarks(counts: Mapping[int, int], spec: Spec) -> tuple[str, ...]:
    """Remarks on splits that are larger or smaller than the spec says, because groups are not divided."""
    total = max(1, sum(counts.values()))
    found = []
    for name, holdout in (("validation", spec.data.validation), ("test", spec.data.test)):
        share = counts[SPLIT_CODES[name]] / total
        if holdout.fraction and abs(share - holdout.fraction) > _MOST_DEVIATION * holdout.fraction:
            found.append(
                f"the {name} split has {share:.1%} of the records instead of {holdout.fraction:.1%}, because groups of "
                f"{holdout.group_by} are not divided"
            )
    return tuple(found)


def _check_counts(counts: dict[str, int], spec: Spec, reason: str) -> None:
    """Raise BadDataError for a required split without rows."""
    if not counts["train"]:
        raise BadDataError(f"the training split is empty{reason}", advice="check the files of spec.data.train")
    for name, holdout in (("validation", spec.data.validation), ("test", spec.data.test)):
        if counts[name] or holdout.fraction == 0:
            continue
        if holdout.sources is not None:
            raise BadDataError(
                f"the {name} split is empty{reason}", advice=f"check the files of spec.data.{name}.sources"
            )
        raise BadDataError(
            f"the {name} split is empty: {sum(counts.values())} records are too few to hold out a fraction of "
            f"{holdout.fraction:g}{reason}",
            advice=f"add records, or set spec.data.{name}.fraction: 0 to have no such split",
        )
