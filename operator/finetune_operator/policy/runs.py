"""Determine the run of a spec.

A change of a field of scope Data or Run starts a new run with the next number, or continues the earlier run of the same
spec.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product

from finetune_api.constants import Stage
from finetune_api.scopes import HASH_DIGITS, spec_hash
from finetune_api.v1alpha1 import (
    TASK_SUPPORT,
    ArtifactFormat,
    FineTuneJob,
    PastRun,
    ResolvedStatus,
    Reuse,
    RunTrigger,
    Scope,
    Spec,
    Status,
    UpdatePolicy,
)

from ..observed import ObservedAttempt


@dataclass(frozen=True)
class Run:
    """The run that the spec describes."""

    number: int
    hash: str
    is_new: bool
    """True: status still describes another run, or none."""
    is_adopted: bool = field(default=False, compare=False)
    """Whether an operator that hashed other fields started the run, so that its hash is replaced."""
    reused: PastRun | None = field(default=None, compare=False)
    """Entry of the history that becomes the current run again."""
    trigger: RunTrigger = RunTrigger.SPEC
    """Why a new run starts."""


def current_run(job: FineTuneJob, children: Iterable[ObservedAttempt], *, again: RunTrigger | None = None) -> Run:
    """Return the run in status if the spec still describes it, else an earlier run that the spec describes, else a new
    run with the next unused number. `again`: why a new run starts although the spec describes the one in status.

    Children of a run that is not in status were created by a reconcile that failed before it wrote status. If the spec
    was changed since, their number is not used again.
    """
    known, wanted, trigger = job.status.run, run_hash(job.spec), RunTrigger.SPEC
    newest = newest_number(job.status)
    started = {child.run: child.run_hash for child in children if child.run > newest}
    if known.number and known.spec_hash in _hashes_of_same_run(job.spec, known.resolved):
        if again is None and wanted not in started.values():
            return Run(known.number, known.spec_hash, is_new=False)
        trigger = again or (RunTrigger.SCHEDULE if job.spec.schedule else RunTrigger.DATA)
    elif known.number and known.spec_hash in _hashes_before_scopes(job):
        return Run(known.number, wanted, is_new=False, is_adopted=True)
    elif (past := _reusable(job)) is not None:
        return Run(past.number, past.spec_hash, is_new=True, reused=past)
    same = (run for run, found in started.items() if found in ("", wanted))
    return Run(max(same, default=max(started, default=newest) + 1), wanted, is_new=True, trigger=trigger)


def awaits_end(job: FineTuneJob) -> bool:
    """Whether the spec describes another run, which must wait for the end of the current one."""
    has_current = job.status.run.number > 0 and job.status.terminal_condition is None
    return has_current and job.spec.update_policy is UpdatePolicy.IGNORE and current_run(job, ()).is_new


def newest_number(status: Status) -> int:
    """Return the highest number of a run that is in status. Numbers are not used again: run folders contain them."""
    return max(status.newest_run, status.run.number, *(past.number for past in status.history), 0)


def _reusable(job: FineTuneJob) -> PastRun | None:
    """Return the newest past run of this spec that can continue. A failed run is not reused: it would fail again."""
    if job.spec.reuse is Reuse.NEVER:
        return None
    evaluates = any(one.stage is Stage.EVALUATE and one.outcome is None for one in job.status.run.attempts)
    if evaluates and job.spec.output.keep_runs is not None:
        return None  # it may be deleting the files of that run
    hashes: dict[tuple[tuple[object, ...], ...], frozenset[str]] = {}
    for past in reversed(job.status.history):
        if not past.attempts or past.result == "Failed" or past.files_deleted:
            continue
        # Usually one set for all runs: a hash takes half a millisecond, and there may be a hundred for one run.
        key = () if past.resolved is None else tuple(_written_at_start(job.spec, past.resolved))
        if key not in hashes:
            hashes[key] = frozenset(_hashes_of_same_run(job.spec, past.resolved))
        if past.spec_hash in hashes[key]:
            return past
    return None


def known_run(status: Status, children: Iterable[ObservedAttempt]) -> Run | None:
    """Return the run in progress, independent of the current spec; None if none has started."""
    newest = max(children, key=lambda child: child.run, default=None)
    if newest is not None and newest.run > newest_number(status):
        return Run(newest.run, newest.run_hash, is_new=True)
    return Run(status.run.number, status.run.spec_hash, is_new=False) if status.run.number else None


def run_hash(spec: Spec) -> str:
    """Return the hash of the fields that determine the result."""
    return spec_hash(spec, {Scope.DATA, Scope.RUN})


def _hashes_of_same_run(spec: Spec, resolved: ResolvedStatus | None) -> Iterator[str]:
    """Yield the hashes that a run of this spec may have been started with.

    Setting an absent field to the value that the run resolved it to does not start a new run.
    """
    yield run_hash(spec)
    if resolved is None:
        return
    for uri, task, dtype, data_format, batching, rate, validation, test in product(*_written_at_start(spec, resolved)):
        model = spec.model.model_copy(update={"uri": uri, "task": task, "dtype": dtype})
        changes = {"format": data_format, "validation": validation, "test": test}
        data = spec.data.model_copy(update=changes)
        training = spec.training.model_copy(update={"learning_rate": rate, "batching": batching})
        yield run_hash(spec.model_copy(update={"model": model, "data": data, "training": training}))


def _written_at_start(spec: Spec, resolved: ResolvedStatus) -> Iterator[tuple[object, ...]]:
    """Yield for each field with an automatic value the values that it may have had in the spec at the start of the
    run."""
    yield tuple(_model_uris(spec, resolved))
    automatic = (
        (spec.model.task, resolved.task),
        (spec.model.dtype, resolved.dtype),
        (spec.data.format, resolved.format),
        (spec.training.batching, resolved.batching),
        (spec.training.learning_rate, resolved.learning_rate),
    )
    for written, chosen in automatic:
        yield (written, None) if written is not None and written == chosen else (written,)
    stratified = any(row.labels_records for task, row in TASK_SUPPORT.items() if task == resolved.task)
    for holdout in (spec.data.validation, spec.data.test):
        is_automatic = holdout.stratify is not None and holdout.stratify == stratified
        yield (holdout, holdout.model_copy(update={"stratify": None})) if is_automatic else (holdout,)


def _model_uris(spec: Spec, resolved: ResolvedStatus) -> Iterator[str]:
    """Yield the address of the base model, and the address with the original revision instead of the resolved commit.

    Pinning the resolved commit in `spec.model.uri` does not start a new run.
    """
    yield spec.model.uri
    name, _, revision = spec.model.uri.partition("@")
    if not revision or revision != resolved.model_revision:
        return
    # Runs of earlier versions did not record the revision: assume the default branch.
    requested = ("", "main") if resolved.requested_revision is None else (resolved.requested_revision,)
    yield from (f"{name}@{one}" if one else name for one in requested)


def _hashes_before_scopes(job: FineTuneJob) -> Iterator[str]:
    """Return hashes that operators computed before fields had scopes: over whole blocks, where `output.formats` was
    absent by default. They keep a run that such an operator started."""
    resolved = job.status.run.resolved
    for uri in (job.spec.model.uri,) if resolved is None else _model_uris(job.spec, resolved):
        model = job.spec.model.model_copy(update={"uri": uri})
        yield from _hashes_of_blocks(job.spec.model_copy(update={"model": model}))


def _hashes_of_blocks(spec: Spec) -> Iterator[str]:
    blocks = ("model", "data", "method", "training", "deepspeed", "evaluation", "output", "run_nonce")
    technical = {
        "training": {"micro_batch_size", "gradient_checkpointing", "gradient_checkpointing_every_n_layers"},
        "deepspeed": {"zero_stage", "offload"},
    }
    values = spec.model_dump(mode="json", include=set(blocks), exclude=technical, exclude_defaults=True)
    content = {name: block for name, block in values.items() if block != {}}
    explicit = {**content, "output": {**content.get("output", {}), "formats": [str(ArtifactFormat.MERGED)]}}
    for found in (content, explicit):
        yield hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:HASH_DIGITS]
