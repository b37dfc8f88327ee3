"""Format checkpoints as a table and as JSON. Pure."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from finetune_api.v1alpha1 import Metric

from .table import table_lines
from .text import duration, metric_name, metric_value, seconds_since, size

if TYPE_CHECKING:  # imports boto3, which takes half a second
    from finetune_trainer.checkpoint.archive import Entry, VerificationResult

_HEADINGS = ("STEP", "ATTEMPT", "AGE", "SIZE", "WORLD", "ZERO", "BEST", "METRICS")


def table(entries: "Sequence[Entry]", *, now: datetime, width: int) -> list[str]:
    """Return headings, a line for each checkpoint, and the reasons why checkpoints cannot be read."""
    lines = table_lines(_HEADINGS, [_row(entry, now) for entry in entries])
    unread = [f"step {entry.step} of attempt {entry.attempt}: {entry.damage}" for entry in entries if entry.damage]
    return [*(_cut(line, width) for line in lines), *unread]


def _cut(line: str, width: int) -> str:
    """Cut a line after the last metric that fits, because a part of a number would be another number."""
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
    """Return the columns of `table` with sizes in bytes and times in RFC 3339, and the address of the manifest."""
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


def verification_line(checked: "VerificationResult") -> str:
    """Return one line: intact, or what is damaged."""
    entry = checked.entry
    name = f"step {entry.step} of attempt {entry.attempt}"
    if checked.is_gone:
        return f"{name}: was removed during the check"
    if checked.damages:
        more = f" (and {len(checked.damages) - 1} more)" if len(checked.damages) > 1 else ""
        return f"{name}: damaged: {checked.damages[0]}{more}"
    assert entry.manifest is not None
    return f"{name}: intact, {checked.blobs} blobs, {size(entry.manifest.bytes)}"
