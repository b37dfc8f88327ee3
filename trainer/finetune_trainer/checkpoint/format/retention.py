"""Which checkpoints stay, and which blobs go with those that do not. Pure.

What stays: the newest ones, the best ones, one of every so many steps, and what one of the newest would need to end
the run. What went before it was told stays gone, so each answer has to agree with the one before it: none of these
rules ever wants a checkpoint back that it once let go.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.trainer_config import Message
from finetune_api.v1alpha1 import Checkpoint

from .manifest import Manifest

GRACE = timedelta(hours=1)
"""How old a blob has to be that nobody names: a save that is being stored has its blobs before it has a manifest."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Keep(Message):
    """What is kept, as `spec.checkpoint` says it."""

    last: int = 2
    best: int = 1
    every: int | None = None
    """Steps."""

    @classmethod
    def of(cls, rule: Checkpoint) -> "Keep":
        """As a job says it."""
        return cls(last=rule.keep_last, best=rule.keep_best, every=rule.keep_every)


@dataclass(frozen=True)
class StoredBlob:
    """A blob as storage lists it."""

    digest: str
    """Its name; that of anything else is none, and is left alone."""
    size: int
    modified: datetime


def newest_to_oldest(manifests: Iterable[Manifest]) -> list[Manifest]:
    """In the order in which a restore takes them, see `manifest.newest_first`."""
    return sorted(manifests, key=lambda manifest: (manifest.attempt, manifest.step), reverse=True)


def kept(manifests: Iterable[Manifest], keep: Keep) -> list[Manifest]:
    """Those that stay, the newest first. All others may go."""
    ordered = newest_to_oldest(manifests)
    reasons = why_kept(ordered, keep)
    return [manifest for manifest in ordered if manifest.name in reasons]


def why_kept(manifests: Iterable[Manifest], keep: Keep) -> dict[str, list[str]]:
    """Name -> `last`, `best`, `every`: why it stays. Not there: it may go."""
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
    """What the newest ones would export after early stopping. A run that has to go back from a damaged best state needs
    the best one before that, which is not the newest best one."""
    steps = {manifest.best_step for manifest in last}
    found = {manifest.step: manifest for manifest in reversed(ordered) if manifest.step in steps}
    return list(found.values())


def _every(ordered: Sequence[Manifest], every: int | None) -> list[Manifest]:
    """The first at or after each multiple."""
    if every is None:
        return []
    stays: dict[int, Manifest] = {}
    for manifest in sorted(_line(ordered), key=lambda each: (each.step, -each.attempt)):
        # Of the multiples up to its step, it is the first for those that no smaller step has reached.
        stays.setdefault(manifest.step // every, manifest)
    return [manifest for multiple, manifest in stays.items() if multiple]


def _line(ordered: Sequence[Manifest]) -> list[Manifest]:
    """Without those that the run went back behind: a newer attempt began at an earlier step."""
    return [
        manifest
        for manifest in ordered
        if not any(newer.attempt > manifest.attempt and (newer.parent_step or 0) < manifest.step for newer in ordered)
    ]


def unneeded(
    blobs: Iterable[StoredBlob], named: Collection[str], *, newest: datetime, grace: timedelta | None = GRACE
) -> list[StoredBlob]:
    """Blobs that may go. `named`: all digests that checkpoints still name; `newest`: the latest time that storage tells
    of any object, for no other clock is the one that wrote the blobs' times. Without `grace` no save is under way."""

    def is_old(blob: StoredBlob) -> bool:
        return grace is None or newest - blob.modified > grace

    return [blob for blob in blobs if blob.digest not in named and is_old(blob) and _DIGEST.fullmatch(blob.digest)]
