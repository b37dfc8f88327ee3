"""Which checkpoints are kept, and which blobs can be removed along with the others. Pure.

Kept are the newest ones, the best ones, the first one at or after each multiple of `every` steps, and the best state
that one of the newest would export. A removed checkpoint cannot be restored, so the rules are monotonic: a checkpoint
that was not kept once is never needed again.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.trainer_config import Message
from finetune_api.v1alpha1 import Checkpoint

from .manifest import Manifest

GRACE = timedelta(hours=1)
"""Minimum age of an unreferenced blob: a save in flight stores its blobs before its manifest."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Keep(Message):
    """The retention rules of `spec.checkpoint`."""

    last: int = 2
    best: int = 1
    every: int | None = None
    """Steps."""

    @classmethod
    def of(cls, rule: Checkpoint) -> "Keep":
        """The rules of a job."""
        return cls(last=rule.keep_last, best=rule.keep_best, every=rule.keep_every)


@dataclass(frozen=True)
class StoredBlob:
    """A blob as storage lists it."""

    digest: str
    """Its name. An object whose name is not a digest is left alone."""
    size: int
    modified: datetime


def newest_to_oldest(manifests: Iterable[Manifest]) -> list[Manifest]:
    """In the order in which a restore tries them, see `manifest.newest_first`."""
    return sorted(manifests, key=lambda manifest: (manifest.attempt, manifest.step), reverse=True)


def kept(manifests: Iterable[Manifest], keep: Keep) -> list[Manifest]:
    """The manifests to keep, newest first. All others may be removed."""
    ordered = newest_to_oldest(manifests)
    reasons = why_kept(ordered, keep)
    return [manifest for manifest in ordered if manifest.name in reasons]


def why_kept(manifests: Iterable[Manifest], keep: Keep) -> dict[str, list[str]]:
    """Name -> reasons (`last`, `best`, `every`) to keep it. A name that is absent may be removed."""
    ordered = newest_to_oldest(manifests)
    last = ordered[: keep.last]
    best = [manifest for manifest in ordered if manifest.is_best][: keep.best]
    chosen = {"last": last, "best": [*best, *_needed(last, ordered)], "every": _every(ordered, keep.every)}
    reasons: dict[str, list[str]] = {}
    for reason, stays in chosen.items():
        for name in dict.fromkeys(manifest.name for manifest in stays):
            reasons.setdefault(name, []).append(reason)
    return reasons


def _needed(last: Sequence[Manifest], ordered: Sequence[Manifest]) -> list[Manifest]:
    """The best states that the newest checkpoints would export after early stopping.

    A run whose best state is damaged falls back to an earlier checkpoint, and needs the best state of that one, which
    may not be the newest best one.
    """
    steps = {manifest.best_step for manifest in last}
    found = {manifest.step: manifest for manifest in reversed(ordered) if manifest.step in steps}
    return list(found.values())


def _every(ordered: Sequence[Manifest], every: int | None) -> list[Manifest]:
    """The first manifest at or after each multiple."""
    if every is None:
        return []
    stays: dict[int, Manifest] = {}
    for manifest in sorted(_line(ordered), key=lambda each: (each.step, -each.attempt)):
        # It is the first one for each multiple up to its step that no smaller step has reached.
        stays.setdefault(manifest.step // every, manifest)
    return [manifest for multiple, manifest in stays.items() if multiple]


def _line(ordered: Sequence[Manifest]) -> list[Manifest]:
    """Without superseded checkpoints, from which a newer attempt did not resume because it resumed from an earlier
    step."""
    return [
        manifest
        for manifest in ordered
        if not any(newer.attempt > manifest.attempt and (newer.parent_step or 0) < manifest.step for newer in ordered)
    ]


def unneeded(
    blobs: Iterable[StoredBlob], named: Collection[str], *, newest: datetime, grace: timedelta | None = GRACE
) -> list[StoredBlob]:
    """Blobs that can be removed.

    `named`: digests that checkpoints still refer to; `newest`: latest modification time of any object, from the clock
    of storage, like the times of the blobs; `grace`: None if no save is in flight.
    """

    def is_old(blob: StoredBlob) -> bool:
        return grace is None or newest - blob.modified > grace

    return [blob for blob in blobs if blob.digest not in named and is_old(blob) and _DIGEST.fullmatch(blob.digest)]
