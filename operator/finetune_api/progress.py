"""Messages of a trainer pod: progress while it runs (`GET /progress`), and its termination message."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import from_json

from .trainer_config import Exchanged, Prepared
from .v1alpha1 import CandidateName, Metric, PromotionOutcome, SimpleBaseline
from .v1alpha1.status import MAX_WARNING_LENGTH, MAX_WARNINGS

FOR_STATUS = "for=status"
"""Query that the operator adds to `GET /progress`. A pod that is stopped waits until this query was answered."""

MAX_PROGRESS_BYTES = 64 * 1024
"""Longer responses to `GET /progress` are ignored."""

MAX_TERMINATION_BYTES = 4096
"""Limit that Kubernetes sets for the termination message of a container."""


def _known_metrics(value: Any) -> Any:
    return {name: number for name, number in value.items() if name in set(Metric)} if isinstance(value, dict) else value


Figures = Annotated[dict[Metric, float], BeforeValidator(_known_metrics)]
"""Metrics of a split. Those that only a newer trainer has are ignored, like unknown fields."""


RegressionFigures = dict[str, Figures]
"""Metrics of each regression set, by its name."""


def _known_baselines(value: Any) -> Any:
    known = set(SimpleBaseline)
    return {name: found for name, found in value.items() if name in known} if isinstance(value, dict) else value


def _known_candidates(value: Any) -> Any:
    known = set(CandidateName)
    return {name: found for name, found in value.items() if name in known} if isinstance(value, dict) else value


class CommittedCheckpoint(Exchanged):
    """A checkpoint whose manifest is in storage."""

    step: int
    uri: str
    time: str
    """RFC 3339, UTC."""
    save_seconds: float
    """Time that storing it took, without the delays that keep the upload from slowing down the training."""


class OverfittingEvidence(Exchanged):
    """The losses that `spec.training.overfitting` has compared: when it first found overfitting, else the last ones.

    The training loss is the mean since the validation before.
    """

    found: bool
    """Whether the training overfits. It stays true, unless the training resumes from an earlier step."""
    step: int
    """Optimizer step of the validation."""
    validation_loss: float
    training_loss: float
    lowest_step: int
    """Step of the validation with the lowest loss until then."""
    lowest_validation_loss: float
    training_loss_at_lowest: float


class Progress(Exchanged):
    """`GET /progress` of rank 0's pod. Absent: not yet known."""

    stage: str
    activity: str = ""
    """Human-readable current activity, such as `loading the model`."""
    attempt: int = 0
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    tokens: int = 0
    """Tokens without padding trained on by this attempt, over all workers."""
    loss: float | None = None
    """Mean of the last ten logged values."""
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    """Recent mean time of an optimizer step."""
    eta_seconds: float | None = None
    started_time: str | None = None
    """When the attempt's process started."""
    first_step_time: str | None = None
    """When the attempt completed its first optimizer step."""
    zero_stage: int | None = None
    """ZeRO stage of the attempt's engine."""
    chosen_learning_rate: float | None = None
    """Peak learning rate that was chosen because the spec has none."""
    measured_micro_batch: int | None = None
    """Micro-batch size of the attempt, if a measurement has chosen it."""
    gradient_accumulation: int | None = None
    """Micro-batches of an optimizer step with that size."""
    micro_batch_reason: str = ""
    """How it was measured."""
    resumed_from_step: int | None = None
    resumed_from: str = ""
    """Where that state was read from, with the bytes of all workers: `node-local cache (510.0 MB) and storage (0.1
    MB)`."""
    last_checkpoint: CommittedCheckpoint | None = None
    checkpoint_every: int | None = None
    """Optimizer steps between two saves, derived from measurements for `maxLostWork`."""
    checkpoint_late: str = ""
    """Why a crash would now lose more work than the spec allows; empty: it would not."""
    evaluation: Figures = {}
    """Last metrics of the validation split."""
    overfitting: OverfittingEvidence | None = None
    """Absent: `spec.training.overfitting` is not set, no validation was compared, or the trainer is older."""
    phase_seconds: dict[str, float] = {}
    """Seconds spent so far in import, claim, model, micro-batch test, rate test, engine, restore, steps, evaluate, save
    and export."""
    peak_memory_bytes: int = 0
    """Peak resident memory of rank 0 (CUDA: peak allocated)."""
    warnings: tuple[str, ...] = ()

    @classmethod
    def decode(cls, content: bytes) -> "Progress | None":
        """Decode a response. Returns None if it is not valid, because the user can choose the image that sends it."""
        if len(content) > MAX_PROGRESS_BYTES:
            return None
        try:
            progress = cls.model_validate_json(content)
        except ValidationError:
            return None
        return progress if _can_be_in_status(progress) else None


