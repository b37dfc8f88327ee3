"""dataset.json: content and sources of a prepared data set."""

from datetime import date

from pydantic import BaseModel, ConfigDict

from finetune_api.trainer_config import SplitCounts
from finetune_api.v1alpha1 import DataFormat, Task

from ..store.client import ObjectStore
from ..store.uri import join

DATASET_FILE = "dataset.json"
FORMAT_VERSION = 4
"""Raised when the same inputs would give other shards; part of the digest."""

SPLITS = ("train", "validation", "test")


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceInfo(_Block):
    """One file of records."""

    split: str
    """`train`, `validation` or `test`: which part of the spec names it."""
    uri: str
    sha256: str
    rows: int
    """Records read, also those that were dropped later."""


class ShardInfo(_Block):
    """One shard file, under `shards/`."""

    name: str
    sha256: str
    size: int
    """Bytes."""
    rows: int
    tokens: int


class DatasetInfo(_Block):
    """The whole of dataset.json. Written last: a data set exists only if this does."""

    version: int
    digest: str
    format: DataFormat
    task: Task
    seed: int
    max_length: int
    """Tokens that a row has at most."""
    tokenizer_digest: str
    largest_token: int
    """Largest token id in any row: the model's embedding needs a row for it."""
    counts: SplitCounts
    labels: tuple[str, ...] = ()
    """Label names in the order of their ids."""
    label_counts: dict[str, dict[str, int]] = {}
    """Split -> label -> rows with it or, where tokens have labels, tokens."""
    lengths: dict[str, dict[int, int]]
    """Split -> tokens of a row -> rows."""
    dropped: dict[str, int] = {}
    """Rule -> records that were left out."""
    truncated: dict[str, int] = {}
    """Split -> rows that were cut to `max_length`."""
    divided: dict[str, int] = {}
    """Split -> texts that were longer than `max_length` and were divided into several rows."""
    documents: dict[str, int] = {}
    """Split -> records that have rows."""
    tokens: dict[str, int] = {}
    """Split -> tokens of its records before anything was cut or left out for its length."""
    dropped_tokens: dict[str, int] = {}
    """Split -> how many of these tokens are in no row."""
    template_date: date | None = None
    """What the chat template was given as today's date."""
    sources: tuple[SourceInfo, ...]
    shards: dict[str, tuple[ShardInfo, ...]]
    """Split -> shards in row order."""
    remarks: tuple[str, ...] = ()
    """What a user should know about how the rows were made, one line each."""


def read_dataset_info(store: ObjectStore, dataset_uri: str) -> DatasetInfo:
    """dataset.json of a prepared data set. Raises ObjectMissingError where there is none."""
    return DatasetInfo.model_validate_json(store.get(join(dataset_uri, DATASET_FILE)))
