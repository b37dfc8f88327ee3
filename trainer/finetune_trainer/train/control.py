"""What happens at the end of every optimizer step, decided together by all ranks."""

import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.comparison import OVERFLOW, OVERFLOW_TEXT

from ..errors import StoppedError
from .world import sum_over_ranks

if TYPE_CHECKING:
    from .trainer import FineTuneTrainer

log = logging.getLogger("finetune")


def _text(value: float) -> str:
    return OVERFLOW_TEXT if value >= OVERFLOW else f"{value:.5g}"


_SHOWN_LOSSES = 10
"""The loss of one small batch jumps; people who look now and then see the mean of so many. The log keeps each."""


class StepControl(TrainerCallback):
    """Sets the Trainer's flags for logging, evaluation, saving and stopping.

    One all-reduce of a few numbers per step carries what only some ranks know: a stop request, the clock of rank 0, a
    loss that is not finite, the tokens of the step, and how far a save in flight is.
    """

    def __init__(self, trainer: "FineTuneTrainer") -> None:
        self._trainer = trainer
        self._losses: deque[float] = deque(maxlen=_SHOWN_LOSSES)

    def on_train_begin(self, *unused: Any, **kwargs: Any) -> None:
        """The loop has set its counters; ours follow, and the clock starts."""
        trainer, report = self._trainer, self._trainer.parts.report
        trainer.restore_losses()
        trainer.meter.resume()
        trainer.saves.start(trainer.state.global_step)
        report.update(total_steps=trainer.parts.plan.total_steps, activity="training", flush=True)
        if trainer.run.evaluation_due:
            trainer.evaluate_again()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Agree, then decide."""
        trainer, plan, step = self._trainer, self._trainer.parts.plan, state.global_step
        saver = trainer.parts.plane.saver
        if trainer.step_was_skipped:
            scale = trainer.engine.optimizer.loss_scaler.cur_scale
            log.info("step %d is skipped: its gradients overflow Float16; the loss scale is %g now", step, scale)
        stop, due, broken, tokens, stored, refused, news, too_stale = sum_over_ranks(
            [
                trainer.parts.stop.requested,
                self._clock_asks(step),
                self._broken(),
                trainer.take_tokens(),
                saver.is_ready(),
                saver.is_refused,
                saver.has_news,
                args.process_index == 0 and trainer.saves.is_too_stale,
            ]
        )
        if broken:
            raise trainer.diverged("loss or its gradient")
        if news:
            saver.share_trouble()
        trainer.saves.move_on(all_stored=stored == args.world_size, refused=refused > 0)
        if too_stale:
            raise trainer.saves.too_stale()
        tokens -= trainer.blanks_of(step)
        trainer.run.tokens += int(tokens)
        trainer.saves.step_done(trainer.meter.step_done(step, epoch=state.epoch, tokens=tokens))
        trainer.saves.tell_lateness(step_seconds=trainer.meter.step_seconds)
        trainer.is_stopping = stop > 0
        control.should_log |= plan.logs_at(step)
        trainer.run.evaluation_due = plan.evaluates_at(step)
        # A validation may take longer than the pod has left: the next attempt does it.
        control.should_evaluate = trainer.run.evaluation_due and not trainer.is_stopping
        control.should_save = trainer.is_stopping or due > 0 or plan.saves_at(step)
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
        """Log the figures and report them, on rank 0."""
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
        """A stop ends the attempt once the state is committed; after the last step the next attempt only exports."""
        if self._trainer.is_stopping:
            raise StoppedError(f"stopped on request at step {state.global_step} of {state.max_steps}, state saved")

    def _clock_asks(self, step: int) -> bool:
        trainer = self._trainer
        return trainer.is_world_process_zero() and trainer.saves.are_due(step, step_seconds=trainer.meter.step_seconds)

    def _broken(self) -> bool:
        """Whether this rank's loss or the gradient norm, where DeepSpeed has one, is not finite.

        A skipped step has no norm: its gradients were scaled too much for Float16, and the weights are unchanged.
        """
        trainer = self._trainer
        norm = None if trainer.step_was_skipped else trainer.engine.get_global_grad_norm()
        return not (
            bool(torch.isfinite(trainer.loss_since_log())) and math.isfinite(0.0 if norm is None else float(norm))
        )