class TrainResult(Exchanged):
    """Result of a completed training."""

    model_uri: str
    digest: str
    final_step: int
    best_step: int | None = None
    """Step of the exported checkpoint, if early stopping selected it."""
    stopped_early: bool = False


class PollResult(Exchanged):
    """Result of a poll."""

    source_digest: str
    """Digest of the listing of all source files."""


class PromotionResult(Exchanged):
    """Result of `spec.evaluation.promote`."""

    outcome: PromotionOutcome
    message: str = ""
    """Every condition with its value."""
    uri: str = ""
    """Folder of the model that is promoted now. Empty: none."""
    previous: str = ""
    """Folder of the model that was promoted before. Empty: none."""
    time: str = ""
    """When it was decided, RFC 3339, UTC."""


class ExportResult(Exchanged):
    """A model of an evaluation that is compared by size and speed."""

    bytes: int
    """Size of its files."""
    examples_per_second: float | None = None
    """Speed of the forward passes over the test split. Absent: there is no test split."""
    metrics: Figures = {}
    """Metrics of the test split; of the fine-tuned model, they are in `tuned`."""


class EvaluateResult(Exchanged):
    """Result of a completed evaluation."""

    report_uri: str
    model_uri: str = ""
    """Folder of the evaluated model. Empty: written by an older trainer."""
    digest: str = ""
    """Its digest."""
    baseline: Figures = {}
    tuned: Figures = {}
    promoted: Figures = {}
    """Those of the promoted model that it was compared with."""
    pruned: Figures = {}
    """Those of the base model after `spec.method.full.pruning`, before the training."""
    baselines: Annotated[dict[SimpleBaseline, Figures], BeforeValidator(_known_baselines)] = {}
    """Those of the simple baselines."""
    baseline_sets: RegressionFigures = {}
    tuned_sets: RegressionFigures = {}
    """Those of each set of `spec.evaluation.regressionSets`, by name."""
    exports: Annotated[dict[CandidateName, ExportResult], BeforeValidator(_known_candidates)] = {}
    """Exports with quantized weights, and the fine-tuned model."""
    promotion: PromotionResult | None = None
    """Absent: `spec.evaluation.promote` is not set."""
    kept_runs: tuple[int, ...] = ()
    """Numbers of the newest runs that have files, ascending: this one, and at most as many as a history has entries.
    Empty: nothing was deleted."""


