"""Looks at the first records of the data files and at a base model, to suggest the fields of a first job."""

from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.rules import Violation
from finetune_api.v1alpha1 import BadRecordAction, Columns, Data, DataFormat, Source, Task, TrainingSource
from finetune_api.validation import violation_of

from ..errors import BadDataError, ModelUnusableError
from ..model.fetch import fetch_model
from ..model.inspect import ModelFacts, check_task, inspect_model
from ..model.tokenizer import load_tokenizer
from ..store import ObjectStore
from ..tasks import TASKS
from .formats import FORMATS, detect_format
from .prepare import make_formatter
from .problems import BadRecords, RecordProblem
from .readers import column_names, read
from .sources import fetch_sources

MAX_RECORDS = 2_000
"""Records that are read: enough for the lengths of most."""


@dataclass(frozen=True)
class FirstLook:
    """What was found."""

    format: DataFormat
    task: Task
    columns: dict[str, str]
    """Field of the format -> column that is read."""
    records: int
    """Usable records among the first."""
    skipped: int
    """Records among the first that cannot be used."""
    is_whole: bool
    """Whether these are all records of all files."""
    labels: tuple[str, ...]
    lengths: tuple[int, ...]
    """Tokens of the records, in ascending order."""
    model_type: str
    parameters: int
    max_tokens: int | None
    """Longest sequence that the model accepts. None: it has no limit."""


def look_at(data: str, model: str, columns: dict[str, str], store: ObjectStore | None, folder: Path) -> FirstLook:
    """Read the first records and fetch the model. `columns`: field of `spec.data.columns` -> column.

    The addresses are valid; `store` may be None if none is in object storage. `folder` is a cache for downloads. Raises
    BadDataError and ModelUnusableError.
    """
    stored: Any = store
    named = _columns(columns)
    fetched = fetch_model(model, stored, folder)
    facts = inspect_model(fetched.path, model)
    tokenizer = load_tokenizer(fetched.path)
    files = fetch_sources([Source(uri=data)], "--data", stored, folder / "sources")
    found = (column_names(file, BadRecords(BadRecordAction.SKIP)) for file in files)
    names = next((each for each in found if each is not None), None)
    if names is None:
        raise BadDataError(f"{data} has no records", advice="name a file that has some")
    data_format = _format(names, named, data)
    task = _task(data_format, facts, model)
    spec = Data(train=(TrainingSource(uri=data),), columns=named)
    formatter = make_formatter(data_format, spec, tokenizer, model)
    bad, lengths, labels, read_records = BadRecords(BadRecordAction.SKIP), [], set(), 0
    for record in islice(chain.from_iterable(read(file, bad) for file in files), MAX_RECORDS):
        read_records += 1
        try:
            example = formatter(record.values, record.place)
        except RecordProblem:
            continue
        lengths.append(len(tokenizer(example.text, add_special_tokens=False)["input_ids"]))
        labels |= {label for label in (example.label, *example.span_labels) if label}
    if not lengths:
        raise BadDataError(
            f"none of the first {read_records + bad.dropped.total():,} records of {data} can be used as {data_format}",
            advice="correct the records, or name other columns with --column FIELD=COLUMN",
        )
    limits = [facts.positions, tokenizer.model_max_length]
    return FirstLook(
        format=data_format,
        task=task,
        columns=_used(data_format, named, names),
        records=len(lengths),
        skipped=read_records - len(lengths) + bad.dropped.total(),
        is_whole=read_records < MAX_RECORDS,
        labels=tuple(sorted(labels)),
        lengths=tuple(sorted(lengths)),
        model_type=facts.model_type,
        parameters=facts.parameters,
        max_tokens=min((int(limit) for limit in limits if limit is not None and 0 < limit < 1 << 30), default=None),
    )


def _task(data_format: DataFormat, facts: ModelFacts, model: str) -> Task:
    """The first task of the format that the model can be trained for. Raises ModelUnusableError with the reason for the
    first one, if there is none."""
    refusal: ModelUnusableError | None = None
    for task in (name for name in Task if data_format in TASKS[name].support.formats):
        try:
            check_task(facts, model, task)
        except ModelUnusableError as error:
            refusal = refusal or error
        else:
            return task
    assert refusal is not None, "every format has a task"
    raise refusal


def _columns(columns: dict[str, str]) -> Columns:
    try:
        return Columns.model_validate(columns)
    except ValidationError as error:
        first = error.errors()[0]
        fault = violation_of({**first, "loc": ("spec", "data", "columns", *first["loc"])})
        field = fault.path.removeprefix("spec.data.columns.")
        known = ", ".join(str(info.alias) for info in Columns.model_fields.values())
        raise BadDataError(f"--column {Violation(field, fault.message)}", advice=f"the fields are {known}") from None


def _format(names: tuple[str, ...], named: Columns, data: str) -> DataFormat:
    try:
        return detect_format(names, named, None, data)
    except BadDataError as error:
        fields = "; ".join(f"{name}: {', '.join(FORMATS[name].columns)}" for name in DataFormat)
        raise BadDataError(
            str(error), advice=f"name the columns with --column FIELD=COLUMN; the fields are those of {fields}"
        ) from None


def _used(data_format: DataFormat, named: Columns, names: tuple[str, ...]) -> dict[str, str]:
    """Return field -> column, for fields whose column exists."""
    found = {}
    for field, usual in FORMATS[data_format].columns.items():
        wanted = getattr(named, field)
        possible = [wanted] if wanted else list(usual)
        column = next((name for name in possible if name in names), None)
        if column is not None:
            found[field] = column
    return found
