"""Which run the spec asks for. A changed meaning is a new numbered run; the old ones stay."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from finetune_api.v1alpha1 import FineTuneJob, Spec, Status

from ..observed import ObservedStage

Fields = Mapping[str, bool | set[str]]
"""Blocks of a spec, whole (True) or some of their fields."""

_SEMANTIC_BLOCKS: Fields = dict.fromkeys(
    ("model", "data", "method", "training", "deepspeed", "evaluation", "output", "run_id"), True
)
"""What decides the result. Where and how often it runs, how it is saved and whether it is suspended do not."""
TECHNICAL_FIELDS: Fields = {
    "training": {"micro_batch_size", "gradient_checkpointing"},
    "deepspeed": {"zero_stage", "offload"},
}
"""Of these blocks, what decides only how an optimizer step is worked out, on how much memory: any attempt of a run may
have other ones."""


@dataclass(frozen=True)
class Run:
    """The run that the spec asks for."""

    number: int
    hash: str
    is_new: bool
    """True: status still speaks of an older run, or of none."""


def current_run(job: FineTuneJob, children: Iterable[ObservedStage]) -> Run:
    """The run in status while the spec means the same; else the next number that is not another spec's.

    Children of a run that status does not know yet are of a pass that could not tell of them: it has died, or the spec
    has changed meanwhile.
    """
    known, wanted = job.status.run, semantic_hash(job.spec)
    if known and job.status.run_hash in (wanted, *_before_it_was_pinned(job)):
        return Run(known, job.status.run_hash, is_new=False)
    begun = {child.run: child.run_hash for child in children if child.run > known}
    same = (run for run, meant in begun.items() if meant in ("", wanted))
    return Run(max(same, default=max(begun, default=known) + 1), wanted, is_new=True)


def known_run(status: Status, children: Iterable[ObservedStage]) -> Run | None:
    """The run that goes on, whatever the spec says now; None where none has begun."""
    newest = max(children, key=lambda child: child.run, default=None)
    if newest is not None and newest.run > status.run:
        return Run(newest.run, newest.run_hash, is_new=True)
    return Run(status.run, status.run_hash, is_new=False) if status.run else None


def _before_it_was_pinned(job: FineTuneJob) -> Iterator[str]:
    """Hashes of the spec with the revision that the run asked for in place of the commit that it was prepared with.

    Whoever writes that commit into `spec.model.uri` asks for the same run, not for a new one.
    """
    chosen, (name, _, revision) = job.status.chosen, job.spec.model.uri.partition("@")
    if chosen is None or not revision or revision != chosen.model_revision:
        return
    # A run that was prepared before its revision was recorded: the default branch, or none that we know of.
    requested = ("", "main") if chosen.requested_revision is None else (chosen.requested_revision,)
    for uri in (f"{name}@{one}" if one else name for one in requested):
        model = job.spec.model.model_copy(update={"uri": uri})
        yield semantic_hash(job.spec.model_copy(update={"model": model}))


def semantic_hash(spec: Spec) -> str:
    """Of the blocks that decide the result."""
    return hash_of(spec, _SEMANTIC_BLOCKS, without=TECHNICAL_FIELDS)


def hash_of(spec: Spec, fields: Fields, *, without: Fields | None = None) -> str:
    """First 16 hex digits of a SHA-256 over some fields."""
    # Without defaults: a field that a later version adds must not start every job again. A block of which nothing is
    # left is none.
    told = spec.model_dump(mode="json", include=dict(fields), exclude=dict(without or {}), exclude_defaults=True)
    content = {name: block for name, block in told.items() if block != {}}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
