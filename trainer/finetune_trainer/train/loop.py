"""The training loop: restores the newest checkpoint, then takes one optimizer step after another.

All ranks run it together. Whatever depends on one rank (a stop request, a clock, a loss) is exchanged at the end of
each step, so that all ranks take the same decision.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from finetune_api.comparison import OVERFLOW, OVERFLOW_TEXT
from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1 import EarlyStopping, Metric, Overfitting, OverfittingAction, Schedule

from ..checkpoint.engine import optimizer_state
from ..checkpoint.manager import CheckpointManager, Restored, TrainingState
from ..collectives import gather_over_ranks, stop_if_agreed, sum_over_ranks
from ..data.collate import Collator
from ..errors import DivergedError, StoppedError
from ..progress import ProgressReporter
from ..stop import StopFlag
from ..tasks import TASKS, TrainingTask
from ..tracking.reports import RunReports
from .engine import Engine
from .meter import StepMeter
from .overfitting import training_loss_before_evaluation
from .padding import batch_by_groups, group_widths
from .plan import TrainingPlan
from .rows import GlobalBatches, PackedRows, RowsWithPadding
from .state import RunState, apply_rates, read_small_state, resume_schedule, small_state
from .validation import Validator
from .votes import StepVotes

log = logging.getLogger("finetune")

Batch = dict[str, torch.Tensor]

_NO_SMALLER_SCALE = "loss scale already at minimum"
"""Part of the message of DeepSpeed's DynamicLossScaler, which raises a plain Exception."""
_FEW_SKIPPED = 0.02
"""Share of the steps that the loss scale needs to adapt."""
_SHOWN_LOSSES = 10
"""Window of the displayed moving average of the loss, because the loss of a small batch is noisy. The log has each."""


@dataclass(frozen=True)
class Parts:
    """The parts of a training, except for the model."""

    config: PreparedConfig
    plan: TrainingPlan
    checkpoints: CheckpointManager
    report: ProgressReporter
    stop: StopFlag
    rows: RowsWithPadding | PackedRows
    batches: GlobalBatches
    collator: Collator
    validator: Validator | None
    device: torch.device
    task: TrainingTask
    """Rows, loss and its normalization: the job's task, unless the method or the task trains another one."""
    fit_head: Callable[[nn.Module], None]
    """Computes the parameters that are not trained, before the model is measured."""
    open_trackers: Callable[[Sequence[dict[str, float]]], RunReports]
    """Starts reporting to the trackers of the spec; its argument is the log so far."""

    @property
    def has_comparable_losses(self) -> bool:
        """Whether the loss of the training can be compared with that of the validation."""
        return self.task is TASKS[self.config.prepared.task]


