"""The train stage: claims the run, loads the model, builds the engine, trains and exports."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn
from transformers import TrainingArguments

from finetune_api.progress import TrainResult
from finetune_api.trainer_config import Prepared, TrainerConfig
from finetune_api.v1alpha1 import Dtype, Packing

from ..checkpoint.engine.collective import rank_zero
from ..checkpoint.manager import CheckpointManager
from ..data.collate import Collator
from ..data.order import grouping_of
from ..data.sampler import SeededSampler
from ..data.shards import TokenDataset
from ..errors import DivergedError, StoppedError
from ..evaluate.reload import choose_sample, write_reference
from ..methods import METHODS
from ..model.export import Exported, export
from ..model.fetch import prepared_model
from ..model.load import load_model
from ..model.tokenizer import load_tokenizer
from ..progress import ProgressReporter
from ..runtime import RuntimeEnv
from ..stage_context import StageContext
from ..stage_log import log_train_started, log_trained
from ..stop import StopFlag
from ..store.client import ObjectStore
from ..tasks import TASKS
from .arguments import training_arguments
from .control import StepControl
from .plan import TrainingPlan, training_plan
from .reference import measure
from .rows import RowsWithPadding, WholeBatches, layout
from .trainer import FineTuneTrainer, Parts
from .validation import Validator
from .world import agreed_dtype, end_process_group, start_process_group, stop_if_agreed

log = logging.getLogger("finetune")


def train(
    config: TrainerConfig, store: ObjectStore, runtime: RuntimeEnv, report: ProgressReporter, stop: StopFlag
) -> TrainResult:
    """Run one attempt of the training. Collective; every rank gets the same result.

    Raises StoppedError (state saved), DivergedError, FencedError, and the errors of storage, data and model.
    """
    start_process_group(config, runtime)
    try:
        return _Attempt(_on_these_devices(config, report), store, runtime, report, stop).run()
    finally:
        end_process_group()


def _on_these_devices(config: TrainerConfig, report: ProgressReporter) -> TrainerConfig:
    """Return the configuration with a floating-point type that all devices support. Collective."""
    assert config.prepared is not None, "the train stage needs the result of the prepare stage"
    dtype = agreed_dtype(config)
    if dtype is not config.prepared.dtype:
        report.warn(f"trained in {dtype}: a GPU of this job cannot compute in {config.prepared.dtype}")
    elif dtype is Dtype.FLOAT16 and not config.world.gpus:
        report.warn("spec.model.dtype Float16 is slow on the CPU and meant for testing a job; Float32 is faster")
    return config.model_copy(update={"prepared": config.prepared.model_copy(update={"dtype": dtype})})


@dataclass
class _Attempt:
    config: TrainerConfig
    store: ObjectStore
    runtime: RuntimeEnv
    report: ProgressReporter
    stop: StopFlag

    def run(self) -> TrainResult:
        plan = training_plan(self.config)
        for warning in plan.warnings:
            log.warning(warning)
            self.report.warn(warning)
        if self.runtime.is_main:
            log_train_started(self.config, plan)
        # Kept alive until the end, because ZeRO-3 finds its configuration through a weak reference to it.
        arguments = training_arguments(self.config, plan, self.runtime.scratch)
        checkpoints = CheckpointManager(
            self.store,
            self.config,
            self.runtime,
            policy=plan.saves,
            report=self.report,
            cache=self.runtime.lasting_cache,
        )
        try:
            result = self._run(plan, arguments, checkpoints)
            if self.runtime.is_main:
                log_trained(result)
            return result
        finally:
            checkpoints.close()

    def _run(self, plan: TrainingPlan, arguments: TrainingArguments, checkpoints: CheckpointManager) -> TrainResult:
        with self.report.phase("claim", "claiming the run"):
            checkpoints.claim()
        stop_if_agreed(self.stop.requested, where="before the model was loaded")
        trainer, base = self._trainer(plan, arguments, checkpoints)
        try:
            self._steps(trainer)
        except (StoppedError, DivergedError):
            self._write_log(trainer)
            raise
        trainer.warn_of_skipped_steps()
        result = self._export(trainer, base)
        self._write_log(trainer)
        checkpoints.finish()
        return result

    @property
    def prepared(self) -> Prepared:
        assert self.config.prepared is not None, "the train stage needs the result of the prepare stage"
        return self.config.prepared

    def _trainer(
        self, plan: TrainingPlan, arguments: TrainingArguments, checkpoints: CheckpointManager
    ) -> tuple[FineTuneTrainer, Path]:
        """Build everything that the first step needs except for the engine. Also returns the base model's folder."""
        with self.report.phase("model", "loading model and data"):
            base = prepared_model(self.config, self.store, self.runtime).path
            rows = self._split("train")
            collator = Collator(load_tokenizer(base).pad_token_id, self.prepared.task)
            groups = self._padding_groups(rows)
            parts = Parts(
                config=self.config,
                plan=plan,
                checkpoints=checkpoints,
                report=self.report,
                stop=self.stop,
                sampler=self._order(rows, groups),
                padding_groups=groups,
                validator=self._validator(collator, arguments) if plan.evaluate_every else None,
            )
            # The duration of downloads differs between ranks, but under ZeRO-3 the ranks build the model together.
            stop_if_agreed(self.stop.requested, where="before the model was loaded")
            model = self._model(base)
        stop_if_agreed(self.stop.requested, where="before the first step")
        known = RowsWithPadding(rows, self.prepared.task)
        trainer = FineTuneTrainer(parts, model=model, args=arguments, collator=collator, rows=known)
        trainer.add_callback(StepControl(trainer))
        return trainer, base

    def _model(self, base: Path) -> nn.Module:
        spec, prepared = self.config.spec, self.prepared
        model = load_model(
            base, task=prepared.task, labels=prepared.labels, dtype=prepared.dtype, seed=spec.training.seed
        )
        method = METHODS[spec.method.name]
        return method.apply(model, spec.method.block, TASKS[prepared.task], seed=spec.training.seed)

    def _split(self, name: str) -> TokenDataset:
        return TokenDataset.open(self.store, self.prepared.dataset_uri, name, self.runtime.cache)

    def _order(self, rows: TokenDataset, padding_groups: int) -> WholeBatches:
        order = SeededSampler(
            rows.lengths,
            seed=self.config.spec.training.seed,
            batch_size=self.config.batch.global_size,
            grouped=self.prepared.packing is Packing.LENGTH_GROUPED,
        )
        return WholeBatches(order, layout=layout(self.config.batch, groups=padding_groups))

    def _padding_groups(self, rows: TokenDataset) -> int:
        if self.prepared.packing is not Packing.LENGTH_GROUPED:
            return 1
        return grouping_of(self.config, rows.lengths, self.prepared.parameters).groups

    def _validator(self, collator: Collator, arguments: TrainingArguments) -> Validator:
        return Validator(
            dataset=self._split("validation"),
            collator=collator,
            task=self.prepared.task,
            labels=self.prepared.labels,
            batch_size=self.config.batch.micro_size,
            device=arguments.device,
        )

    def _steps(self, trainer: FineTuneTrainer) -> None:
        """Train to the end, then restore the best state if early stopping requires it."""
        trainer.train()
        best = trainer.run.best.step
        if best is None or best == trainer.state.global_step:
            return
        with self.report.phase("restore", f"restoring the best state, step {best}"):
            trainer.parts.checkpoints.load_weights(best, trainer.engine)

    def _export(self, trainer: FineTuneTrainer, base: Path) -> TrainResult:
        step, run = trainer.state.global_step, trainer.run
        with self.report.phase("export", "exporting the model"):
            self._record_reference(trainer)
            exported: Exported | None = export(
                trainer.module, config=self.config, base=base, store=self.store, scratch=self.runtime.scratch
            )
            shared = rank_zero(lambda: cast(Exported, exported), Exported)
        self.report.update(activity="done", flush=True)
        return TrainResult(
            model_uri=shared.uri,
            digest=shared.digest,
            final_step=step,
            best_step=run.best.step,
            stopped_early=run.stopped_early,
        )

    def _record_reference(self, trainer: FineTuneTrainer) -> None:
        """Measure the model that is exported. The evaluate stage compares every exported folder with the result."""
        sample = choose_sample(self.prepared, self._split)
        reference = measure(trainer.engine, sample, task=self.prepared.task, device=trainer.args.device)
        if self.runtime.is_main:
            write_reference(self.config, self.store, reference)

    def _write_log(self, trainer: FineTuneTrainer) -> None:
        """Write `training.json` on rank 0: the log since the first step of the run."""
        if not self.runtime.is_main:
            return
        document = {
            "log": trainer.state.log_history,
            "attempt": self.config.attempt,
            "phase_seconds": self.report.progress.phase_seconds,
            "steps": trainer.parts.plan.total_steps,
            "tokens": trainer.run.tokens,
            # Warnings of this attempt, and those of earlier ones, which the checkpoint contains.
            "warnings": [
                text for text in dict.fromkeys([*self.report.progress.warnings, trainer.loss_warning()]) if text
            ],
            "skipped_steps": trainer.engine.skipped_steps,
        }
        self.store.put(self.config.layout.training_log, json.dumps(document).encode(), content_type="application/json")


def run(context: StageContext) -> TrainResult:
    """Run the stage on every rank."""
    assert context.stop is not None, "the train stage has `saves_state` in finetune_api.stages"
    return train(context.prepared_config(), context.store, context.runtime, context.report, context.stop)
