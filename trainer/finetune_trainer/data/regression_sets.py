"""`spec.evaluation.regressionSets`: records that are not trained on, as rows of tokens.

A set is stored like a dataset that has only a test split. Its digest covers the files, the steps from records to rows
and the labels of the training data, so it depends on no name and is made once. The prepare stage makes the sets so that
unusable files are found before the training. The evaluate stage makes those that were added, or whose files were
changed, after that.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.run_layout import dataset_folder
from finetune_api.trainer_config import SplitCounts
from finetune_api.v1alpha1 import RegressionSet, Spec

from ..errors import BadConfigError, BadDataError
from ..store.client import ObjectStore
from ..store.uri import join
from ..tasks import TASKS
from .build import WITHOUT_LOSS, Inputs, encode_step, format_step
from .chat import TEMPLATE_DATE
from .formats import FORMATS, Formatter
from .info import DATASET_FILE, FORMAT_VERSION, DatasetInfo, SourceInfo
from .labels import canonical_name, unknown_label
from .pipeline import Phase, Step, Tally, dataset_digest, optional
from .problems import BadRecords
from .readers import Record, read
from .same_content import read_once
from .shards import ShardWriter, TokenDataset
from .sources import SourceFile, fetch_sources
from .tokenize import EncodedBatch

SPLIT = "test"


@dataclass(frozen=True)
class RegressionRows:
    """The rows of a set."""

    rows: TokenDataset
    dropped: Mapping[str, int]
    """Rule -> number of records that cannot be used, with `spec.data.onBadRecord: Skip`."""


def regression_rows(
    spec: Spec,
    info: DatasetInfo,
    formatters: Mapping[str, Formatter],
    tokenizer: Any,
    store: ObjectStore,
    *,
    scratch: Path,
    cache: Path,
) -> dict[str, RegressionRows]:
    """The rows of every set by name; made if they are not in storage. `info` is that of the training data, and
    `formatters` has one for each set.

    Raises BadDataError for unusable files or records, and BadConfigError for a file that is trained on.
    """
    found = {}
    for number, wanted in enumerate(spec.evaluation.regression_sets):
        field = f"spec.evaluation.regressionSets[{number}]"
        files = fetch_sources(wanted.sources, f"{field}.sources", store, scratch / f"regression-{number}")
        files, _ = read_once(wanted.sources, files, f"{field}.sources")
        _check_not_trained_on(files, info, field)
        formatter = formatters[wanted.name]
        inputs = Inputs({SPLIT: files}, formatter, tokenizer, info.tokenizer_digest, info.task, info.max_length)
        uri = _stored(spec, inputs, files, info, wanted, field, store)
        rows = TokenDataset.open(store, uri, SPLIT, cache)
        found[wanted.name] = RegressionRows(rows, rows.info.dropped)
    return found


def _check_not_trained_on(files: Sequence[SourceFile], info: DatasetInfo, field: str) -> None:
    trained = {source.sha256: source.uri for source in info.sources if source.split == "train" and source.rows}
    for file in files:
        if file.sha256 in trained:
            raise BadConfigError(
                f"{field}.sources: {file.uri} must not be a file of spec.data.train, because the model has learned its "
                f"records; it has the content of {trained[file.sha256]}",
                advice="divide the file, and name only the part that is not trained on",
            )


def _stored(
    spec: Spec,
    inputs: Inputs,
    files: Sequence[SourceFile],
    info: DatasetInfo,
    wanted: RegressionSet,
    field: str,
    store: ObjectStore,
) -> str:
    """The address of the rows in storage."""
    steps = (
        *optional(spec, Phase.TEXTS, inputs.formatter),
        format_step(spec.data.on_bad_record, inputs.formatter),
        encode_step(inputs),
    )
    depends_on = {"regression set": dataset_digest(inputs.files, steps), "labels": list(info.labels)}
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    uri = dataset_folder(spec.output.uri, digest)
    if not store.exists(join(uri, DATASET_FILE)):
        builder = _Builder(spec, inputs, info.labels, ShardWriter(store, uri, SPLIT, vocabulary=len(inputs.tokenizer)))
        builder.read(files, steps)
        if not builder.writer.rows:
            raise BadDataError(
                f"{field}: the set {wanted.name} has no records that can be used",
                advice=f"check the files of {field}.sources, or remove the set",
            )
        store.put(join(uri, DATASET_FILE), builder.info(digest, info).content())
    return uri


class _Builder:
    """Writes the rows of the files of one set, in the order of the files, in one process."""

    def __init__(self, spec: Spec, inputs: Inputs, labels: Sequence[str], writer: ShardWriter) -> None:
        self.writer = writer
        self._inputs = inputs
        self._bad = BadRecords(spec.data.on_bad_record)
        self._labels = labels
        self._ids = {name: number for number, name in enumerate(labels)}
        self._support = TASKS[inputs.task].support
        self._is_divisible = FORMATS[inputs.formatter.data_format].is_divisible
        self._sources: list[SourceInfo] = []
        self._records = self._documents = self._truncated = self._tokens = self._dropped_tokens = self._without_loss = 0

    def read(self, files: Sequence[SourceFile], steps: Sequence[Step]) -> None:
        """Raises BadDataError for files or records that cannot be used."""
        tally = Tally(self._bad, in_training=False)
        for file in files:
            before = self._records
            items: Any = self._counted(read(file, self._bad, self._inputs.formatter.columns_of))
            for step in steps:
                items = step.apply(items, tally)
            for batch in items:
                self._add(batch)
            rows = self._records - before
            self._sources.append(SourceInfo(split=SPLIT, uri=file.uri, sha256=file.sha256, rows=rows))
        self._bad.raise_if_any()
        self.writer.flush()

    def _counted(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            self._records += 1
            yield record

    def _add(self, batch: EncodedBatch) -> None:
        token_ids = np.array([self._id(name) for name in (*batch.token_label_names, "")], dtype=np.int64)
        ids = np.array([self._id(example.label) for example in batch.examples], dtype=np.int64)
        is_known = np.ones(len(ids), dtype=np.bool_)
        example_of_row = np.repeat(np.arange(len(ids)), batch.rows)
        example_of_token = np.repeat(example_of_row, batch.row_lengths)
        wrong: dict[int, str] = {}
        if self._support.labels_records:
            wrong = {index: batch.examples[index].label for index in np.flatnonzero(ids < 0).tolist()}
        elif batch.token_labels is not None:
            for token in np.flatnonzero((batch.token_labels >= 0) & (token_ids[batch.token_labels] < 0)).tolist():
                wrong.setdefault(int(example_of_token[token]), batch.token_label_names[batch.token_labels[token]])
        for index, label in wrong.items():
            is_known[index] = False
            problem = unknown_label(label, self._labels, with_nearest=not self._bad.skips)
            self._bad.add(str(batch.examples[index].place), problem)
        rows, tokens = is_known[example_of_row], is_known[example_of_token]
        has_rows = is_known & (batch.rows > 0)
        numbers = self._documents + np.cumsum(has_rows)
        self.writer.add(
            batch.row_lengths[rows].astype(np.int64),
            batch.tokens[tokens],
            labels=ids[example_of_row[rows]] if self._support.labels_records else None,
            loss=None if batch.loss is None else batch.loss[tokens],
            token_labels=None if batch.token_labels is None else _mapped(batch.token_labels[tokens], token_ids),
            first_lengths=None if batch.first_lengths is None else batch.first_lengths[rows],
            documents=numbers[example_of_row[rows]] if self._is_divisible else None,
        )
        self._documents += int(has_rows.sum())
        self._truncated += int((batch.truncated & is_known).sum())
        self._dropped_tokens += int(batch.dropped[is_known].sum())
        self._tokens += int(tokens.sum() + batch.dropped[is_known].sum())
        self._without_loss += int((is_known & (batch.rows == 0)).sum())

    def _id(self, label: str) -> int:
        """The label id of the training data for any spelling; -1: it does not occur there."""
        names = (canonical_name(label, floats_are_whole=are_whole) for are_whole in (True, False))
        return next((self._ids[name] for name in names if name in self._ids), -1)

    def info(self, digest: str, training: DatasetInfo) -> DatasetInfo:
        """dataset.json of the set; `training` is that of the training data."""
        dropped = dict(self._bad.dropped)
        if self._without_loss:
            dropped[WITHOUT_LOSS] = self._without_loss
        return DatasetInfo(
            version=FORMAT_VERSION,
            digest=digest,
            format=self._inputs.formatter.data_format,
            task=self._inputs.task,
            seed=training.seed,
            max_length=self._inputs.max_length,
            tokenizer_digest=self._inputs.tokenizer_digest,
            largest_token=self.writer.largest_token,
            counts=SplitCounts(train=0, test=self.writer.rows),
            labels=training.labels,
            lengths={SPLIT: dict(sorted(self.writer.lengths.items()))},
            dropped=dropped,
            truncated={SPLIT: self._truncated},
            documents={SPLIT: self._documents},
            tokens={SPLIT: self._tokens},
            dropped_tokens={SPLIT: self._dropped_tokens},
            template_date=training.template_date or TEMPLATE_DATE,
            masking=training.masking,
            sources=tuple(self._sources),
            shards={SPLIT: tuple(self.writer.shards)},
        )


def _mapped(labels: NDArray[np.int32], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Label ids of the training data; -1 is kept."""
    return np.where(labels >= 0, ids[labels], -1)
