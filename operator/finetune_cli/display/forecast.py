"""Format the forecast of a run: text for a terminal of 80 columns, Markdown and JSON. Pure."""

import textwrap
from typing import TYPE_CHECKING, Any

from finetune_api.rules import effective_offload
from finetune_api.trainer_config import Prepared, TrainerConfig
from finetune_api.v1alpha1 import Offload

from ..terminal import printable
from .text import duration, size

if TYPE_CHECKING:  # imports torch
    from finetune_trainer.forecast import Forecast

WIDTH = 80
_LABEL_WIDTH = 13


def rows(config: TrainerConfig, found: "Forecast") -> list[tuple[str, str]]:
    """Return label and value of each figure, in the order in which they are shown."""
    prepared, plan, spec = found.prepared, found.plan, config.spec
    counts, world, batch = prepared.counts, config.world, config.batch
    labels = f", {len(prepared.labels):,} labels" if prepared.labels else ""
    splits = ", ".join(
        f"{getattr(counts, split):,} {split}" for split in ("train", "validation", "test") if getattr(counts, split)
    )
    unit = "packs" if prepared.packs is not None else "examples"
    kind = "GPU" if world.gpus else "process"
    lowest, highest = size(found.memory.lowest), size(found.memory.highest)
    memory = f"{lowest} to {highest} for each {kind}, ZeRO stage {prepared.zero_stage}"
    kept = effective_offload(spec, prepared.offload, prepared.zero_stage)
    if world.gpus and kept is not Offload.NONE:
        memory += f", offload {kept}"
    workers = f"{world.nodes}, with 1 {kind} each"
    if world.processes_per_node > 1:
        workers = f"{world.nodes}, with {world.processes_per_node} GPUs each"
    return [
        ("model", f"{spec.model.uri}, {prepared.parameters:,} parameters"),
        ("method", f"{spec.method.name}, {prepared.trained_parameters:,} trainable parameters"),
        ("task", f"{prepared.task}{labels}, {prepared.dtype}"),
        ("data", f"{splits} ({found.tokens_per_epoch:,} training tokens)"),
        ("steps", f"{plan.total_steps:,} ({plan.steps_per_epoch:,} per epoch of {prepared.training_rows:,} {unit})"),
        ("batch", f"global {batch.global_size}, micro {batch.micro_size}, gradient accumulation {batch.accumulation}"),
        ("workers", workers),
        ("memory", f"{memory}{_limit(config)}; {found.memory.source}"),
        *([("host", _host(config, prepared))] if world.gpus else []),
        ("checkpoint", f"{size(found.checkpoint_bytes)}, and {size(found.buffer_bytes)} of host memory per process"),
        ("evaluation", f"{size(found.evaluation_bytes)} of memory, {found.evaluation_gpus or 'no'} GPU"),
        ("time", _time(found)),
    ]


def _limit(config: TrainerConfig) -> str:
    workers = config.spec.workers
    if config.world.gpus:
        return "; a GPU has " + (workers.gpu_memory or "unknown memory (set spec.workers.gpuMemory)")
    limit = workers.resources.limits.get("memory")
    return "" if limit is None else f"; the limit of a worker is {limit}"


def _host(config: TrainerConfig, prepared: Prepared) -> str:
    limit = config.spec.workers.resources.limits.get("memory")
    limited = "without a limit" if limit is None else f"the limit is {limit}"
    return f"{size(prepared.host_estimate_bytes)} of host memory for each worker; {limited}"


def _time(found: "Forecast") -> str:
    if found.time is None:
        return "unknown: no run of this output has been trained yet"
    return f"{duration(found.time.shortest)} to {duration(found.time.longest)}, {found.time.source}"


def text_lines(config: TrainerConfig, found: "Forecast") -> list[str]:
    """Return the lines for a terminal: figures, then notes and warnings."""
    lines = [f"{printable(config.job.name)} can be trained"]
    for label, value in rows(config, found):
        lines += _wrapped(f"  {label:{_LABEL_WIDTH - 2}}", printable(value))
    for note in _notes(found):
        lines += _wrapped("  - ", printable(note))
    return lines


def _wrapped(first: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def markdown_lines(config: TrainerConfig, found: "Forecast") -> list[str]:
    """Return a table and a list, for a pull request."""
    lines = [f"**{_cell(config.job.name)}** can be trained", "", "| | |", "|---|---|"]
    lines += [f"| {label} | {_cell(value)} |" for label, value in rows(config, found)]
    notes = [f"- {_cell(note)}" for note in _notes(found)]
    return [*lines, "", *notes] if notes else lines


def _cell(text: str) -> str:
    """Text without the characters that end a cell or begin a link, an image or a tag."""
    text = " ".join(printable(text).split())
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return text


def _notes(found: "Forecast") -> list[str]:
    return [*found.prepared.warnings, *found.plan.warnings, *found.prepared.notes]


def as_json(config: TrainerConfig, found: "Forecast") -> dict[str, Any]:
    """Return the figures with their units in the keys."""
    prepared, plan = found.prepared, found.plan
    time = found.time
    seconds = None if time is None else {"shortest": time.shortest, "longest": time.longest, "source": time.source}
    return {
        "job": config.job.name,
        "task": str(prepared.task),
        "dtype": str(prepared.dtype),
        "batching": str(prepared.batching),
        "zeroStage": prepared.zero_stage,
        "parameters": prepared.parameters,
        "trainedParameters": prepared.trained_parameters,
        "trainingRows": prepared.training_rows,
        "tokensPerEpoch": found.tokens_per_epoch,
        "totalSteps": plan.total_steps,
        "stepsPerEpoch": plan.steps_per_epoch,
        "globalBatchSize": config.batch.global_size,
        "microBatchSize": config.batch.micro_size,
        "gradientAccumulationSteps": config.batch.accumulation,
        "processes": config.world.size,
        "processMemoryBytes": prepared.memory_estimate_bytes,
        "processMemoryRange": {
            "lowestBytes": found.memory.lowest,
            "highestBytes": found.memory.highest,
            "source": found.memory.source,
        },
        "hostMemoryBytes": prepared.host_estimate_bytes,
        "offload": str(effective_offload(config.spec, prepared.offload, prepared.zero_stage)),
        "checkpointBytes": found.checkpoint_bytes,
        "bufferBytes": found.buffer_bytes,
        "evaluationMemoryBytes": found.evaluation_bytes,
        "evaluationGpus": found.evaluation_gpus,
        "seconds": seconds,
        "warnings": [*prepared.warnings, *plan.warnings],
        "notes": list(prepared.notes),
    }
