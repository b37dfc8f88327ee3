"""What a trainer pod tells while it runs (`GET /progress`) and when it ends (its termination message)."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from datetime import datetime

from pydantic import BaseModel, ValidationError

from .trainer_config import Exchanged, Prepared
from .v1alpha1 import Metric
from .v1alpha1.status import MAX_WARNING_LENGTH, MAX_WARNINGS

FOR_STATUS = "for=status"
"""Query of `GET /progress` by whom the job's status is kept: a stopped pod waits for it with its last answer."""

MAX_PROGRESS_BYTES = 64 * 1024
"""A pod's answer to `GET /progress` that is longer than this is not read."""

MAX_TERMINATION_BYTES = 4096
"""Kubernetes' limit for one container."""


class CommittedCheckpoint(Exchanged):
    """A checkpoint whose manifest is in storage."""

    step: int
    uri: str
    time: str
    """RFC 3339, UTC."""
    save_seconds: float
    """How long it took to store it, without what was waited so that the training does not feel it."""


class Progress(Exchanged):
    """`GET /progress` of rank 0's pod. Absent: not known yet."""

    stage: str
    activity: str = ""
    """What is being done, for people: `loading the model`."""
    attempt: int = 0
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    tokens: int = 0
    """Tokens without padding trained on by this attempt, over all workers."""
    loss: float | None = None
    """Mean of the last ten logged."""
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    """Recent mean time of an optimizer step."""
    eta_seconds: float | None = None
    started_time: str | None = None
    """When the attempt's process started."""
    first_step_time: str | None = None
    """When the attempt's first optimizer step was done."""
    zero_stage: int | None = None
    """ZeRO stage of the attempt's engine."""
    resumed_from_step: int | None = None
    resumed_from: str = ""
    """Where that state was read, with all workers' bytes: `node-local cache (510.0 MB) and storage (0.1 MB)`."""
    last_checkpoint: CommittedCheckpoint | None = None
    checkpoint_every: int | None = None
    """Optimizer steps from one save to the next, as measured for `maxLostWork`."""
    checkpoint_late: str = ""
    """Why a crash would now cost more than the spec allows; empty: it would not."""
    evaluation: dict[Metric, float] = {}
    """Last figures of the validation split."""
    phase_seconds: dict[str, float] = {}
    """Seconds spent so far in import, claim, model, engine, restore, steps, evaluate, save and export."""
    peak_memory_bytes: int = 0
    """Peak resident memory of rank 0 (CUDA: peak allocated)."""
    warnings: tuple[str, ...] = ()

    @classmethod
    def decode(cls, content: bytes) -> "Progress | None":
        """None for what is not progress: the answer comes from a container that is the user's to choose."""
        if len(content) > MAX_PROGRESS_BYTES:
            return None
        try:
            progress = cls.model_validate_json(content)
        except ValidationError:
            return None
        return progress if _can_be_in_status(progress) else None


class TrainResult(Exchanged):
    """What a finished training leaves."""

    model_uri: str
    digest: str
    final_step: int
    best_step: int | None = None
    """Step of the exported state, where early stopping chose it."""
    stopped_early: bool = False


class EvaluateResult(Exchanged):
    """What a finished evaluation leaves."""

    report_uri: str
    model_uri: str = ""
    """Folder of the evaluated model. Empty: written by an older trainer."""
    digest: str = ""
    """Its digest."""
    baseline: dict[Metric, float] = {}
    tuned: dict[Metric, float] = {}


