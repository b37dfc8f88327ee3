"""Files of records -> a data set in object storage: read, split, tokenise, write, dataset.json last."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune_api.trainer_config import SplitCounts, TrainerConfig
from finetune_api.v1alpha1 import DataFormat, Holdout, Spec, Task

from ..errors import BadConfigError, BadDataError, StorageProtocolError
from ..progress import ProgressReporter
from ..store.client import ObjectStore
from ..store.uri import join
from ..tasks import TASKS
from .chat import TEMPLATE_DATE
from .formats import Example, Formatter
from .info import DATASET_FILE, FORMAT_VERSION, SPLITS, DatasetInfo, SourceInfo, read_dataset_info
from .labels import canonical_names, check_label_column, label_names, unknown_label
from .problems import BadRecords, RecordProblem, listed
from .readers import file_type, read
from .shards import ShardWriter
from .sources import SourceFile
from .splits import Share, row_keys, split_rows
from .tokenise import TokeniseCounts, tokenise

_SHOW_EVERY = 10_000
_LISTED_LABELS = 5

Examples = dict[str, list[Example]]


@dataclass(frozen=True)
class Inputs:
    """All that the rows of a data set depend on, besides the spec."""

    files: dict[str, tuple[SourceFile, ...]]
    """Split -> files that the spec names for it."""
    formatter: Formatter
    tokenizer: Any
    tokenizer_digest: str
    task: Task
    max_length: int


def dataset_digest(spec: Spec, inputs: Inputs) -> str:
    """SHA-256 of what the rows depend on: contents and types of files, not their names; `spec.data`, seed, tokenizer,
    task, length.

    `spec.data.packing` is left out: it decides how rows share a batch, not what the rows are.
    """
    data = spec.data.model_dump(mode="json", by_alias=True, exclude={"train", "packing"})
    for holdout in (data["validation"], data["test"]):
        holdout.pop("sources")
    depends_on = {
        "version": FORMAT_VERSION,
        "files": {
            split: sorted((file_type(file), file.sha256) for file in files) for split, files in inputs.files.items()
        },
        "data": data,
        "format": inputs.formatter.data_format,
        "task": inputs.task,
        "seed": spec.training.seed,
        "tokenizer": inputs.tokenizer_digest,
        "max_length": inputs.max_length,
        "template_date": TEMPLATE_DATE.isoformat(),
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def build_dataset(
    config: TrainerConfig, inputs: Inputs, digest: str, store: ObjectStore, report: ProgressReporter
) -> DatasetInfo:
    """Make the data set and commit it. Raises BadDataError for records, labels or splits that cannot be used."""
    spec, dataset_uri = config.spec, dataset_folder(config, digest)
    bad = BadRecords(spec.data.on_bad_record)
    with report.phase("read", "reading records"):
        examples, sources = _read_all(inputs, bad, report)
        label_remarks = _name_labels(examples)
        labels = _check_labels(examples, bad) if TASKS[inputs.task].has_labels else ()
        bad.raise_if_any()
        remarks = inputs.formatter.remarks() + label_remarks
    with report.phase("split", "splitting"):
        examples, remark = _split(examples, spec, inputs.task)
        remarks += remark
        _check_counts({split: len(rows) for split, rows in examples.items()}, spec, "")
    writers, written = _write(examples, labels, inputs, dataset_uri, store, bad, report)
    counts = {split: writer.rows for split, writer in writers.items()}
    _check_counts(counts, spec, _without_loss_text(bad, inputs.max_length))
    info = DatasetInfo(
        version=FORMAT_VERSION,
        digest=digest,
        format=inputs.formatter.data_format,
        task=inputs.task,
        seed=spec.training.seed,
        max_length=inputs.max_length,
        tokenizer_digest=inputs.tokenizer_digest,
        largest_token=max(writer.largest_token for writer in writers.values()),
        counts=SplitCounts(**counts),
        labels=labels,
        label_counts=_label_counts(examples) if labels else {},
        lengths={split: dict(sorted(writer.lengths.items())) for split, writer in writers.items()},
        dropped=dict(sorted(bad.dropped.items())),
        truncated={split: count.truncated for split, count in written.items()},
        divided={split: count.divided for split, count in written.items()},
        documents={split: count.documents for split, count in written.items()},
        tokens={split: count.tokens for split, count in written.items()},
        dropped_tokens={split: count.dropped_tokens for split, count in written.items()},
        template_date=TEMPLATE_DATE,
        sources=sources,
        shards={split: tuple(writer.shards) for split, writer in writers.items()},
        remarks=remarks,
    )
    uri, content = join(dataset_uri, DATASET_FILE), info.model_dump_json(indent=1).encode()
    try:
        is_new = store.put_if_absent(uri, content)
    except StorageProtocolError:  # no conditional writes there: then the last one counts
        store.put(uri, content)
        return info
    return info if is_new else read_dataset_info(store, dataset_uri)  # another run was faster; its shards are the same


def dataset_folder(config: TrainerConfig, digest: str) -> str:
    """Where the data set with that digest is kept; the runs of an output prefix share it."""
    return join(config.output_uri, "datasets", digest)


def _read_all(inputs: Inputs, bad: BadRecords, report: ProgressReporter) -> tuple[Examples, tuple[SourceInfo, ...]]:
    examples: Examples = {split: [] for split in SPLITS}
    sources = []
    for split, file in ((split, file) for split, files in inputs.files.items() for file in files):
        rows = 0
        for rows, record in enumerate(read(file, bad, inputs.formatter.columns_of), start=1):
            try:
                examples[split].append(inputs.formatter(record.values, record.place))
            except RecordProblem as problem:
                bad.add(str(record.place), problem)
            if rows % _SHOW_EVERY == 0:
                report.update(activity=f"reading records: {rows:,} of {file.uri}")
        sources.append(SourceInfo(split=split, uri=file.uri, sha256=file.sha256, rows=rows))
    return examples, tuple(sources)


def _name_labels(examples: Examples) -> tuple[str, ...]:
    """Give labels that are spelled in different ways one name, in place; returns remarks about it."""
    names, remarks = canonical_names({example.label for rows in examples.values() for example in rows})
    for rows in examples.values() if names else ():
        rows[:] = [replace(row, label=names[row.label]) if row.label in names else row for row in rows]
    return remarks


def _check_labels(examples: Examples, bad: BadRecords) -> tuple[str, ...]:
    """Label names by the training files; held-out examples with another label are reported and left out."""
    rows = len(examples["train"])
    labels = label_names(example.label for example in examples["train"])
    if len(labels) < 2 and rows:
        bad.raise_if_any()  # a label that is missing may stand in a line that cannot be read
        raise BadDataError(
            f"all {rows} training records have the label {labels[0]!r}; a classifier needs two",
            advice="add records of another label, or set spec.data.columns.label to the column that tells them apart",
        )
    check_label_column(labels, rows)
    names = frozenset(labels)
    for split in ("validation", "test"):
        known = []
        for example in examples[split]:
            if example.label in names or not names:
                known.append(example)
            else:
                bad.add(str(example.place), unknown_label(example.label, labels, with_nearest=not bad.skips))
        examples[split] = known
    return labels


def _split(examples: Examples, spec: Spec, task: Task) -> tuple[Examples, tuple[str, ...]]:
    rows = examples["train"]
    has_labels = TASKS[task].has_labels
    validation = _share(spec.data.validation, "validation", has_labels)
    test = _share(spec.data.test, "test", has_labels)
    keys = row_keys([example.identity for example in rows], spec.training.seed)
    split = split_rows(keys, [example.label for example in rows], validation=validation, test=test)
    found = {"train": [rows[row] for row in split.train]}
    for name, share, drawn in (("validation", validation, split.validation), ("test", test, split.test)):
        found[name] = [rows[row] for row in drawn] if share.fraction else examples[name]
    if not split.too_small:
        return found, ()
    names = listed(split.too_small, most=_LISTED_LABELS)
    return found, (f"{len(split.too_small):,} labels have too few records to be in every split: {names}",)


def _share(holdout: Holdout, name: str, has_labels: bool) -> Share:
    if holdout.stratify and not has_labels:
        raise BadConfigError(
            f"spec.data.{name}.stratify: this data has no labels to keep the shares of", advice="remove stratify"
        )
    return Share(holdout.fraction or 0.0, has_labels if holdout.stratify is None else holdout.stratify)


def _check_counts(counts: dict[str, int], spec: Spec, reason: str) -> None:
    """Raise BadDataError for a split that should have rows and has none."""
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
            f"the {name} split is empty: {sum(counts.values())} records are too few to hold out "
            f"{holdout.fraction:g} of them{reason}",
            advice=f"add records, or set spec.data.{name}.fraction: 0 to do without this split",
        )


def _write(
    examples: Examples,
    labels: Sequence[str],
    inputs: Inputs,
    dataset_uri: str,
    store: ObjectStore,
    bad: BadRecords,
    report: ProgressReporter,
) -> tuple[dict[str, ShardWriter], dict[str, TokeniseCounts]]:
    """Tokenise the examples and write the shards of every split."""
    ids = {name: index for index, name in enumerate(labels)}
    divisible = inputs.formatter.data_format is DataFormat.TEXT
    total, earlier, done = sum(map(len, examples.values())), 0, 0
    writers, written = {}, {}
    with report.phase("tokenise", "tokenising"):
        for split in SPLITS:
            counts = TokeniseCounts()
            writer = ShardWriter(store, dataset_uri, split, vocabulary=len(inputs.tokenizer))
            rows = tokenise(
                examples[split], inputs.tokenizer, inputs.task, ids, max_length=inputs.max_length, counts=counts
            )
            for tokens, target in rows:
                writer.add(tokens, target, counts.documents if divisible else None)
                done += 1
                if done % _SHOW_EVERY == 0:
                    records = earlier + counts.documents
                    report.update(activity=f"tokenising: {records:,} of {total:,} records")
            writer.flush()
            earlier += counts.documents
            writers[split], written[split] = writer, counts
            if counts.without_loss:
                bad.dropped[WITHOUT_LOSS] += counts.without_loss
    return writers, written


WITHOUT_LOSS = "no loss within maxLength"
"""Rule under which dataset.json counts language-model rows whose answer begins beyond the maximum length."""


def _without_loss_text(bad: BadRecords, max_length: int) -> str:
    lost = bad.dropped[WITHOUT_LOSS]
    return f"; in {lost} records no answer begins within spec.data.maxLength ({max_length} tokens)" if lost else ""


def _label_counts(examples: Examples) -> dict[str, dict[str, int]]:
    return {split: dict(sorted(Counter(example.label for example in rows).items())) for split, rows in examples.items()}
