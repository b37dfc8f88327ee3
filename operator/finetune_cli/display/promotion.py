"""Format the promoted model of an output. Pure."""

from typing import TYPE_CHECKING

from finetune_api.run_layout import PromotionLayout

from .table import table_lines
from .text import size

if TYPE_CHECKING:  # imports boto3, which takes half a second
    from finetune_trainer.promotion.by_hand import Change, PromotionEntry, PromotionRecord, RegistryAddress

_HEADINGS = ("PROMOTED", "BY", "JOB", "RUN", "MODEL")


def change_lines(change: "Change", layout: PromotionLayout) -> list[str]:
    """Return what a promotion or a rollback has changed."""
    record, files = change.record, change.record.files
    total = size(sum(file.size for file in files))
    if not change.is_new:
        first = f"{layout.record}: {record.model.uri} is already promoted"
    elif change.replaced is None:
        first = f"{layout.record}: {record.model.uri}, the first promoted model"
    else:
        first = f"{layout.record}: {record.model.uri} replaces {change.replaced.model.uri}"
    return [first, f"{layout.folder}/: {len(files)} files, {total}, digest {record.model.digest[:12]}"]


def record_lines(record: "PromotionRecord") -> list[str]:
    """Return the promoted model with its conditions, and a table of the models that a rollback returns to."""
    earlier = [] if record.previous is None else [record.previous, *record.earlier]
    lines = [
        f"model: {record.model.uri}",
        f"digest: {record.model.digest}",
        f"promoted: {record.time} by {_who(record)}, change {record.number}",
        *([f"reason: {record.reason}"] if record.reason else []),
        *([_registry_line(record.registry)] if record.registry else []),
        *(f"condition: {check.text} ({'holds' if check.holds else 'does not hold'})" for check in record.checks),
    ]
    for heading, entries in (("before, newest first:", earlier), ("rolled back:", record.rolled_back)):
        if entries:
            lines += ["", heading, *table_lines(_HEADINGS, [_row(entry) for entry in entries])]
    return lines


def _registry_line(registry: "RegistryAddress") -> str:
    return f"registered: {registry.model}@{registry.alias} on {registry.tracking_uri}"


def _row(entry: "PromotionEntry") -> tuple[str, ...]:
    return (entry.time, _who(entry), f"{entry.job.namespace}/{entry.job.name}", str(entry.run), entry.model.uri)


def _who(entry: "PromotionEntry") -> str:
    return entry.person or "its evaluation"