class TerminationMessage(Exchanged):
    """The termination message of a trainer pod, at most 4 KiB of JSON.

    The most important fields come first: the kubelet cuts the messages of a pod with more than three containers to
    12 KiB divided by their number.
    """

    stage: str
    exit_code: int
    error: str = ""
    """Human-readable first error: what failed, where, and how to correct it."""
    advice: str = ""
    rank: int | None = None
    """First rank that failed."""
    trained: TrainResult | None = None
    polled: PollResult | None = None
    prepared: Prepared | None = None
    """Encoded without `labels`, whose number is not limited. The run record in storage contains them."""
    evaluated: EvaluateResult | None = None
    progress: Progress | None = None
    last_lines: tuple[str, ...] = ()
    """Last lines of that rank's log."""

    def encode(self) -> str:
        """Encode as JSON of at most 4096 bytes.

        Log lines are shortened and dropped first, then other texts, and the figures of regression sets last. Other
        figures, addresses and the last checkpoint are kept.
        """
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
                chosen_learning_rate=progress.chosen_learning_rate,
                measured_micro_batch=progress.measured_micro_batch,
                gradient_accumulation=progress.gradient_accumulation,
                resumed_from_step=progress.resumed_from_step,
                last_checkpoint=progress.last_checkpoint,
                overfitting=progress.overfitting,
            )
            message = message.model_copy(update={"progress": least})
            yield message
        if message.evaluated is not None and (promotion := message.evaluated.promotion) is not None:
            promotion = promotion.model_copy(update={"uri": "", "previous": ""})
            message = message.model_copy(
                update={"evaluated": message.evaluated.model_copy(update={"promotion": promotion})}
            )
            yield message
        if message.evaluated is not None:
            # They are also in evaluation.json. Needed only for very long addresses.
            sets: dict[str, object] = {"baseline_sets": {}, "tuned_sets": {}}
            message = message.model_copy(update={"evaluated": message.evaluated.model_copy(update=sets)})
            yield message
        if message.evaluated is not None and message.evaluated.exports:
            exports = {
                name: found.model_copy(update={"metrics": {}}) for name, found in message.evaluated.exports.items()
            }
            for kept in (exports, {}):
                evaluated = message.evaluated.model_copy(update={"exports": kept})
                yield message.model_copy(update={"evaluated": evaluated})
            message = message.model_copy(update={"evaluated": evaluated})
        # Always fits. Needed only for addresses that are longer than object storage allows.
        yield TerminationMessage(
            stage=self.stage, exit_code=self.exit_code, error=message.error, advice=message.advice, rank=self.rank
        )

    def _with_short_texts(self, size: int) -> "TerminationMessage":
        update: dict[str, object] = {"error": shortened(self.error, size), "advice": shortened(self.advice, size)}
        if self.progress is not None:
            texts = ("activity", "resumed_from", "checkpoint_late", "micro_batch_reason")
            update["progress"] = self.progress.model_copy(
                update={name: shortened(getattr(self.progress, name), size) for name in texts}
                | {"warnings": tuple(shortened(warning, size) for warning in self.progress.warnings)}
            )
        if self.prepared is not None:
            notes = tuple(shortened(note, size) for note in self.prepared.notes)
            update["prepared"] = self.prepared.model_copy(update={"notes": notes})
        if self.evaluated is not None and (promotion := self.evaluated.promotion) is not None:
            promotion = promotion.model_copy(update={"message": shortened(promotion.message, size)})
            update["evaluated"] = self.evaluated.model_copy(update={"promotion": promotion})
        return self.model_copy(update=update)

    @classmethod
    def decode(cls, text: str) -> "TerminationMessage | None":
        """Decode a message. Returns None for other text, such as an empty message or log lines from the kubelet.

        Of a message that is cut, it returns the complete fields. The last field can have lost a part: it is left out.
        Of the result of an evaluation, only its own last field is.
        """
        message: TerminationMessage | None = None
        try:
            message = cls.model_validate_json(text)
        except ValidationError:
            message = cls._of_cut_json(text)
        return message if message is not None and _can_be_in_status(message) else None

    @classmethod
    def _of_cut_json(cls, text: str) -> "TerminationMessage | None":
        if not is_cut(text):
            return None
        # The other digits of a number at the end may have been cut.
        fields = from_json(text.rstrip("-+.0123456789eE"), allow_partial=True)
        complete = _without_last(fields)
        partial = {**complete, "evaluated": _without_last(fields["evaluated"])} if "evaluated" in fields else complete
        for found in (complete, partial) if "evaluated" in complete else (partial, complete):
            with suppress(ValidationError):
                return cls.model_validate(found)
        return None


def is_cut(text: str) -> bool:
    """Whether a termination message is the beginning of a longer one."""
    try:
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        with suppress(ValueError, TypeError):  # TypeError: an unpaired surrogate
            return isinstance(from_json(text, allow_partial=True), dict)
    return False


def _without_last(fields: dict[str, Any]) -> dict[str, Any]:
    return dict(list(fields.items())[:-1])


_LARGEST = 2**53
"""Larger integers are not exact in JSON. A hundred times this value still fits into 64 bits."""
_LONGEST_TIME = 32
"""Characters, the same limit as in status."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _can_be_in_status(value: object, name: str = "") -> bool:
    """Whether the API server will accept all numbers and times of a message.

    A single rejected value would prevent the whole status from being written.
    """
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
    """Append new warnings without duplicates, within the limits of status. The oldest are dropped."""
    cut = (warning[:MAX_WARNING_LENGTH] for warning in new)
    return tuple(dict.fromkeys((*kept, *cut)))[-MAX_WARNINGS:]


def shortened(text: str, size: int) -> str:
    """Return `text`, shortened in the middle if it takes more than `size` bytes as JSON."""
    short, kept = text, size
    while len(json.dumps(short, ensure_ascii=False).encode()) > size:
        kept = kept * 3 // 4
        short = f"{text[: kept * 4 // 7]} ... {text[len(text) - kept * 3 // 7 :]}"
    return short
