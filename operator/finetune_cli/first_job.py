"""The text of a first job, with a comment for each choice. Pure."""

import json
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_api.support import SUPPORT
from finetune_api.v1alpha1 import Task

if TYPE_CHECKING:
    from finetune_trainer.data.first_look import FirstLook

_LORA_PARAMETERS = 300_000_000
"""Language models above this are trained with LoRA: Adam needs 16 bytes per trained parameter."""
_SMALL_PARAMETERS = 10_000_000
_COVERED = 0.99
_MAX_NAME = 40


def job_text(look: "FirstLook", *, data: str, model: str) -> str:
    """Return the manifest as YAML."""
    name = job_name(data)
    length, rate, batch = max_length(look), learning_rate(look), batch_size(look)
    share = sum(tokens <= length for tokens in look.lengths) / len(look.lengths)
    read = f"all {look.records:,}" if look.is_whole else f"the first {look.records:,}"
    middle = look.lengths[len(look.lengths) // 2]
    task = "" if _task(look) else f", so the task is {look.task}"
    labels = f" with {len(look.labels):,} labels" if look.labels else ""
    lines = [
        "# Written by `finetune init`. `finetune plan` shows what it needs, `finetune run` starts it.",
        "apiVersion: finetune.dev/v1alpha1",
        "kind: FineTuneJob",
        "metadata:",
        f"  name: {name}",
        "spec:",
        "  model:",
        f"    uri: {_quoted(model)}    # {look.model_type}, {_millions(look.parameters)} parameters",
        *_task(look),
        "  data:",
        f"    train: [{{uri: {_quoted(data)}}}]",
        f"    # {read} records were read; {look.skipped:,} of them cannot be used.",
        f"    format: {look.format}    # by the columns of the first record{task}{labels}",
        *_columns(look),
        f"    # Tokens per record: half have at most {middle:,}, the longest {look.lengths[-1]:,}. {share:.1%} fit.",
        f"    maxLength: {length}",
        *_holdouts(),
        *_method(look),
        "  training:",
        "    epochs: 3    # compare the validation loss of the epochs in the report",
        f"    learningRate: {rate:g}    # usual for {_kind(look)}; try half and twice this value",
        f"    globalBatchSize: {batch}    # examples per optimizer step; more for large datasets",
        "  output:",
        "    uri: s3://finetune/runs/" + name + "    # in a cluster, use your own bucket",
    ]
    return "\n".join(lines) + "\n"


def job_name(data: str) -> str:
    """Return a name for the job, from that of the file."""
    stem = data.rstrip("/").rpartition("/")[2].partition(".")[0].lower()
    name = re.sub(r"[^a-z0-9]+", "-", stem)[:_MAX_NAME].strip("-")
    return name if re.match(r"[a-z]", name) else f"job-{name}"[:_MAX_NAME].rstrip("-")


def max_length(look: "FirstLook") -> int:
    """Return a multiple of 32 that 99 % of the records fit into, limited by the model."""
    wanted = look.lengths[min(len(look.lengths) - 1, math.ceil(_COVERED * len(look.lengths)))]
    rounded = max(32, 32 * math.ceil((wanted + 2) / 32))  # two special tokens
    return min(rounded, look.max_tokens or rounded)


def learning_rate(look: "FirstLook") -> float:
    """Return a usual learning rate."""
    if look.task is Task.PREFERENCE:
        return 5e-5
    if _uses_lora(look):
        return 2e-4
    if look.parameters < _SMALL_PARAMETERS:
        return 1e-3
    return 2e-5 if look.task is Task.CAUSAL_LM else 5e-5


def batch_size(look: "FirstLook") -> int:
    """Return a batch size that leaves some steps per epoch."""
    if not look.is_whole:
        return 32
    return 8 if look.records < 400 else 16


def _uses_lora(look: "FirstLook") -> bool:
    return look.task is Task.PREFERENCE or (look.task is Task.CAUSAL_LM and look.parameters > _LORA_PARAMETERS)


def _kind(look: "FirstLook") -> str:
    if _uses_lora(look):
        return "LoRA"
    return f"a full fine-tune of {_millions(look.parameters)} parameters"


def _method(look: "FirstLook") -> Sequence[str]:
    if _uses_lora(look):
        return (
            "  method:",
            "    lora: {rank: 16}    # an adapter: a full fine-tune needs about 16 bytes of memory per parameter",
        )
    return ("  method:", "    full: {}    # trains all parameters; use lora to train an adapter")


def _columns(look: "FirstLook") -> list[str]:
    named = {field: column for field, column in look.columns.items() if field != column}
    if not named:
        return [f"    # Columns: {_one_line(', '.join(look.columns.values()))}."]
    return ["    columns:", *(f"      {field}: {_quoted(column)}" for field, column in named.items())]


def _task(look: "FirstLook") -> list[str]:
    """The task, if the format alone implies another one."""
    if look.task is SUPPORT.task_for(look.format):
        return []
    return [f"    task: {look.task}    # predicts masked tokens, because the model is an encoder"]


def _holdouts() -> list[str]:
    return [
        "    validation: {fraction: 0.1}    # evaluated during training",
        "    test: {fraction: 0.1}    # for the metrics of the report; never trained on",
    ]


def _quoted(text: str) -> str:
    """A YAML string: JSON with all characters beyond ASCII escaped."""
    return json.dumps(text)


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]


def _millions(number: int) -> str:
    return f"{number / 1e6:.3g} M" if number < 1e9 else f"{number / 1e9:.3g} B"
