"""Compares stored runs: spec, data, metrics of the test split, trained parameters, cost and curves.

Importable without torch. The documents of the runs may have been written by another version, or by others who can write
to the storage: they are read with limits, and only the needed fields.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from finetune_api.comparison import OVERFLOW
from finetune_api.run_layout import RunLayout
from finetune_api.scopes import values
from finetune_api.trainer_config import Exchanged, JobRef
from finetune_api.v1alpha1 import METRIC_SUPPORT, CostStatus, Metric, Scope, Spec

from ..errors import ObjectMissingError, StorageProtocolError
from ..store import ObjectStore
from .training_log import TrainingLog

MAX_RUNS = 8
"""More lines of one chart cannot be distinguished."""

_MAX_BYTES = {"run.json": 8 << 20, "evaluation.json": 32 << 20, "training.json": 256 << 20}
_MAX_POINTS = 2_000
"""Points of a curve; every n-th is left out beyond that."""
_MAX_TEXT = 512
"""Characters of a text from storage."""

Document = TypeVar("Document", bound=BaseModel)


class _Prepared(Exchanged):
    dataset_digest: str = ""
    model_digest: str = ""
    task: str = ""
    counts: dict[str, int] = {}


class _Record(Exchanged):
    """The part of `run.json` that is compared."""

    job: JobRef
    run: int
    spec: dict[str, Any]
    prepared: _Prepared
    learning_rate: float | None = None


class _Interval(Exchanged):
    low: float
    high: float
    confidence: float = 0.95


class _Figures(Exchanged):
    metrics: dict[str, float] = {}
    intervals: dict[str, _Interval] = {}
    examples: int = 0


class _Evaluation(Exchanged):
    """The part of `evaluation.json` that is compared."""

    tuned: _Figures | None = None


@dataclass(frozen=True)
class StoredDocuments:
    """The documents of one run, as read from storage."""

    name: str
    """Name or address as entered by the user."""
    uri: str
    record: _Record
    evaluation: _Evaluation | None
    training: TrainingLog | None
    cost: CostStatus | None = None


class _Shown(BaseModel):
    """A block of the output; its JSON has camelCase keys."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class Measured(_Shown):
    """A metric of the test split."""

    value: float
    low: float | None = None
    """Bounds of the confidence interval. Absent: the metric has none."""
    high: float | None = None
    confidence: float | None = None


class RunSummary(_Shown):
    """One of the compared runs."""

    label: str
    """`A`, `B` and so on."""
    name: str
    """Name or address as entered by the user."""
    uri: str
    job: str
    """`namespace/name`."""
    run: int
    task: str
    dataset_digest: str
    model_digest: str
    rows: dict[str, int]
    """Split -> rows."""
    trained_parameters: int | None
    """Absent: there is no training log, or an older trainer wrote it."""
    steps: int | None
    cost: CostStatus | None
    """Absent: unknown, because the run was named by its address, or its job does not have it any more."""
    evaluated: bool
    metrics: dict[str, Measured]
    curves: dict[str, list[tuple[int, float]]]
    """Name -> (step, value)."""


class SpecChange(_Shown):
    """A field of the spec that differs."""

    path: str
    values: dict[str, str]
    """Label of the run -> value as JSON. Missing: the run does not have the field."""


class RunComparison(_Shown):
    """What differs between runs."""

    runs: tuple[RunSummary, ...]
    changes: tuple[SpecChange, ...]
    """Fields of the spec that are not equal in all runs."""
    metrics: tuple[str, ...]
    """Metrics to compare, in the order of the API."""
    curves: tuple[str, ...]
    """Curves to compare."""
    notes: tuple[str, ...]
    """What limits the comparison, one sentence each."""


CURVES = (
    "loss",
    "eval_loss",
    *(f"eval_{metric.key}" for metric in Metric if metric is not Metric.LOSS),
    "learning_rate",
    "grad_norm",
)
"""Names of the curves in the training log, in the order of the report."""


def curve_title(name: str) -> str:
    """`Training loss`, `Validation macro F1`."""
    metrics = {f"eval_{metric.key}": f"Validation {METRIC_SUPPORT[metric].name}" for metric in Metric}
    others = {"loss": "Training loss", "learning_rate": "Learning rate", "grad_norm": "Gradient norm"}
    return (metrics | others)[name]


def read_run(
    store: ObjectStore, uri: str, *, name: str, cost: CostStatus | None = None, most_bytes: int | None = None
) -> StoredDocuments:
    """Read the documents of a run, each of at most `most_bytes`, if it is given.

    Raises ObjectMissingError if there is no run, and StorageProtocolError if a document is too large or unreadable.
    """
    layout = RunLayout(uri)
    record = _read(store, layout.record, _Record, most_bytes)
    if record is None:
        raise ObjectMissingError(
            f"there is no run at {uri}",
            advice="write JOB, JOB:RUN or the folder of a run: s3://BUCKET/.../runs/r0001-...",
        )
    evaluation = _read(store, layout.evaluation, _Evaluation, most_bytes)
    training = _read(store, layout.training_log, TrainingLog, most_bytes)
    return StoredDocuments(name, uri, record, evaluation, training, cost)


