"""dataset.json: contents and sources of a prepared dataset."""

from collections import Counter
from collections.abc import Mapping
from datetime import date

from pydantic import BaseModel, ConfigDict

from finetune_api.trainer_config import SplitCounts
from finetune_api.v1alpha1 import DataFormat, Task

from ..store.client import ObjectStore
from ..store.uri import join

DATASET_FILE = "dataset.json"
FORMAT_VERSION = 4
"""Increased when the same inputs would give different shards; part of the digest."""

SPLITS = ("train", "validation", "test")
_MOST_REASONS = 6
"""Reasons of a rule that are shown in a line."""


class _Block(BaseModel):
    """Unknown fields are ignored: a newer trainer may have prepared the dataset."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SourceInfo(_Block):
    """One file of records."""

    split: str
    """`train`, `validation` or `test`: the part of the spec that names it."""
    uri: str
    sha256: str
    rows: int
    """Records read, including those that were dropped later."""


class ShardInfo(_Block):
    """One shard file, under `shards/`."""

    name: str
    sha256: str
    size: int
    """Bytes."""
    rows: int
    tokens: int


class ShownRecord(_Block):
    """A record in a report, as text that is safe to print (`shown_records.py`)."""

    place: str
    """File, and line or row."""
    text: str
    """Empty: only the place is shown, because the text of the record was not at hand."""


class RuleInfo(_Block):
    """What one optional step, for example a rule of `spec.data.cleaning`, did to the records."""

    rule: str
    changed: int = 0
    """Records with other text than in their file."""
    dropped: int = 0
    reasons: dict[str, int] = {}
    """Reason -> number of records that were dropped for it, most frequent first. Empty: the rule has only one."""
    added: int = 0
    """Changed copies of records in the training split."""
    examples: tuple[ShownRecord, ...] = ()
    """The first such records."""

    @property
    def reasons_text(self) -> str:
        """The reasons with their counts, in parentheses; empty if the rule has only one."""
        return reasons_text(self.reasons)


def reasons_text(reasons: Mapping[str, int]) -> str:
    """The most frequent reasons with their counts, in parentheses, such as `(fr 20, es 11)`; empty without reasons."""
    found = [f"{reason} {count:,}" for reason, count in Counter(reasons).most_common(_MOST_REASONS)]
    more = [f"{len(reasons) - len(found)} more"] if len(reasons) > len(found) else []
    return f"({', '.join(found + more)})" if found else ""


class Masking(_Block):
    """What replaces the tokens that are to be predicted."""

    mask_token: int
    vocabulary: int
    """Token ids are less than this."""
    special_tokens: tuple[int, ...]
    """Ids that are never predicted and never replace a token, sorted."""


class WeightInfo(_Block):
    """How often the records of one source of `spec.data.train` are in the training split."""

    uri: str
    """As in the spec: a file or a glob."""
    weight: float
    before: int
    """Its records in the training split, after `spec.data.cleaning`."""
    after: int
    """The same with the weight: records that are repeated count several times."""


class DatasetInfo(_Block):
    """The contents of dataset.json. It is written last: a dataset without it does not exist."""

    version: int
    digest: str
    format: DataFormat
    task: Task
    seed: int
    max_length: int
    """Maximum number of tokens per row."""
    tokenizer_digest: str
    largest_token: int
    """Largest token id in any row: the model's embedding must have a row for it."""
    counts: SplitCounts
    labels: tuple[str, ...] = ()
    """Label names in the order of their ids."""
    label_counts: dict[str, dict[str, int]] = {}
    """Split -> label -> number of rows with it, or of tokens with it if tokens have labels."""
    lengths: dict[str, dict[int, int]]
    """Split -> tokens of a row -> number of rows."""
    dropped: dict[str, int] = {}
    """Rule -> number of records that were dropped."""
    rules: tuple[RuleInfo, ...] = ()
    """The optional steps that were enabled, in order."""
    weights: tuple[WeightInfo, ...] = ()
    """All sources of `spec.data.train`, in order. Empty: none has another weight than 1."""
    truncated: dict[str, int] = {}
    """Split -> number of rows that were truncated to `max_length`."""
    divided: dict[str, int] = {}
    """Split -> number of texts that were longer than `max_length` and were split into several rows."""
    documents: dict[str, int] = {}
    """Split -> number of records that have rows."""
    tokens: dict[str, int] = {}
    """Split -> tokens of its records before truncating and dropping."""
    dropped_tokens: dict[str, int] = {}
    """Split -> number of these tokens that are in no row."""
    masking: Masking | None = None
    """What replaces masked tokens. None: the task masks none."""
    template_date: date | None = None
    """The date that chat templates get as the current date."""
    sources: tuple[SourceInfo, ...]
    shards: dict[str, tuple[ShardInfo, ...]]
    """Split -> shards in row order."""
    remarks: tuple[str, ...] = ()
    """Notes for the user about how the rows were made, one line each."""

    def content(self) -> bytes:
        """The content of the file. Newer fields are omitted if they are empty, because older trainers refuse unknown
        fields."""
        unused = {name for name in ("rules", "weights", "masking") if not getattr(self, name)}
        return self.model_dump_json(indent=1, exclude=unused or None).encode()


def read_dataset_info(store: ObjectStore, dataset_uri: str) -> DatasetInfo:
    """Read dataset.json of a prepared dataset. Raises ObjectMissingError if there is none."""
    return DatasetInfo.model_validate_json(store.get(join(dataset_uri, DATASET_FILE)))
