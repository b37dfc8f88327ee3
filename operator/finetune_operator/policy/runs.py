"""Which run the spec asks for. Fields of the scopes Data and Run decide; another value is a new numbered run."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from finetune_api.scopes import HASH_DIGITS, spec_hash
from finetune_api.v1alpha1 import TASK_SUPPORT, ArtifactFormat, FineTuneJob, ResolvedStatus, Scope, Spec, Status

from ..observed import ObservedStage


@dataclass(frozen=True)
class Run:
    """The run that the spec asks for."""

    number: int
    hash: str
    is_new: bool
    """True: status still describes an older run, or none."""


def current_run(job: FineTuneJob, children: Iterable[ObservedStage]) -> Run:
    """The run in status while the spec asks for the same; else the next number that no other spec has used.

    Children of a run that status does not know were created by a pass that ended before it could write status, or the
    spec has changed since.
    """
    known, wanted = job.status.run, run_hash(job.spec)
    if known.number and known.spec_hash in _hashes_of_same_run(job):
        return Run(known.number, known.spec_hash, is_new=False)
    if known.number and known.spec_hash in _hashes_before_scopes(job.spec):
        return Run(known.number, wanted, is_new=False)
    started = {child.run: child.run_hash for child in children if child.run > known.number}
    same = (run for run, found in started.items() if found in ("", wanted))
    return Run(max(same, default=max(started, default=known.number) + 1), wanted, is_new=True)


def known_run(status: Status, children: Iterable[ObservedStage]) -> Run | None:
    """The run in progress, whatever the spec says now; None where none has started."""
    newest = max(children, key=lambda child: child.run, default=None)
    if newest is not None and newest.run > status.run.number:
        return Run(newest.run, newest.run_hash, is_new=True)
    return Run(status.run.number, status.run.spec_hash, is_new=False) if status.run.number else None


def run_hash(spec: Spec) -> str:
    """Hash of the fields that decide the result."""
    return spec_hash(spec, {Scope.DATA, Scope.RUN})


def _hashes_of_same_run(job: FineTuneJob) -> Iterator[str]:
    """Hashes that a run of this spec may have been started with.

    A field that was absent then and now has the value that the run resolved it to changes nothing.
    """
    yield run_hash(job.spec)
    if job.status.run.resolved is None:
        return
    for uri, task, dtype, data_format, packing, validation, test in product(
        *_written_at_start(job.spec, job.status.run.resolved)
    ):
        model = job.spec.model.model_copy(update={"uri": uri, "task": task, "dtype": dtype})
        changes = {"format": data_format, "packing": packing, "validation": validation, "test": test}
        data = job.spec.data.model_copy(update=changes)
        yield run_hash(job.spec.model_copy(update={"model": model, "data": data}))


def _written_at_start(spec: Spec, resolved: ResolvedStatus) -> Iterator[tuple[object, ...]]:
    """For each field with an automatic value: the values that the user may have written when the run started."""
    yield tuple(_model_uris(spec, resolved))
    automatic = (
        (spec.model.task, resolved.task),
        (spec.model.dtype, resolved.dtype),
        (spec.data.format, resolved.format),
        (spec.data.packing, resolved.packing),
    )
    for written, chosen in automatic:
        yield (written, None) if written is not None and written == chosen else (written,)
    stratified = any(row.has_labels for task, row in TASK_SUPPORT.items() if task == resolved.task)
    for holdout in (spec.data.validation, spec.data.test):
        is_automatic = holdout.stratify is not None and holdout.stratify == stratified
        yield (holdout, holdout.model_copy(update={"stratify": None})) if is_automatic else (holdout,)


def _model_uris(spec: Spec, resolved: ResolvedStatus) -> Iterator[str]:
    """The base model's address, and those with the revision that the run asked for in place of the resolved commit.

    A user who pins that commit in `spec.model.uri` asks for the same run.
    """
    yield spec.model.uri
    name, _, revision = spec.model.uri.partition("@")
    if not revision or revision != resolved.model_revision:
        return
    # A run that was prepared before its revision was recorded: the default branch, or an unknown one.
    requested = ("", "main") if resolved.requested_revision is None else (resolved.requested_revision,)
    yield from (f"{name}@{one}" if one else name for one in requested)


def _hashes_before_scopes(spec: Spec) -> Iterator[str]:
    """Hashes that operators computed before fields had scopes: over whole blocks, where `output.formats` was absent by
    default. They keep a run that such an operator started."""
    blocks = ("model", "data", "method", "training", "deepspeed", "evaluation", "output", "run_id")
    technical = {
        "training": {"micro_batch_size", "gradient_checkpointing"},
        "deepspeed": {"zero_stage", "offload"},
    }
    values = spec.model_dump(mode="json", include=set(blocks), exclude=technical, exclude_defaults=True)
    content = {name: block for name, block in values.items() if block != {}}
    explicit = {**content, "output": {**content.get("output", {}), "formats": [str(ArtifactFormat.MERGED)]}}
    for found in (content, explicit):
        yield hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:HASH_DIGITS]
