"""transformers' Trainer with our data order, loss, validation and checkpoints.

What is overridden is listed by name here because transformers gives no promise about it: `_inner_training_loop`,
`_init_training_state`, `_prepare_for_training`, `_run_epoch`, `_finalize_training`, `_save_checkpoint`,
`_load_rng_state`, `_get_train_sampler`, `_get_num_items_in_batch`, `store_flos`. A unit test asserts that they exist
with these parameters.
"""

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from finetune_api.progress import CommittedCheckpoint
from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import Metric, Task

from ..checkpoint.plane import CheckpointPlane, Manifest
from ..data.collate import Collator
from ..data.sampler import SeededSampler
from ..data.shards import TokenDataset
from ..errors import DivergedError
from ..progress import ProgressReporter
from ..stop import StopFlag
from .control import StepControl
from .loss import causal_lm_loss, causal_lm_targets, classification_loss
from .meter import StepMeter
from .plan import TrainingPlan
from .state import LossSums, RunState, small_state
from .validation import Validator
from .world import gather_over_ranks, stop_if_agreed, sum_over_ranks


@dataclass(frozen=True)
class Resume:
    """The checkpoint that an attempt goes on from."""

    manifest: Manifest
    small_state: dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """What a training is made of, beside the model."""

    config: TrainerConfig
    plan: TrainingPlan
    plane: CheckpointPlane
    report: ProgressReporter
    stop: StopFlag
    sampler: SeededSampler
    validator: Validator | None
    resume: Resume | None

    @property
    def task(self) -> Task:
        """Head and loss."""
        assert self.config.prepared is not None
        return self.config.prepared.task


