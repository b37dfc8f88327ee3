"""transformers' Trainer with this project's data order, loss, validation and checkpoints.

These overridden methods are not part of transformers' public API: `_init_training_state`,
`_prepare_for_training`, `_run_epoch`, `_finalize_training`, `_save_checkpoint`, `_load_rng_state`,
`_get_train_sampler`, `_get_num_items_in_batch`, `store_flos`, `create_scheduler`. A unit test asserts that they still
exist.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import Metric

from ..checkpoint.engine import optimizer_state
from ..checkpoint.manager import CheckpointManager, Restored, TrainingState
from ..data.collate import Collator
from ..errors import DivergedError, StoppedError
from ..progress import ProgressReporter
from ..stop import StopFlag
from ..tasks import TASKS, TrainingTask
from .meter import StepMeter
from .padding import batch_by_groups, forward_by_groups
from .plan import TrainingPlan
from .rows import RowsWithPadding, WholeBatches
from .state import LossSums, RunState, resume_schedule, small_state
from .validation import Validator
from .world import gather_over_ranks, stop_if_agreed, sum_over_ranks

log = logging.getLogger("finetune")

_NO_SMALLER_SCALE = "loss scale already at minimum"
"""Part of the message of DeepSpeed's DynamicLossScaler, which raises a plain Exception."""
_FEW_SKIPPED = 0.02


@dataclass(frozen=True)
class Parts:
    """The parts of a training, except for the model."""

    config: TrainerConfig
    plan: TrainingPlan
    checkpoints: CheckpointManager
    report: ProgressReporter
    stop: StopFlag
    sampler: WholeBatches
    padding_groups: int
    """Parts of a micro batch that are padded and computed separately."""
    validator: Validator | None

    @property
    def task(self) -> TrainingTask:
        """Loss and its normalisation."""
        assert self.config.prepared is not None
        return TASKS[self.config.prepared.task]


