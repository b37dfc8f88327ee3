"""Which run the spec asks for. A changed meaning is a new numbered run; the old ones stay."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api.v1alpha1 import FineTuneJob, Spec

from ..observed import ObservedStage

_SEMANTIC_BLOCKS = ("model", "data", "method", "training", "deepspeed", "evaluation", "output", "run_id")
"""What decides the result. Where and how often it runs, how it is saved and whether it is suspended do not."""


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
    if known and job.status.run_hash == wanted:
        return Run(known, wanted, is_new=False)
    begun = {child.run: child.run_hash for child in children if child.run > known}
    same = (run for run, meant in begun.items() if meant in ("", wanted))
    return Run(max(same, default=max(begun, default=known) + 1), wanted, is_new=True)


def semantic_hash(spec: Spec) -> str:
    """Of the blocks that decide the result."""
    return hash_of(spec, _SEMANTIC_BLOCKS)


def hash_of(spec: Spec, blocks: Iterable[str]) -> str:
    """First 16 hex digits of a SHA-256 over some blocks."""
    # Without defaults: a field that a later version adds must not start every job again.
    content = spec.model_dump(mode="json", include=set(blocks), exclude_defaults=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
