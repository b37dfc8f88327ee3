"""Decides at the end of every optimizer step, on all ranks alike, whether to log, evaluate, save and stop."""

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.comparison import OVERFLOW, OVERFLOW_TEXT

from ..errors import StoppedError
from .trainer import FineTuneTrainer
from .world import sum_over_ranks

log = logging.getLogger("finetune")


def _text(value: float) -> str:
    return OVERFLOW_TEXT if value >= OVERFLOW else f"{value:.5g}"


_SHOWN_LOSSES = 10
"""Number of losses that the displayed loss is the mean of, because that of a small batch is noisy. The log has each."""


def _vote(reduction: Callable[[float, int], bool | float]) -> Any:
    """A field of StepVotes. `reduction` turns the sum over the ranks and the number of ranks into the result."""
    return field(metadata={"reduction": reduction})


def _any(total: float, world_size: int) -> bool:
    return total > 0


def _all(total: float, world_size: int) -> bool:
    return total == world_size


def _sum(total: float, world_size: int) -> float:
    return total


@dataclass(frozen=True, kw_only=True)
class StepVotes:
    """Values that differ between ranks at the end of a step; `all_reduce` makes them the same on every rank.

    All reductions are computed from one sum over the ranks in 64 bits, so that a step needs a single all-reduce.
    """

    stop: bool = _vote(_any)
    """A stop was requested."""
    save: bool = _vote(_any)
    """A save is due, by the clock of rank 0."""
    diverged: bool = _vote(_any)
    """Loss or gradient norm is not finite."""
    tokens: float = _vote(_sum)
    """Tokens without padding since the last step."""
    part_stored: bool = _vote(_all)
    """This rank's part of the current save is stored."""
    fenced: bool = _vote(_any)
    """A newer attempt has claimed the run."""
    upload_error_changed: bool = _vote(_any)
    """The other ranks do not know this rank's current upload error."""
    too_stale: bool = _vote(_any)
    """The current save takes longer than `spec.checkpoint.maxStaleness`, by the clock of rank 0."""

    def pack(self) -> list[float]:
        """The votes as numbers, in the order of the fields."""
        return [float(getattr(self, each.name)) for each in fields(self)]

    @classmethod
    def unpack(cls, totals: list[float], *, world_size: int) -> "StepVotes":
        """Reduce the element-wise sums of what all ranks packed."""
        pairs = zip(fields(cls), totals, strict=True)
        return cls(**{each.name: each.metadata["reduction"](total, world_size) for each, total in pairs})

    def all_reduce(self) -> "StepVotes":
        """Return the reduced votes, the same on every rank. Collective: one all-reduce."""
        return self.unpack(sum_over_ranks(self.pack()), world_size=dist.get_world_size())


class StepControl(TrainerCallback):
    """Sets the Trainer's flags for logging, evaluation, saving and stopping, by the votes of all ranks."""

    def __init__(self, trainer: FineTuneTrainer) -> None:
        self._trainer = trainer
        self._losses: deque[float] = deque(maxlen=_SHOWN_LOSSES)

    def on_train_begin(self, *unused: Any, **kwargs: Any) -> None:
        """Restore the values that the loop has reset, and start the clocks."""
        trainer, report = self._trainer, self._trainer.parts.report
        trainer.restore_losses()
        trainer.meter.resume()
        trainer.parts.checkpoints.start(trainer.state.global_step)
        report.update(total_steps=trainer.parts.plan.total_steps, activity="training", flush=True)
        if trainer.run.evaluation_due:
            trainer.evaluate_again()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Reduce the votes, then decide."""
        trainer, plan, step = self._trainer, self._trainer.parts.plan, state.global_step
        checkpoints = trainer.parts.checkpoints
        if trainer.step_was_skipped:
            scale = trainer.engine.optimizer.loss_scaler.cur_scale
            log.info("step %d is skipped: its gradients overflow Float16; the loss scale is %g now", step, scale)
        votes = self._votes(step).all_reduce()
        if votes.diverged:
            raise trainer.diverged("loss or its gradient")
        checkpoints.progress(
            all_stored=votes.part_stored,
            fenced=votes.fenced,
            error_changed=votes.upload_error_changed,
            too_stale=votes.too_stale,
        )
        tokens = votes.tokens - trainer.padding_rows_of(step)
        trainer.run.tokens += int(tokens)
        seconds = trainer.meter.step_done(step, epoch=state.epoch, tokens=tokens)
        checkpoints.record_step(seconds, step_seconds=trainer.meter.step_seconds)
        trainer.is_stopping = votes.stop
        control.should_log |= plan.logs_at(step)
        trainer.run.evaluation_due = plan.evaluates_at(step)
        # A validation may take longer than the pod's grace period, so it is left to the next attempt.
        control.should_evaluate = trainer.run.evaluation_due and not trainer.is_stopping
        control.should_save = trainer.is_stopping or votes.save
        control.should_training_stop |= trainer.is_stopping
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log and report the figures on rank 0."""
        if logs is not None and "loss" in logs:
            self._trainer.run.loss_watch = self._trainer.run.loss_watch.started_at(logs["loss"])
        if logs is None or not state.is_world_process_zero:
            return
        figures = " ".join(f"{name} {_text(value)}" for name, value in logs.items())
        log.info("step %d/%d %s", state.global_step, state.max_steps, figures)
        if "loss" in logs:
            self._losses.append(logs["loss"])
            recent = sum(self._losses) / len(self._losses)
            self._trainer.parts.report.update(loss=recent, learning_rate=logs["learning_rate"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Raise StoppedError after a requested stop, now that the state is committed.

        After the last step, only the export is left to the next attempt.
        """
        if self._trainer.is_stopping:
            raise StoppedError(f"stopped on request at step {state.global_step} of {state.max_steps}, state saved")

    def _votes(self, step: int) -> StepVotes:
        trainer, checkpoints = self._trainer, self._trainer.parts.checkpoints
        stop = trainer.parts.stop.requested
        is_due = trainer.is_world_process_zero() and checkpoints.should_save(
            step, step_seconds=trainer.meter.step_seconds
        )
        upload = checkpoints.upload_status()
        return StepVotes(
            stop=stop,
            save=is_due,
            diverged=self._is_diverged(),
            tokens=trainer.take_tokens(),
            part_stored=upload.is_stored,
            fenced=upload.is_fenced,
            upload_error_changed=upload.error_changed,
            too_stale=upload.is_too_stale,
        )

    def _is_diverged(self) -> bool:
        """Whether this rank's loss, or the gradient norm if DeepSpeed computes one, is not finite.

        A skipped step has no norm: its scaled gradients overflowed Float16, and the weights are unchanged.
        """
        trainer = self._trainer
        norm = None if trainer.step_was_skipped else trainer.engine.get_global_grad_norm()
        return not (
            bool(torch.isfinite(trainer.loss_since_log())) and math.isfinite(0.0 if norm is None else float(norm))
        )