class FineTuneTrainer(Trainer):
    """Trains one attempt. `StepControl` must be added as a callback. `run` is saved in the checkpoints."""

    loss_is_scaled_for_ga = True
    """`compute_loss` divides by the whole global batch."""

    def __init__(
        self, parts: Parts, *, model: nn.Module, args: TrainingArguments, collator: Collator, rows: RowsWithPadding
    ) -> None:
        self.parts = parts
        self.run = RunState()
        self.restored: Restored | None = None
        self.meter = StepMeter(parts.report, total_steps=parts.plan.total_steps)
        self.is_stopping = False
        """All ranks have agreed to stop."""
        self._batch_offset = 0
        """Global batches that were consumed in addition to one per step."""
        self._unread_tokens = 0
        self._figures: dict[str, float] = {}
        self._figures_step = -1
        super().__init__(model=model, args=args, data_collator=collator, train_dataset=rows)
        self.remove_callback(PrinterCallback)
        if parts.padding_groups > 1:
            forward_by_groups(self.module, parts.padding_groups)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of the plan, over DeepSpeed's optimizer."""
        if self.lr_scheduler is None:
            stepped = optimizer or self.optimizer
            assert stepped is not None, "the loop has built it together with the engine"
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(stepped, self.parts.plan.rate_factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- data and loss ----

    def _get_train_sampler(self, train_dataset: Any = None) -> WholeBatches:
        return self.parts.sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_training_stop:  # set by a validation before the first step
            return
        # accelerate resets the epoch when batches are skipped.
        self.parts.sampler.set_epoch(kwargs["epoch"])
        # The loop expects a path. It only checks that there is one, to skip batches and restore random generators.
        kwargs["resume_from_checkpoint"] = None if self.restored is None else self.restored.manifest.name
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device) -> int:
        """Return the number of targets of the global batch, and count this rank's tokens."""
        self._unread_tokens += sum(int(batch["attention_mask"].sum()) for batch in batch_samples)
        task = self.parts.task
        if task.has_one_target_per_row:
            return self.parts.config.batch.global_size - self.padding_rows_of(self.state.global_step + 1)
        local = sum(task.targets(batch) for batch in batch_samples)
        return max(1, int(sum_over_ranks([float(local)])[0]))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the summed loss over the targets of the global batch, times the ranks that DeepSpeed averages over."""
        task, smoothing = self.parts.task, self.parts.config.spec.training.label_smoothing
        outputs = model(**{name: inputs[name] for name in task.model_inputs})
        logits = outputs if isinstance(outputs, tuple) else (outputs.logits,)
        groups = batch_by_groups(inputs, logits)
        losses = [task.loss(part, group, smoothing=smoothing) for part, group in zip(logits, groups, strict=True)]
        loss = torch.stack(losses).sum() * (self.args.world_size / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def padding_rows_of(self, step: int) -> int:
        """Return the number of padding rows in the global batch of a step, over all ranks."""
        position = step + self._batch_offset
        return self.parts.sampler.padding_rows if position % self.parts.plan.steps_per_epoch == 0 else 0

    def take_tokens(self) -> int:
        """Return this rank's tokens since the last call."""
        taken, self._unread_tokens = self._unread_tokens, 0
        return taken

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: counting would iterate over all modules for every micro batch."""
        return 0

    def store_flos(self) -> None:
        """Do nothing: operations are not counted, and the method of the base class is a collective."""

    # ---- engine and resume ----

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, *unused: Any
    ) -> tuple[int, int]:
        """Build the engine and restore the newest checkpoint. Returns the epoch and the number of batches to skip.

        Both assume one batch per step; a different data position is an offset of the sampler.

        transformers restores its state before it builds the engine. The order is reversed here, because only an engine
        can verify that a checkpoint is complete.
        """
        assert num_update_steps_per_epoch == self.parts.plan.steps_per_epoch, "plan and dataloader count differently"
        super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, None, None)
        with self.parts.report.phase("engine", "building the ZeRO engine"):
            super()._prepare_for_training(max_steps, None, None)  # type: ignore[no-untyped-call]
        self.parts.report.update(zero_stage=self.engine.zero_optimization_stage())
        self._restore()
        stop_if_agreed(self.parts.stop.requested, where="before the first step")
        if self.restored is not None:
            self.state.init_training_references(  # type: ignore[no-untyped-call]
                self, max_steps, num_train_epochs, None
            )
        if self.run.finished:
            # An epoch after the last one: the loop ends at once, and only the export is left.
            return num_train_epochs, 0
        epoch, steps = divmod(self.state.global_step, num_update_steps_per_epoch)
        return epoch, steps * self.args.gradient_accumulation_steps

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        self.callback_handler.train_dataloader = train_dataloader
        return self.model_wrapped, train_dataloader

    def _restore(self) -> None:
        parts = self.parts
        with parts.report.phase("restore", "looking for a checkpoint"):
            self.restored = parts.checkpoints.restore(self.engine)
        for warning in parts.checkpoints.warnings:
            parts.report.warn(warning)
        if self.restored is None:
            if self.is_world_process_zero():
                log.info("no checkpoint to resume from: training starts from the base model")
            return
        small_state = self.restored.small_state
        self.state = TrainerState(**small_state["trainer"])
        resume_schedule(self._schedule, small_state["scheduler"])
        self.run = RunState.from_json(small_state["run"])
        manifest = self.restored.manifest
        step = manifest.step
        self._batch_offset = manifest.position - step
        parts.sampler.set_offset(self._batch_offset)
        parts.report.update(resumed_from_step=step, resumed_from=self.restored.origin, step=step, flush=True)
        log.info("resuming from step %d of %d", step, parts.plan.total_steps)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random generators. The loop calls this after skipping batches, so dropout continues exactly."""
        assert self.restored is not None, "only a resumed epoch restores generators"
        self.parts.checkpoints.restore_rng(self.restored.manifest)

    def restore_losses(self) -> None:
        """Restore the accumulators, which the loop has set to zero."""
        if self.restored is None:
            return
        losses = LossSums.from_json(self.restored.small_state["losses"])
        self.loss_since_log().fill_(losses.of_rank(self.args.process_index, self.args.world_size))
        self._total_loss_scalar, self._globalstep_last_logged = losses.logged, losses.last_logged_step

    # ---- validation and checkpoints ----

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the validation split and apply the rule of early stopping. Collective.

        A stop request interrupts it. The state is then saved without figures, and the next attempt starts with this
        validation.
        """
        validator, report = self.parts.validator, self.parts.report
        assert validator is not None, "the plan evaluates only where there is a validation split"
        with report.phase("evaluate", "evaluating the validation split"):
            figures = validator.figures(self.engine, self.parts.stop)
        if figures is None:
            self.is_stopping = True
            self.control.should_save = self.control.should_training_stop = True
            return {}
        self.run.evaluation_due = False
        metrics = {f"eval_{_snake(metric)}": value for metric, value in figures.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        # JSON has no NaN. If the loss is NaN, the attempt fails below with a specific message.
        finite = {metric: value for metric, value in figures.items() if math.isfinite(value)}
        report.update(evaluation=finite, activity="training", flush=True)
        self._figures = {metric.value: value for metric, value in figures.items()}
        self._figures_step = self.state.global_step
        self._judge(figures)
        self.meter.resume()
        return metrics

    def evaluate_again(self) -> None:
        """Run the validation that a stop has skipped in the last attempt, before the first step. Collective.

        Raises StoppedError if a stop interrupts it again; the state is already saved.
        """
        self.evaluate()
        if self.is_stopping:
            raise StoppedError(
                f"stopped on request during the validation of step {self.state.global_step}, whose state is saved"
            )
        if self.control.should_save:
            self._save_checkpoint(self.module)
            self.control.should_save = False

    def _judge(self, figures: dict[Metric, float]) -> None:
        rule, step = self.parts.config.spec.training.early_stopping, self.state.global_step
        if not math.isfinite(figures[Metric.LOSS]):
            raise self.diverged("validation loss")
        self.run.loss_watch = self.run.loss_watch.after(figures[Metric.LOSS])
        if warning := self.loss_warning():
            log.warning(warning)
            self.parts.report.warn(warning)
        if rule is None:
            return
        self.run.best = self.run.best.after(figures[rule.metric], step, rule)
        self.control.should_save |= self.run.best.step == step
        if self.run.best.exhausted(rule):
            self.run.stopped_early = True
            self.control.should_training_stop = self.control.should_save = True

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        step, parts = self.state.global_step, self.parts
        self._check_parameters()
        self.run.finished = self.run.stopped_early or step >= parts.plan.total_steps
        losses = LossSums(
            since_log=tuple(gather_over_ranks(float(self.loss_since_log()))),
            logged=self._total_loss_scalar,
            last_logged_step=self._globalstep_last_logged,
        )
        state = TrainingState(
            step=step,
            data_position=step + self._batch_offset,
            engine=self.engine,
            small_state=small_state(
                trainer_state=self.state, scheduler=self._schedule.state_dict(), losses=losses, run=self.run
            ),
            best_step=self.run.best.step,
            metrics=self._figures if self._figures_step == step else {},
        )
        parts.checkpoints.save(
            state,
            step_seconds=self.meter.step_seconds,
            wait=self.control.should_training_stop or self.run.finished,
        )
        parts.report.update(activity="training", flush=True)
        self.meter.resume()

    def _check_parameters(self) -> None:
        """Raise DivergedError if parameters are not finite, so that no unusable state is committed. Collective."""
        local = (getattr(parameter, "ds_tensor", parameter).data for parameter in self.module.parameters())
        broken = not all(is_finite(values) for values in local)
        if sum_over_ranks([float(broken)])[0] > 0:
            raise self.diverged("state of the parameters")

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        self.is_in_train = False
        steps = max(1, self.state.global_step)
        return TrainOutput(self.state.global_step, (self._total_loss_scalar + float(self.loss_since_log())) / steps, {})

    # ---- Float16 ----

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on one micro batch. Raises DivergedError if no loss scale is small enough for Float16."""
        try:
            return super().training_step(*args, **kwargs)
        except Exception as error:
            if _NO_SMALLER_SCALE in str(error):
                raise self.diverged("gradient in Float16") from error
            raise

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log figures, without the gradient norm if the step was skipped."""
        if self.step_was_skipped:
            logs.pop("grad_norm", None)
        super().log(logs, *args, **kwargs)

    @property
    def step_was_skipped(self) -> bool:
        """Whether the last step did not change the weights, because its scaled gradients overflowed. The learning rate
        schedule does not advance in such a step."""
        optimizer = self.engine.optimizer
        return bool(optimizer_state.loss_scale(self.engine)) and bool(optimizer.overflow)

    def warn_of_skipped_steps(self) -> None:
        """Warn if more steps were skipped than the loss scale needs to adapt."""
        skipped, steps = self.engine.skipped_steps, self.state.global_step
        if skipped > _FEW_SKIPPED * steps:
            self.parts.report.warn(
                f"{skipped} of {steps} steps changed nothing: their gradients overflowed Float16, and the learning "
                "rate did not advance; try spec.model.dtype Float32, or BFloat16 on other GPUs"
            )

    @property
    def engine(self) -> Any:
        """DeepSpeed's engine."""
        return self.model_wrapped

    @property
    def module(self) -> nn.Module:
        """The model that is trained, inside the engine."""
        assert isinstance(self.model, nn.Module)
        return self.model

    @property
    def _schedule(self) -> torch.optim.lr_scheduler.LambdaLR:
        assert self.lr_scheduler is not None, "the loop has built it together with the engine"
        return self.lr_scheduler

    def loss_since_log(self) -> torch.Tensor:
        """This rank's summed loss since the last log line, as a scalar tensor."""
        summed: torch.Tensor = self._tr_loss
        return summed

    def loss_warning(self) -> str:
        """Return a warning if the finite validation loss indicates divergence, else an empty string."""
        return self.run.loss_watch.warning(
            is_last=self.state.global_step >= self.parts.plan.total_steps,
            learning_rate=self.parts.config.spec.training.learning_rate,
        )

    def diverged(self, what: str) -> DivergedError:
        """Return a DivergedError with the step and the learning rate."""
        rate = self.parts.config.spec.training.learning_rate
        return DivergedError(
            f"the {what} is NaN or infinite at step {self.state.global_step} "
            f"(learning rate {self._get_learning_rate():.3g})",
            advice=f"lower spec.training.learningRate (now {rate:g}), or add spec.training.warmup",
        )


def _snake(metric: Metric) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in metric.value).lstrip("_")


def is_finite(values: torch.Tensor) -> bool:
    """Whether all values are finite, from their minimum and maximum, which propagate NaN. Checking each value with
    `isfinite` takes ten times as long."""
    if not values.numel():  # this rank's shard is empty
        return True
    least, largest = torch.aminmax(values)
    return bool(torch.isfinite(least)) and bool(torch.isfinite(largest))