class FineTuneTrainer(Trainer):
    """One attempt. `run` is what the checkpoints carry from attempt to attempt."""

    loss_is_scaled_for_ga = True
    """`compute_loss` divides by the whole global batch."""

    def __init__(
        self, parts: Parts, *, model: nn.Module, args: TrainingArguments, collator: Collator, rows: TokenDataset
    ) -> None:
        self.parts = parts
        self.run = RunState() if parts.resume is None else RunState.from_json(parts.resume.small_state["run"])
        self.meter = StepMeter(parts.report, total_steps=parts.plan.total_steps)
        self.last_checkpoint: CommittedCheckpoint | None = None
        self.last_save = time.monotonic()
        self._unread_tokens = 0
        super().__init__(
            model=model, args=args, data_collator=collator, train_dataset=rows, callbacks=[StepControl(self)]
        )
        self.remove_callback(PrinterCallback)

    # ---- data and loss ----

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededSampler:
        return self.parts.sampler

    def _run_epoch(self, **kwargs: Any) -> None:
        # accelerate loses the epoch where batches are skipped.
        self.parts.sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device) -> int:
        """Targets of the global batch; also counts this rank's tokens."""
        self._unread_tokens += sum(int(batch["attention_mask"].sum()) for batch in batch_samples)
        if self.parts.task is Task.SEQUENCE_CLASSIFICATION:
            # accelerate fills the last batch of an epoch up, so all ranks hold the same number of rows.
            return sum(len(batch["labels"]) for batch in batch_samples) * self.args.world_size
        local = sum(causal_lm_targets(batch["labels"]) for batch in batch_samples)
        return max(1, int(sum_over_ranks([float(local)])[0]))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Summed loss over the targets of the global batch, times the ranks that DeepSpeed averages over."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        summed = classification_loss if self.parts.task is Task.SEQUENCE_CLASSIFICATION else causal_lm_loss
        smoothing = self.parts.config.spec.training.label_smoothing
        loss = summed(outputs.logits, labels, smoothing=smoothing) * (self.args.world_size / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def take_tokens(self) -> int:
        """This rank's tokens since the last call."""
        taken, self._unread_tokens = self._unread_tokens, 0
        return taken

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it walks over all modules for every micro batch."""
        return 0

    def store_flos(self) -> None:
        """Nothing to store, and no collective for it."""

    # ---- resume ----

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        # The loop takes a path; ours is only the sign that there is something to skip and to restore.
        if self.parts.resume is not None:
            kwargs["resume_from_checkpoint"] = self.parts.resume.manifest.uri
        return super()._inner_training_loop(*args, **kwargs)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, *unused: Any
    ) -> tuple[int, int]:
        assert num_update_steps_per_epoch == self.parts.plan.steps_per_epoch, "plan and dataloader count differently"
        super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, None, None)
        resume = self.parts.resume
        if resume is None:
            return 0, 0
        self.state = TrainerState(**resume.small_state["trainer"])
        self.state.init_training_references(self, max_steps, num_train_epochs, None)
        epoch, steps = divmod(self.state.global_step, num_update_steps_per_epoch)
        return epoch, steps * self.args.gradient_accumulation_steps

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        parts = self.parts
        with parts.report.phase("engine", "building the ZeRO engine"):
            prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if parts.resume is not None:
            with parts.report.phase("restore", f"restoring step {self.state.global_step}"):
                parts.plane.load(parts.resume.manifest, self.model_wrapped)
                self.lr_scheduler.load_state_dict(parts.resume.small_state["scheduler"])
        stop_if_agreed(parts.stop.requested, where="before the first step")
        return prepared

    def prepare_engine(self) -> None:
        """Build the engine without a step, for a run of which only the export is left."""
        assert self.parts.resume is not None, "only a checkpoint says that the steps are done"
        self.state = TrainerState(**self.parts.resume.small_state["trainer"])
        with self.parts.report.phase("engine", "building the ZeRO engine"):
            super()._prepare_for_training(self.parts.plan.total_steps, self.get_train_dataloader(), None)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called by the loop after the batch skip, the only moment at which dropout goes on as it would have."""
        if self.parts.resume is not None:
            self.parts.plane.restore_rng(self.parts.resume.manifest)

    def restore_losses(self) -> None:
        """Set the accumulators that the loop has just zeroed."""
        if self.parts.resume is None:
            return
        losses = LossSums.from_json(self.parts.resume.small_state["losses"])
        self._tr_loss.fill_(losses.of_rank(self.args.process_index, self.args.world_size))
        self._total_loss_scalar, self._globalstep_last_logged = losses.logged, losses.last_logged_step

    # ---- validation and checkpoints ----

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the validation split and judge early stopping. Collective."""
        validator, report = self.parts.validator, self.parts.report
        assert validator is not None, "the plan evaluates only where there is a validation split"
        with report.phase("evaluate", "evaluating the validation split"):
            figures = validator.figures(self.model_wrapped)
        metrics = {f"eval_{_snake(metric)}": value for metric, value in figures.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        report.update(evaluation=figures, activity="training", flush=True)
        self._judge(figures)
        self.meter.resume()
        return metrics

    def _judge(self, figures: dict[Metric, float]) -> None:
        rule, step = self.parts.config.spec.training.early_stopping, self.state.global_step
        if not math.isfinite(figures[Metric.LOSS]):
            raise self.diverged("validation loss")
        if rule is None:
            return
        self.run.best = self.run.best.after(figures[rule.metric], step, rule)
        self.control.should_save |= self.run.best.step == step
        if self.run.best.exhausted(rule):
            self.run.stopped_early = True
            self.control.should_training_stop = self.control.should_save = True

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        step, parts = self.state.global_step, self.parts
        with parts.report.phase("save", "saving a checkpoint"):
            self._check_parameters()
            self.run.finished = self.run.stopped_early or step >= parts.plan.total_steps
            losses = LossSums(
                since_log=tuple(gather_over_ranks(float(self._tr_loss))),
                logged=self._total_loss_scalar,
                last_logged_step=self._globalstep_last_logged,
            )
            self.last_checkpoint = parts.plane.save(
                step=step,
                engine=self.model_wrapped,
                small_state=small_state(
                    trainer_state=self.state, scheduler=self.lr_scheduler.state_dict(), losses=losses, run=self.run
                ),
                is_best=self.run.best.step == step,
            )
        if self.run.best.step == step:
            self.run.best = dataclasses.replace(self.run.best, uri=self.last_checkpoint.uri)
        parts.report.update(last_checkpoint=self.last_checkpoint, activity="training", flush=True)
        self.last_save = time.monotonic()
        self.meter.resume()

    def _check_parameters(self) -> None:
        """Raise DivergedError rather than commit a state that no later attempt could use. Collective."""
        local = (getattr(parameter, "ds_tensor", parameter).data for parameter in self.model.parameters())
        broken = not all(bool(torch.isfinite(values).all()) for values in local)
        if sum_over_ranks([float(broken)])[0] > 0:
            raise self.diverged("state of the parameters")

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        self.is_in_train = False
        steps = max(1, self.state.global_step)
        return TrainOutput(self.state.global_step, (self._total_loss_scalar + float(self._tr_loss)) / steps, {})

    def diverged(self, what: str) -> DivergedError:
        """The error that names step and learning rate."""
        rate = self.parts.config.spec.training.learning_rate
        return DivergedError(
            f"the {what} is NaN or infinite at step {self.state.global_step} "
            f"(learning rate {self._get_learning_rate():.3g})",
            advice=f"lower spec.training.learningRate (now {rate:g}), or add spec.training.warmup",
        )


def _snake(metric: Metric) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in metric.value).lstrip("_")
