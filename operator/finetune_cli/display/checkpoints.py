"""Checkpoints as people and programs read them. Pure."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1 import Metric

from .table import table_lines
from .text import duration, metric_name, metric_value, seconds_since, size

if TYPE_CHECKING:  # boto3 comes with it
    from finetune_trainer.checkpoint.archive import Entry, VerificationResult

_HEADINGS = ("STEP", "ATTEMPT", "AGE", "SIZE", "WORLD", "ZERO", "BEST", "METRICS")


def table(entries: "Sequence[Entry]", *, now: datetime, width: int) -> list[str]:
    """A line for each, under headings; below, why those that cannot be read cannot."""
    lines = table_lines(_HEADINGS, [_row(entry, now) for entry in entries])
    unread = [f"step {entry.step} of attempt {entry.attempt}: {entry.damage}" for entry in entries if entry.damage]
    return [*(_cut(line, width) for line in lines), *unread]


def _cut(line: str, width: int) -> str:
    """A figure that does not fit is left out whole: a part of one would be another one."""
    if len(line) <= width:
        return line
    whole, comma, _ = line[: width - 2].rpartition(", ")
    return f"{whole}{comma}…" if comma else f"{line[: width - 1]}…"


def _row(entry: "Entry", now: datetime) -> tuple[str, ...]:
    manifest = entry.manifest
    if manifest is None:
        return (str(entry.step), str(entry.attempt), *("-" * 4), "", "cannot be read")
    return (
        str(entry.step),
        str(entry.attempt),
        duration(seconds_since(manifest.time, now)),
        size(manifest.bytes),
        str(manifest.world_size),
        str(manifest.zero_stage),
        "yes" if manifest.is_best else "",
        ", ".join(_figure(name, value) for name, value in manifest.metrics.items()) or "-",
    )


def _figure(name: str, value: float) -> str:
    if name not in set(Metric):
        return f"{name} {value:.4g}"
    return f"{metric_name(Metric(name))} {metric_value(Metric(name), value)}"


def as_json(entry: "Entry") -> dict[str, Any]:
    """For programs: what `table` shows, in bytes and RFC 3339, and the manifest's address."""
    found: dict[str, Any] = {"step": entry.step, "attempt": entry.attempt, "uri": entry.uri}
    manifest = entry.manifest
    if manifest is None:
        return found | {"damage": entry.damage}
    return found | {
        "time": manifest.time,
        "bytes": manifest.bytes,
        "worldSize": manifest.world_size,
        "zeroStage": manifest.zero_stage,
        "parentStep": manifest.parent_step,
        "isBest": manifest.is_best,
        "bestStep": manifest.best_step,
        "metrics": manifest.metrics,
    }


def verdict(checked: "VerificationResult") -> str:
    """One line: whole, or what is damaged."""
    entry = checked.entry
    name = f"step {entry.step} of attempt {entry.attempt}"
    if checked.is_gone:
        return f"{name}: was removed meanwhile"
    if checked.damages:
        more = f" (and {len(checked.damages) - 1} more)" if len(checked.damages) > 1 else ""
        return f"{name}: damaged: {checked.damages[0]}{more}"
    assert entry.manifest is not None
    return f"{name}: whole, {checked.blobs} blobs, {size(entry.manifest.bytes)}"