class TrainingLoop:
    """Trains one attempt. `run` is saved in the checkpoints."""

    def __init__(self, parts: Parts, engine: Engine) -> None:
        self.parts = parts
        self.engine: Any = engine.deepspeed
        self.module = engine.module
        self.schedule = engine.schedule
        self.rate_scale = engine.rate_scale
        self.phases = engine.phases
        self.run = RunState()
        self.restored: Restored | None = None
        self.meter = StepMeter(parts.report, total_steps=parts.plan.total_steps)
        self.is_stopping = False
        """All ranks have agreed to stop after this step, for the next attempt to continue."""
        self._skipped_batches = 0
        """Global batches that were consumed in addition to one per step."""
        self._save_due = False
        self._loss_since_log = torch.zeros((), device=parts.device)
        """This rank's."""
        self._recent_losses: deque[float] = deque(maxlen=_SHOWN_LOSSES)
        self._metrics: dict[str, float] = {}
        self._metrics_step = -1
        self.trackers = RunReports()
        """Set by `open_trackers` on rank 0, when the log of earlier attempts is known."""

    def train(self) -> None:
        """Train to the end, or until early stopping ends the training.

        Raises StoppedError after a requested stop, with the state saved, DivergedError, and FencedError if a newer
        attempt has claimed the run.
        """
        self._restore()
        stop_if_agreed(self.parts.stop.requested, where="before the first step")
        if _is_main():
            self.trackers = self.parts.open_trackers(self.run.log)
        self._start()
        steps = self._steps()
        while self.run.step < self.parts.plan.total_steps and not self.run.stopped_early:
            self._enter_phase()
            micro_batches = next(steps)
            rate, norm = self._train_step(micro_batches)
            self._agree(sum(_tokens(batch) for batch in micro_batches), norm)
            self._log_evaluate_save(rate, norm)

    def trial_losses(self) -> Iterator[float]:
        """Train from the base model and yield the loss of each step, without logs, evaluations and saves. Collective.

        A step that is skipped because its gradients overflow Float16 yields no loss. Raises DivergedError if the loss
        scale cannot be lowered further.
        """
        self.engine.train()
        for micro_batches in self._steps():
            if self.phases is not None:
                self.phases.enter(self.run.step)
            self._train_step(micro_batches)
            self.run.step += 1
            loss = sum_over_ranks([float(self._loss_since_log)])[0] / dist.get_world_size()
            self._loss_since_log.zero_()
            if not self._is_step_skipped:
                yield loss

    def trial_step(self, micro_batches: list[Batch]) -> None:
        """Take an optimizer step with any micro-batches and all parameters that are ever trained. It is not counted."""
        self.engine.train()
        if self.phases is not None:
            self.phases.enter(self.parts.plan.total_steps - 1)
        self._train_step(micro_batches)
        self._loss_since_log.zero_()

    # ---- start ----

    def _restore(self) -> None:
        parts = self.parts
        with parts.report.phase("restore", "looking for a checkpoint"):
            self.restored = parts.checkpoints.restore(self.engine)
        for warning in parts.checkpoints.warnings:
            parts.report.warn(warning)
        if self.restored is None:
            if _is_main():
                log.info("no checkpoint to resume from: training starts from the base model")
            return
        self.run, schedule = read_small_state(self.restored.small_state)
        self.rate_scale.value = self.run.plateau.factor
        resume_schedule(self.schedule, schedule)
        self._skipped_batches = self.restored.manifest.position - self.run.step
        self._loss_since_log.fill_(self.run.loss_of_rank(dist.get_rank(), dist.get_world_size()))
        step = self.run.step
        parts.report.update(
            resumed_from_step=step,
            resumed_from=self.restored.origin,
            step=step,
            overfitting=self.run.overfitting.evidence,
            flush=True,
        )
        log.info("resuming from step %d of %d", step, parts.plan.total_steps)

    def _start(self) -> None:
        """Start the clocks, and run the validation that a stop has skipped in the last attempt."""
        self._enter_phase()
        self.engine.train()
        self.meter.resume()
        self.parts.checkpoints.start(self.run.step)
        self.parts.report.update(total_steps=self.parts.plan.total_steps, activity="training", flush=True)
        if not self.run.evaluation_due:
            return
        if self.restored is not None:
            # The validation may be followed by a save, which must contain the generators of the restored state.
            self.parts.checkpoints.restore_rng(self.restored.manifest)
        self._evaluate()
        if self.is_stopping:
            raise StoppedError(
                f"stopped on request during the validation of step {self.run.step}, whose state is saved"
            )
        if self._save_due:
            self._save()

    def _enter_phase(self) -> None:
        """Enter the phase of the next step, which depends only on its number. After the last step, stay in its
        phase."""
        step = min(self.run.step, self.parts.plan.total_steps - 1)
        if self.phases is not None and self.phases.enter(step) and _is_main():
            log.info("%s", self.phases.description)

    # ---- a step ----

    def _steps(self) -> Iterator[list[Batch]]:
        """Yield this rank's micro-batches of each step, in host memory, from the position of the run in the data."""
        parts, restored = self.parts, self.restored
        epoch, first = parts.batches.place(self._position)
        for each in count(epoch):
            if restored is not None and first == 0:
                parts.checkpoints.restore_rng(restored.manifest)
            loader = iter(
                DataLoader(
                    parts.rows.in_epoch(each),
                    batch_sampler=parts.batches.micro_batches(each, rank=dist.get_rank(), first=first),
                    collate_fn=parts.collator,
                    pin_memory=parts.config.world.gpus,
                )
            )
            # A DataLoader draws a random number when an iteration starts. In mid-epoch, this was before the checkpoint.
            if restored is not None and first > 0:
                parts.checkpoints.restore_rng(restored.manifest)
            for _ in range(first, parts.batches.per_epoch):
                yield list(islice(loader, parts.config.batch.accumulation))
            restored, first = None, 0

    @property
    def _position(self) -> int:
        """Number of the next global batch."""
        return self.run.step + self._skipped_batches

    def _train_step(self, micro_batches: list[Batch]) -> tuple[float, float | None]:
        """Take an optimizer step. Returns its learning rate, and the norm of the gradient if DeepSpeed computes one."""
        # DeepSpeed averages gradients over the ranks.
        scale = dist.get_world_size() / self._targets(micro_batches)
        try:
            for number, rows in enumerate(micro_batches, start=1):
                loss = self._loss(rows) * scale
                self._loss_since_log += loss.detach()
                self.engine.set_gradient_accumulation_boundary(number == len(micro_batches))
                # `scale` contains the targets of all micro-batches.
                self.engine.backward(loss, scale_wrt_gas=False)
            self.engine.step()
        except Exception as error:
            if _NO_SMALLER_SCALE in str(error):
                raise self._diverged("gradient in Float16") from error
            raise
        rate = float(self.schedule.get_last_lr()[0])
        if self._is_step_skipped:
            return rate, None
        self.schedule.step()
        norm = self.engine.get_global_grad_norm()
        return rate, None if norm is None else float(norm)

    def _targets(self, micro_batches: list[Batch]) -> int:
        """Return the number of targets of the global batch."""
        parts = self.parts
        if parts.task.has_one_target_per_row:
            return parts.config.batch.global_size - parts.batches.padding_rows(self._position)
        local = sum(parts.task.targets(batch) for batch in micro_batches)
        return max(1, int(sum_over_ranks([float(local)])[0]))

    def _loss(self, rows: Batch) -> torch.Tensor:
        """Return the loss of a micro-batch, summed over its targets. `rows` is in host memory.

        The host does not wait for a GPU: the DataLoader has put the rows into page-locked memory, which is copied while
        the host continues, and the widths of the groups are computed here.
        """
        task, smoothing = self.parts.task, self.parts.config.spec.training.label_smoothing
        batch = {name: values.to(self.parts.device, non_blocking=True) for name, values in rows.items()}
        batch |= task.reference(self.module, batch)
        number, widths = self.parts.batches.groups, {}
        if number > 1:
            widths["group_widths"] = group_widths(rows["attention_mask"], number, self.parts.collator.multiple)
        outputs = self.engine(**task.inputs(batch), **widths)
        logits = outputs if isinstance(outputs, tuple) else (outputs.logits,)
        groups = batch_by_groups(batch, logits)
        losses = [task.loss(part, group, smoothing=smoothing) for part, group in zip(logits, groups, strict=True)]
        return torch.stack(losses).sum()

    @property
    def _is_step_skipped(self) -> bool:
        """Whether the last step did not change the weights, because its scaled gradients overflowed Float16. The
        learning rate schedule does not advance in such a step."""
        return bool(optimizer_state.loss_scale(self.engine)) and bool(self.engine.optimizer.overflow)

    # ---- the end of a step ----

    def _agree(self, tokens: int, norm: float | None) -> None:
        """Count the step, exchange the votes of the ranks, and advance the save in flight.

        `tokens` are this rank's without padding; `norm` is that of the gradient.
        """
        run, parts = self.run, self.parts
        padding_rows = parts.batches.padding_rows(self._position)
        run.step += 1
        if self._is_step_skipped:
            new_scale = self.engine.optimizer.loss_scaler.cur_scale
            log.info(
                "step %d is skipped: its gradients overflow Float16; the loss scale is %g now", run.step, new_scale
            )
        votes = self._votes(tokens, norm).all_reduce()
        if votes.diverged:
            raise self._diverged("loss or its gradient")
        parts.checkpoints.progress(
            all_stored=votes.part_stored,
            fenced=votes.fenced,
            error_changed=votes.upload_error_changed,
            too_stale=votes.too_stale,
        )
        all_tokens = votes.tokens - padding_rows * parts.task.padding_tokens
        run.tokens += int(all_tokens)
        seconds = self.meter.step_done(run.step, epoch=self._epoch, tokens=all_tokens)
        parts.checkpoints.record_step(seconds, step_seconds=self.meter.step_seconds)
        self.is_stopping = votes.stop
        self._save_due = votes.stop or votes.save

    def _log_evaluate_save(self, rate: float, norm: float | None) -> None:
        """Log, evaluate and save if the step requires it. `rate` and `norm` are the results of `_train_step`.

        Raises StoppedError after a requested stop, when the state is committed.
        """
        run, parts = self.run, self.parts
        if parts.plan.logs_at(run.step):
            self._log_step(rate, norm)
        run.evaluation_due = parts.plan.evaluates_at(run.step)
        # A validation may take longer than the pod's grace period, so after a stop it is left to the next attempt.
        if run.evaluation_due and not self.is_stopping:
            self._evaluate()
        if self._save_due:
            self._save()
        if self.is_stopping:
            raise StoppedError(f"stopped on request at step {run.step} of {parts.plan.total_steps}, state saved")

    def _votes(self, tokens: int, norm: float | None) -> StepVotes:
        checkpoints = self.parts.checkpoints
        stop = self.parts.stop.requested
        is_due = _is_main() and checkpoints.should_save(self.run.step, step_seconds=self.meter.step_seconds)
        upload = checkpoints.upload_status()
        return StepVotes(
            stop=stop,
            save=is_due,
            # A skipped step has no norm: its scaled gradients overflowed Float16, and the weights are unchanged.
            diverged=not (bool(torch.isfinite(self._loss_since_log)) and math.isfinite(norm or 0.0)),
            tokens=tokens,
            part_stored=upload.is_stored,
            fenced=upload.is_fenced,
            upload_error_changed=upload.error_changed,
            too_stale=upload.is_too_stale,
        )

    def _log_step(self, rate: float, norm: float | None) -> None:
        """Log the mean loss since the last log line. Collective."""
        run = self.run
        total = torch.tensor(gather_over_ranks(float(self._loss_since_log)), dtype=torch.float32).mean().item()
        self._loss_since_log.zero_()
        loss = total / (run.step - run.last_logged_step)
        run.last_logged_step = run.step
        if self.parts.has_comparable_losses:
            run.loss_watch = run.loss_watch.started_at(loss)
        norms = {} if norm is None else {"grad_norm": norm}
        self._log({"loss": loss, **norms, "learning_rate": rate})
        self._recent_losses.append(loss)
        recent = sum(self._recent_losses) / len(self._recent_losses)
        self.parts.report.update(loss=recent, learning_rate=rate)

    def _log(self, metrics: dict[str, float]) -> None:
        entry = metrics | {"epoch": self._epoch}
        self.run.log.append(entry | {"step": self.run.step})
        self.trackers.log(self.run.log[-1])
        if _is_main():
            text = " ".join(f"{name} {_text(value)}" for name, value in entry.items())
            log.info("step %d/%d %s", self.run.step, self.parts.plan.total_steps, text)

    @property
    def _epoch(self) -> float:
        """Epochs completed so far, by steps."""
        epoch, steps = divmod(self.run.step - 1, self.parts.plan.steps_per_epoch)
        return epoch + (steps + 1) / self.parts.plan.steps_per_epoch

    # ---- validation and checkpoints ----

    def _evaluate(self) -> None:
        """Evaluate the validation split and apply the rules that depend on its metrics. Collective.

        A stop request interrupts the measurement. The state is then saved without metrics, and the next attempt starts
        with this validation.
        """
        validator, report = self.parts.validator, self.parts.report
        assert validator is not None, "the plan evaluates only where there is a validation split"
        with report.phase("evaluate", "evaluating the validation split"):
            self.parts.fit_head(self.module)
            metrics = validator.figures(self.engine, self.parts.stop)
        if metrics is None:
            self.is_stopping = self._save_due = True
            return
        self.run.evaluation_due = False
        self._log({f"eval_{metric.key}": value for metric, value in metrics.items()})
        # JSON has no NaN. If the loss is NaN, the attempt fails below with a specific message.
        finite = {metric: value for metric, value in metrics.items() if math.isfinite(value)}
        report.update(evaluation=finite, activity="training", flush=True)
        self._metrics = {metric.value: value for metric, value in metrics.items()}
        self._metrics_step = self.run.step
        self._apply_metrics(metrics)
        self.meter.resume()

    def _apply_metrics(self, metrics: dict[Metric, float]) -> None:
        run, training = self.run, self.parts.config.spec.training
        early, overfitting = training.early_stopping, training.overfitting
        if not math.isfinite(metrics[Metric.LOSS]):
            raise self._diverged("validation loss")
        run.loss_watch = run.loss_watch.after(metrics[Metric.LOSS])
        if warning := self.loss_warning():
            log.warning(warning)
            self.parts.report.warn(warning)
        if self.parts.plan.schedule is Schedule.REDUCE_ON_PLATEAU:
            self._lower_rate_on_plateau(metrics[Metric.LOSS])
        if overfitting is not None:
            self._watch_overfitting(metrics[Metric.LOSS], overfitting)
        stops_overfitting = overfitting is not None and overfitting.action is OverfittingAction.STOP
        rule = early or (EarlyStopping() if stops_overfitting else None)
        if rule is None:
            return
        run.best = run.best.after(metrics[rule.metric], run.step, rule)
        run.stopped_early = early is not None and run.best.exhausted(early)
        run.stopped_early |= stops_overfitting and bool(run.overfitting.found)
        self._save_due |= run.best.step == run.step or run.stopped_early

    def _lower_rate_on_plateau(self, validation_loss: float) -> None:
        run = self.run
        before = run.plateau
        run.plateau = before.after(validation_loss, self.parts.plan.options)
        if run.plateau.factor == before.factor:
            return
        self.rate_scale.value = run.plateau.factor
        apply_rates(self.schedule)
        if _is_main():
            log.info(
                "the validation loss has not fallen below %.5g for %d validations: the learning rate is now %.3g",
                run.plateau.lowest,
                before.evaluations_since + 1,
                self.schedule.get_last_lr()[0],
            )

    def _watch_overfitting(self, validation_loss: float, rule: Overfitting) -> None:
        run = self.run
        before = run.overfitting
        training_loss = training_loss_before_evaluation(run.log)
        run.overfitting = before.after(validation_loss, training_loss, run.step, rule)
        self.parts.report.update(overfitting=run.overfitting.evidence, flush=True)
        if run.overfitting.found and not before.found:
            log.warning(run.overfitting.found)
            self.parts.report.warn(run.overfitting.found)

    def _save(self) -> None:
        """Save the state. The last save of an attempt returns when it is committed. Collective."""
        parts, run = self.parts, self.run
        self._save_due = False
        self._check_parameters()
        run.finished = run.stopped_early or run.step >= parts.plan.total_steps
        run.loss_since_log = tuple(gather_over_ranks(float(self._loss_since_log)))
        state = TrainingState(
            step=run.step,
            data_position=self._position,
            engine=self.engine,
            small_state=small_state(run, self.schedule),
            best_step=run.best.step,
            metrics=self._metrics if self._metrics_step == run.step else {},
        )
        is_last = self.is_stopping or run.finished
        parts.checkpoints.save(state, step_seconds=self.meter.step_seconds, wait=is_last)
        self.trackers.saved()
        parts.report.update(activity="training", flush=True)
        self.meter.resume()

    def _check_parameters(self) -> None:
        """Raise DivergedError if parameters are not finite, so that no unusable state is committed. Collective."""
        local = (getattr(parameter, "ds_tensor", parameter).data for parameter in self.module.parameters())
        broken = not all(is_finite(values) for values in local)
        if sum_over_ranks([float(broken)])[0] > 0:
            raise self._diverged("state of the parameters")

    # ---- warnings and errors ----

    def loss_warning(self) -> str:
        """Return a warning if the finite validation loss indicates divergence, else an empty string."""
        return self.run.loss_watch.warning(
            is_last=self.run.step >= self.parts.plan.total_steps,
            learning_rate=self.parts.config.spec.training.peak_learning_rate,
        )

    def warn_of_skipped_steps(self) -> None:
        """Warn if more steps were skipped than the loss scale needs to adapt."""
        skipped, steps = self.engine.skipped_steps, self.run.step
        if skipped > _FEW_SKIPPED * steps:
            self.parts.report.warn(
                f"{skipped} of {steps} steps changed nothing: their gradients overflowed Float16, and the learning "
                "rate did not advance; try spec.model.dtype Float32, or BFloat16 on other GPUs"
            )

    def _diverged(self, what: str) -> DivergedError:
        """Return a DivergedError with the step and the learning rate."""
        rate = self.parts.config.spec.training.peak_learning_rate
        return DivergedError(
            f"the {what} is NaN or infinite at step {self.run.step} "
            f"(learning rate {self.schedule.get_last_lr()[0]:.3g})",
            advice=f"lower spec.training.learningRate (now {rate:g}), or add spec.training.warmup",
        )


def _is_main() -> bool:
    return dist.get_rank() == 0


def _tokens(batch: Batch) -> int:
    return int(batch["attention_mask"].sum())


def _text(value: float) -> str:
    return OVERFLOW_TEXT if value >= OVERFLOW else f"{value:.5g}"


def is_finite(values: torch.Tensor) -> bool:
    """Whether all values are finite, from their minimum and maximum, which propagate NaN. Checking each value with
    `isfinite` takes ten times as long."""
    if not values.numel():  # this rank's shard is empty
        return True
    least, largest = torch.aminmax(values)
    return bool(torch.isfinite(least)) and bool(torch.isfinite(largest))