def compare_runs(
    stored: Sequence[StoredDocuments], *, with_cost: bool = True, more_notes: Sequence[str] = ()
) -> RunComparison:
    """Compare two to `MAX_RUNS` runs. Pure. `with_cost`: say which costs are unknown."""
    runs = tuple(_summary(label, run) for label, run in zip(ascii_uppercase, stored, strict=False))
    is_one_task = len({run.task for run in runs}) == 1
    specs = {run.label: _spec_values(document.record) for run, document in zip(runs, stored, strict=True)}
    return RunComparison(
        runs=runs,
        changes=_changes({label: found for label, found in specs.items() if found is not None}),
        metrics=_names([str(metric) for metric in Metric], (run.metrics for run in runs if run.evaluated), is_one_task),
        curves=_names(CURVES, (run.curves for run in runs if run.curves), is_one_task),
        notes=(
            *more_notes,
            *_notes(runs, is_one_task, with_cost),
            *(_unread_note(label) for label, found in specs.items() if found is None),
        ),
    )


def _read(store: ObjectStore, uri: str, kind: type[Document], most_bytes: int | None = None) -> Document | None:
    limit = most_bytes or _MAX_BYTES[uri.rpartition("/")[2]]
    found = store.get_version(uri, most_bytes=limit)
    if found is None:
        return None
    try:
        return kind.model_validate_json(found.content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:_MAX_TEXT]
        raise StorageProtocolError(
            f"{uri} cannot be compared: {where or 'the document'}: {first['msg'][:_MAX_TEXT]}",
            advice="use the version of this command that the run was made with",
        ) from None


def _summary(label: str, run: StoredDocuments) -> RunSummary:
    record, training = run.record, run.training
    figures = run.evaluation.tuned if run.evaluation else None
    return RunSummary(
        label=label,
        name=run.name[:_MAX_TEXT],
        uri=run.uri,
        job=f"{record.job.namespace}/{record.job.name}"[:_MAX_TEXT],
        run=record.run,
        task=record.prepared.task[:_MAX_TEXT],
        dataset_digest=record.prepared.dataset_digest[:_MAX_TEXT],
        model_digest=record.prepared.model_digest[:_MAX_TEXT],
        rows={split: record.prepared.counts.get(split, 0) for split in ("train", "validation", "test")},
        trained_parameters=training.trained_parameters if training else None,
        steps=training.steps if training else None,
        cost=run.cost,
        evaluated=run.evaluation is not None,
        metrics={} if figures is None else _measured(figures),
        curves={} if training is None else _curves(training),
    )


def _measured(figures: _Figures) -> dict[str, Measured]:
    found = {}
    for metric in Metric:
        value, interval = figures.metrics.get(metric), figures.intervals.get(metric)
        if value is None:
            continue
        bounds = {} if interval is None else interval.model_dump()
        found[str(metric)] = Measured(value=value, **bounds)
    return found


def _curves(training: TrainingLog) -> dict[str, list[tuple[int, float]]]:
    curves = {name: [(step, value) for step, value in training.curve(name) if abs(value) < OVERFLOW] for name in CURVES}
    return {name: points[:: -(-len(points) // _MAX_POINTS)] for name, points in curves.items() if points}


def _spec_values(record: _Record) -> dict[str, str] | None:
    """Return path -> value of all leaves of the spec, with a learning rate that was chosen; None if this version cannot
    read it."""
    try:
        spec = Spec.model_validate(record.spec)
    except ValidationError:
        return None
    rate = {"spec.training.learningRate": json.dumps(record.learning_rate)} if record.learning_rate else {}
    return rate | values(spec, frozenset(Scope))


def _changes(specs: Mapping[str, Mapping[str, str]]) -> tuple[SpecChange, ...]:
    paths = dict.fromkeys(path for found in specs.values() for path in found)
    return tuple(
        SpecChange(path=path, values={label: found[path] for label, found in specs.items() if path in found})
        for path in paths
        if len({found.get(path) for found in specs.values()}) > 1
    )


def _names(order: Iterable[str], present: Iterable[Mapping[str, Any]], is_one_task: bool) -> tuple[str, ...]:
    """Return the names that a run has, or, if the runs have different tasks, those that all have."""
    found = [set(names) for names in present]
    if not found:
        return ()
    wanted = set.union(*found) if is_one_task else set.intersection(*found)
    return tuple(name for name in order if name in wanted)


def _notes(runs: Sequence[RunSummary], is_one_task: bool, with_cost: bool) -> Iterable[str]:
    if not is_one_task:
        tasks = ", ".join(f"{run.label} {run.task or 'unknown'}" for run in runs)
        yield f"The runs have different tasks ({tasks}): only metrics and curves that all of them have are compared."
    if len({run.dataset_digest for run in runs}) > 1:
        yield "The runs have different datasets, so their metrics are not those of the same test examples."
    for run in runs:
        if not run.evaluated:
            yield f"{run.label} has no evaluation yet."
        elif not run.metrics:
            yield f"{run.label} has no test split, so it has no metrics."
        if not run.curves:
            yield f"{run.label} has no training log yet, so it has no curves."
        if run.cost is None and with_cost:
            yield f"The cost of {run.label} is unknown: only the status of its job has it."


def _unread_note(label: str) -> str:
    return f"The spec of {label} was written by another version and is not compared."