class TerminationMessage(Exchanged):
    """The last message of a trainer pod, at most 4 KiB of JSON."""

    stage: str
    exit_code: int
    error: str = ""
    """First error, for people: what, where, and what to do instead."""
    advice: str = ""
    rank: int | None = None
    """First rank that failed."""
    last_lines: tuple[str, ...] = ()
    """Last lines of that rank's log."""
    progress: Progress | None = None
    prepared: Prepared | None = None
    """Without `labels` once it was encoded: their number is not bounded. The run's record in storage has them."""
    trained: TrainResult | None = None
    evaluated: EvaluateResult | None = None

    def encode(self) -> str:
        """JSON of at most 4096 bytes. Log lines are cut and dropped first, then other texts; figures, addresses and the
        last checkpoint stay."""
        text = ""
        for message in self._ever_shorter():
            text = message.model_dump_json(exclude_defaults=True, exclude={"prepared": {"labels"}})
            if len(text.encode()) <= MAX_TERMINATION_BYTES:
                break
        return text

    def _ever_shorter(self) -> Iterator["TerminationMessage"]:
        yield self
        message = self.model_copy(update={"last_lines": tuple(shortened(line, 300) for line in self.last_lines)})
        yield message
        while message.last_lines:
            message = message.model_copy(update={"last_lines": message.last_lines[1:]})
            yield message
        for size in (1200, 600, 300):
            message = message._with_short_texts(size)
            yield message
        while message.progress is not None and message.progress.warnings:
            fewer = message.progress.model_copy(update={"warnings": message.progress.warnings[1:]})
            message = message.model_copy(update={"progress": fewer})
            yield message
        while message.prepared is not None and message.prepared.notes:
            prepared = message.prepared.model_copy(update={"notes": message.prepared.notes[:-1]})
            message = message.model_copy(update={"prepared": prepared})
            yield message
        if (progress := message.progress) is not None:
            least = Progress(
                stage=progress.stage,
                attempt=progress.attempt,
                step=progress.step,
                total_steps=progress.total_steps,
                first_step_time=progress.first_step_time,
                resumed_from_step=progress.resumed_from_step,
                last_checkpoint=progress.last_checkpoint,
            )
            message = message.model_copy(update={"progress": least})
            yield message
        # Fits always. Reached only with addresses that are longer than object storage allows.
        yield TerminationMessage(
            stage=self.stage, exit_code=self.exit_code, error=message.error, advice=message.advice, rank=self.rank
        )

    def _with_short_texts(self, size: int) -> "TerminationMessage":
        update: dict[str, object] = {"error": shortened(self.error, size), "advice": shortened(self.advice, size)}
        if self.progress is not None:
            texts = ("activity", "resumed_from", "checkpoint_late")
            update["progress"] = self.progress.model_copy(
                update={name: shortened(getattr(self.progress, name), size) for name in texts}
                | {"warnings": tuple(shortened(warning, size) for warning in self.progress.warnings)}
            )
        if self.prepared is not None:
            notes = tuple(shortened(note, size) for note in self.prepared.notes)
            update["prepared"] = self.prepared.model_copy(update={"notes": notes})
        return self.model_copy(update=update)

    @classmethod
    def decode(cls, text: str) -> "TerminationMessage | None":
        """None for text that is not one of ours (an empty message, a log tail written by the kubelet)."""
        try:
            message = cls.model_validate_json(text)
        except ValidationError:
            return None
        return message if _can_be_in_status(message) else None


_LARGEST = 2**53
"""Numbers beyond it are not exact in JSON, and a hundred times this still fits the API server's 64 bits."""
_LONGEST_TIME = 32
"""Characters, as in status."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _can_be_in_status(value: object, name: str = "") -> bool:
    """Whether the API server will take all numbers and times of a message: one that it refuses would keep the whole
    status from being written."""
    match value:
        case BaseModel():
            return all(_can_be_in_status(item, field) for field, item in value)
        case dict():
            return all(_can_be_in_status(item) for item in value.values())
        case tuple() | list():
            return all(_can_be_in_status(item) for item in value)
        case float():
            return math.isfinite(value) and (name != "eta_seconds" or abs(value) <= _LARGEST)
        case int():
            return abs(value) <= _LARGEST
        case str() if value and (name == "time" or name.endswith("_time")):
            return _is_time(value)
    return True


def _is_time(text: str) -> bool:
    try:
        return (
            len(text) <= _LONGEST_TIME
            and _TIME.fullmatch(text) is not None
            and datetime.fromisoformat(text) is not None
        )
    except ValueError:
        return False


def merged_warnings(kept: Iterable[str], new: Iterable[str]) -> tuple[str, ...]:
    """Each warning once, the new ones last, cut to what status may hold; the oldest are dropped."""
    cut = (warning[:MAX_WARNING_LENGTH] for warning in new)
    return tuple(dict.fromkeys((*kept, *cut)))[-MAX_WARNINGS:]


def shortened(text: str, size: int) -> str:
    """`text`, without its middle where it takes more than `size` bytes as JSON."""
    short, kept = text, size
    while len(json.dumps(short, ensure_ascii=False).encode()) > size:
        kept = kept * 3 // 4
        short = f"{text[: kept * 4 // 7]} ... {text[len(text) - kept * 3 // 7 :]}"
    return short
