"""The train stage: claims the run, loads the model, builds the engine, trains and exports."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import set_seed

from finetune_api.batches import default_micro_batch, largest_divisor
from finetune_api.progress import TrainResult
from finetune_api.rules import limiting_memory, limits_micro_batch
from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1 import Batching, Dtype

from ..background import Background
from ..checkpoint.engine import rng
from ..checkpoint.manager import CheckpointManager
from ..collectives import any_rank, gather_all, gather_over_ranks, rank_zero, stop_if_agreed
from ..data.collate import Collator
from ..data.order import grouping_of
from ..data.shards import TokenDataset
from ..errors import BadConfigError, DivergedError, FencedError, StoppedError
from ..learning_rate import ChosenRate, choose, rates_to_test, steps_of_test, too_small
from ..methods import METHODS
from ..methods.base import Weights
from ..methods.pruning import Masks
from ..methods.pruning.record import PruningRecord
from ..micro_batch import (
    MeasuredMicroBatch,
    is_lowered_by_operator,
    reason_to_measure,
    settings_digest,
    smallest,
)
from ..model.activations import LAYERS
from ..model.export import Exported, export
from ..model.fetch import ModelFolder, prepared_model
from ..model.initial_weights import begin_with
from ..model.load import load_model
from ..model.pruning import check_zeros, keep_zeros, set_zeros
from ..model.quantize import BaseQuantization, logical_numel
from ..model.tokenizer import load_tokenizer
from ..progress import ProgressReporter
from ..reference import choose_sample, measure, write_reference
from ..run_record import read_chosen_rate, read_micro_batch, record_chosen_rate
from ..runtime import RuntimeEnv
from ..stage_context import StageContext
from ..stage_log import log_parameters, log_train_started, log_trained
from ..stop import StopFlag
from ..store.client import ObjectStore
from ..tasks import TASKS
from ..tasks.base import TestSplit
from ..tasks.chunked_loss import ChunkingError, defer_logits
from ..tracking.base import Outcome as TrackingOutcome
from ..tracking.reports import open_reports
from .engine import Engine, build_engine, partitioned_models
from .gpu_memory import check_gpu_memory
from .initial_weights import initial_weights_of_run
from .loop import Parts, TrainingLoop
from .padding import forward_by_groups, width_multiple
from .plan import TrainingPlan, training_plan
from .probe import measure_micro_batch, memory_of_process
from .pruning import masks_of_run, pruning_of_run
from .range_test import free_memory, log_choice, measure_losses
from .rows import GlobalBatches, PackedBatches, PackedRows, RowsWithPadding
from .validation import Validator
from .world import agreed_dtype, device_of, end_process_group, gpu_bytes, start_process_group

log = logging.getLogger("finetune")


def train(
    config: PreparedConfig, store: ObjectStore, runtime: RuntimeEnv, report: ProgressReporter, stop: StopFlag
) -> TrainResult:
    """Run one attempt of the training. Collective; every rank gets the same result.

    Raises StoppedError (state saved), DivergedError, FencedError, and the errors of storage, data and model.
    """
    # The group starts when all workers have: the base model is downloaded in the meantime.
    model = Background(lambda: prepared_model(config, store, runtime))
    start_process_group(config, runtime)
    try:
        return _Attempt(_on_these_devices(config, report), store, runtime, report, stop).run(model)
    finally:
        end_process_group()


def _on_these_devices(config: PreparedConfig, report: ProgressReporter) -> PreparedConfig:
    """Return the configuration with a floating-point type that all devices support. Collective."""
    dtype = agreed_dtype(config)
    if dtype is not config.prepared.dtype:
        report.warn(f"trained in {dtype}: a GPU of this job cannot compute in {config.prepared.dtype}")
    elif dtype is Dtype.FLOAT16 and not config.world.gpus:
        report.warn("spec.model.dtype Float16 is slow on the CPU and meant for testing a job; Float32 is faster")
    return config.model_copy(update={"prepared": config.prepared.model_copy(update={"dtype": dtype})})


def _check_micro_batch(config: PreparedConfig) -> None:
    """Raise BadConfigError for a micro-batch that does not fit the memory. An operator of an earlier version does not
    know the maximum."""
    spec, prepared = config.spec, config.prepared
    limit, memory = prepared.micro_batch_limit, limiting_memory(spec)
    if spec.training.micro_batch_size is not None or limit is None:
        return
    if config.plan is not None and config.plan.micro_batch_measured:
        return
    if limits_micro_batch(spec, prepared.micro_batch_memory) and config.batch.micro_size > limit:
        field = "gpuMemory" if config.world.gpus else "resources.limits.memory"
        raise BadConfigError(
            f"the micro-batch must be at most {limit} to fit spec.workers.{field} {memory}, not "
            f"{config.batch.micro_size}",
            advice=f"set spec.training.microBatchSize: {limit}, or upgrade the operator",
        )


def _check_gpus(config: PreparedConfig, runtime: RuntimeEnv) -> str:
    """Return a warning if a GPU is smaller than the spec says. Collective. Raises BadConfigError on every rank."""
    if not config.world.gpus or config.spec.workers.gpu_memory is None:
        return ""
    return check_gpu_memory(config, int(min(gather_over_ranks(float(gpu_bytes(config, runtime))))))


@dataclass
class _Attempt:
    config: PreparedConfig
    store: ObjectStore
    runtime: RuntimeEnv
    report: ProgressReporter
    stop: StopFlag
    initial_weights: Weights = field(default_factory=dict)
    """Values that the trained parameters begin with; empty: those of the method."""

    def run(self, base_model: Background[ModelFolder]) -> TrainResult:
        _check_micro_batch(self.config)
        if warning := _check_gpus(self.config, self.runtime):
            log.warning(warning)
            self.report.warn(warning)
        plan = training_plan(self.config)
        for warning in plan.warnings:
            log.warning(warning)
            self.report.warn(warning)
        if self.runtime.is_main:
            log_train_started(self.config, plan)
        checkpoints = CheckpointManager(
            self.store,
            self.config,
            self.runtime,
            policy=plan.saves,
            report=self.report,
            cache=self.runtime.lasting_cache,
        )
        try:
            with partitioned_models(self.config):
                result = self._run(plan, checkpoints, base_model)
            if self.runtime.is_main:
                log_trained(result)
            return result
        finally:
            checkpoints.close()

    def _run(
        self, plan: TrainingPlan, checkpoints: CheckpointManager, base_model: Background[ModelFolder]
    ) -> TrainResult:
        with self.report.phase("claim", "claiming the run"):
            checkpoints.claim()
        stop_if_agreed(self.stop.requested, where="before the model was loaded")
        with self.report.phase("model", "loading model and data"):
            base = base_model.result().path
            parts = self._parts(plan, checkpoints, base)
            # The duration of downloads differs between ranks, but under ZeRO-3 the ranks build the model together.
            stop_if_agreed(self.stop.requested, where="before the model was loaded")
            pruning = pruning_of_run(self.config, base, self._split("train"), parts, self.store)
            self.initial_weights = initial_weights_of_run(self.config, base, parts, self.store)
        if self._choose_micro_batch(parts, base):
            parts = self._parts(plan, checkpoints, base)
        if self.config.spec.training.learning_rate is None:
            parts = self._with_learning_rate(parts, base, pruning)
        with self.report.phase("model"):
            model, masks = self._pruned_model(base, pruning)
            self._log_parameters(model)
        stop_if_agreed(self.stop.requested, where="before the first step")
        loop = TrainingLoop(parts, self._engine(model, parts))
        with _reported(loop):
            try:
                loop.train()
                self._restore_best(loop)
                parts.fit_head(loop.module)
                check_zeros(loop.module, masks)
            except (StoppedError, DivergedError):
                self._write_log(loop)
                raise
            loop.trackers.end(TrackingOutcome.TRAINED)  # trackers finish during the export
            loop.warn_of_skipped_steps()
            result = self._export(loop, base)
        self._write_log(loop)
        checkpoints.finish()
        return result

    def _parts(self, plan: TrainingPlan, checkpoints: CheckpointManager, base: Path) -> Parts:
        """Open the data."""
        prepared, device = self.config.prepared, device_of(self.config, self.runtime)
        rows, pad_token_id = self._split("train"), load_tokenizer(base).pad_token_id
        method = METHODS[self.config.spec.method.name]
        task = method.training_task(TASKS[prepared.task].training_task(self.config.spec.training))
        is_packed = prepared.batching is Batching.PACKED
        capacity = rows.info.max_length
        mean = capacity if is_packed else float(rows.lengths.mean())
        multiple = width_multiple(mean, capacity, on_gpus=self.config.world.gpus)
        collator = Collator(pad_token_id, prepared.task, multiple)
        return Parts(
            config=self.config,
            plan=plan,
            checkpoints=checkpoints,
            report=self.report,
            stop=self.stop,
            rows=(PackedRows if is_packed else RowsWithPadding)(rows, task, seed=self.config.spec.training.seed),
            batches=self._batches(rows),
            collator=Collator(pad_token_id, task, multiple),
            validator=self._validator(collator, device, int(rows.lengths.max())) if plan.evaluate_every else None,
            device=device,
            task=task,
            fit_head=partial(method.fit_head, rows=rows, collate=collator),
            open_trackers=lambda log: open_reports(self.config, self.store, self.runtime, log, self._warn),
        )

    def _choose_micro_batch(self, parts: Parts, base: Path) -> bool:
        """Use the micro-batch that an attempt of the run has measured, or measure it. Collective.

        Return whether it is another one than that of the configuration.
        """
        plan = self.config.plan
        if self.config.spec.training.micro_batch_size is not None or (plan is not None and plan.micro_batch_measured):
            return False
        measured = self._measured_micro_batch(parts, base)
        if measured is None:
            return False
        if self.runtime.is_main:
            log.info("%s", measured.sentence)
        if measured.warning:
            self.report.warn(measured.warning)
        size = measured.micro_batch_size
        if size is None:
            return False
        if plan is not None and plan.micro_batch_limit is not None and is_lowered_by_operator(self.config):
            size = min(size, plan.micro_batch_limit)
        batch = self.config.batch
        size = largest_divisor(batch.global_size // self.config.world.size, size)
        self.config = self.config.with_micro_batch(size)
        self.report.update(
            measured_micro_batch=size,
            gradient_accumulation=self.config.batch.accumulation,
            micro_batch_reason=measured.sentence,
            flush=True,
        )
        return self.config.batch != batch

    def _measured_micro_batch(self, parts: Parts, base: Path) -> MeasuredMicroBatch | None:
        """Return the result that the attempts of the run share; None: nothing is measured. Collective."""
        settings = settings_digest(self.config.spec)
        uri, begun = self.config.layout.micro_batch(settings), self.config.layout.micro_batch_attempt(settings)
        limit = memory_of_process(self.config, self.runtime)
        if not any_rank(limit is not None):
            return None
        found = rank_zero(lambda: read_micro_batch(self.store, uri), MeasuredMicroBatch | None)
        if found is not None:
            return found
        reason = rank_zero(lambda: self._reason_to_measure(limit, base), str)
        if not reason or is_lowered_by_operator(self.config):
            return None
        attempt = self.config.attempt
        first = rank_zero(lambda: int(parts.checkpoints.create(begun, str(attempt).encode())), int)
        if first == attempt:
            found = self._measure(reason, base)
            if any_rank(self.stop.requested):
                rank_zero(lambda: self.store.delete(begun), None)  # the next attempt measures
                stop_if_agreed(True, where="during the measurement of micro-batches")
        else:
            problem = f"the measurement of attempt {first} did not end, which may have used up the memory of its worker"
            found = MeasuredMicroBatch(problem=problem)
        content = found.model_dump_json(indent=1).encode()
        return rank_zero(
            lambda: MeasuredMicroBatch.model_validate_json(parts.checkpoints.create(uri, content)), MeasuredMicroBatch
        )

    def _measure(self, reason: str, base: Path) -> MeasuredMicroBatch:
        """Measure on every worker at the same time, in a process of its own. Collective."""
        spec, world = self.config.spec, self.config.world
        # As in the estimate, the result holds for the smallest world of the run.
        fewest = world.model_copy(update={"nodes": min(world.nodes, spec.workers.min_nodes or world.nodes)})
        config = self.config.model_copy(update={"world": fewest})
        most = default_micro_batch(spec, fewest.size)

        def measure() -> MeasuredMicroBatch | None:
            if self.runtime.local_rank:
                return None  # the processes of a worker have the same memory
            return measure_micro_batch(config, self.runtime, base, most=most, stop=self.stop)

        with self.report.phase("micro-batch test", f"measuring micro-batches, because {reason}"):
            return smallest(gather_all(measure, MeasuredMicroBatch | None))

    def _reason_to_measure(self, limit: int | None, base: Path) -> str:
        model_type = json.loads((base / "config.json").read_text()).get("model_type")
        return reason_to_measure(self.config, limit=limit, is_known=model_type in LAYERS)

    def _with_learning_rate(self, parts: Parts, base: Path, pruning: PruningRecord | None) -> Parts:
        """Use the learning rate that an attempt of the run has chosen, or choose it. Collective."""
        chosen = rank_zero(lambda: read_chosen_rate(self.store, self.config), ChosenRate | None)
        if chosen is None:
            with self.report.phase("rate test", "testing learning rates"):
                found = self._chosen_rate(parts, base, pruning)
            content = found.model_dump_json(indent=1).encode()
            uri = self.config.layout.learning_rate
            chosen = rank_zero(
                lambda: ChosenRate.model_validate_json(parts.checkpoints.create(uri, content)), ChosenRate
            )
            if self.runtime.is_main:
                log_choice(chosen)
        rank_zero(partial(record_chosen_rate, self.store, self.config, chosen), None)
        if chosen.note:
            self.report.warn(chosen.note)
        self.report.update(chosen_learning_rate=chosen.learning_rate, flush=True)
        self.config = self.config.with_learning_rate(chosen.learning_rate)
        return replace(parts, config=self.config)

    def _chosen_rate(self, parts: Parts, base: Path, pruning: PruningRecord | None) -> ChosenRate:
        """Test learning rates with a model and an engine that are discarded. Collective."""
        method = METHODS[self.config.spec.method.name]
        default = method.default_learning_rate
        if method.no_range_test:
            return ChosenRate(learning_rate=default, default_reason=method.no_range_test)
        steps = steps_of_test(parts.plan.steps_per_epoch)
        if not steps:
            return ChosenRate(learning_rate=default, default_reason=too_small(parts.plan.steps_per_epoch))
        rates = rates_to_test(default, steps)
        tested = self.config.with_learning_rate(rates[-1])

        def build(factor: Callable[[int], float]) -> Engine:
            model, _ = self._pruned_model(base, pruning)
            return self._built(model, tested, parts, factor)

        generators = rng.capture()
        losses = measure_losses(rates, replace(parts, config=tested), build, self.stop)
        free_memory()
        rng.restore(generators)
        return choose(rates, losses, default=default)

    def _warn(self, message: str) -> None:
        log.warning(message)
        self.report.warn(message)

    def _batches(self, rows: TokenDataset) -> GlobalBatches:
        prepared, batch, seed = self.config.prepared, self.config.batch, self.config.spec.training.seed
        if prepared.batching is Batching.PACKED:
            return PackedBatches(rows.lengths, batch, seed, capacity=rows.info.max_length)
        is_grouped = prepared.batching is Batching.LENGTH_GROUPED
        groups = grouping_of(self.config, rows.lengths, prepared.parameters).groups if is_grouped else 1
        return GlobalBatches(rows.lengths, batch, seed, grouped=is_grouped, groups=groups)

    def _model(self, base: Path) -> nn.Module:
        spec, prepared = self.config.spec, self.config.prepared
        model = load_model(
            base,
            task=prepared.task,
            labels=prepared.labels,
            dtype=prepared.dtype,
            seed=spec.training.seed,
            quantization=BaseQuantization.of(spec.model.quantization, device_of(self.config, self.runtime)),
        )
        method = METHODS[spec.method.name]
        trained = method.apply(model, spec.method.block, TASKS[prepared.task], seed=spec.training.seed)
        if self.initial_weights:
            begin_with(trained, method, spec.method.block, self.initial_weights)
        return trained

    def _pruned_model(self, base: Path, pruning: PruningRecord | None) -> tuple[nn.Module, Masks]:
        """Load the model with the zeros of `spec.method.full.pruning`, which stay zero. Collective."""
        model = self._model(base)
        masks = masks_of_run(pruning, self.config, self.store, model)
        set_zeros(model, masks)
        keep_zeros(model, masks)
        return model, masks

    def _log_parameters(self, model: nn.Module) -> None:
        if self.runtime.is_main:
            sizes = [(logical_numel(value), value.requires_grad) for value in model.parameters()]
            log_parameters(
                trained=sum(size for size, is_trained in sizes if is_trained),
                total=sum(size for size, _ in sizes),
                attention=attention_of(model),
            )

    def _engine(self, model: nn.Module, parts: Parts) -> Engine:
        with self.report.phase("engine", "building the ZeRO engine"):
            engine = self._built(model, self.config, parts, parts.plan.rate_factor)
        self.report.update(zero_stage=engine.deepspeed.zero_optimization_stage())
        return engine

    def _built(
        self, model: nn.Module, config: PreparedConfig, parts: Parts, rate_factor: Callable[[int], float]
    ) -> Engine:
        if config.spec.training.chunked_loss:
            _chunk_loss(model)
        set_seed(config.spec.training.seed)  # dropout does not depend on the random numbers drawn so far
        if parts.batches.groups > 1:
            forward_by_groups(model, parts.batches.groups)
        return build_engine(model, config, rate_factor)

    def _split(self, name: str) -> TokenDataset:
        return TokenDataset.open(self.store, self.config.prepared.dataset_uri, name, self.runtime.cache)

    def _held_out(self, name: str) -> TestSplit:
        return TASKS[self.config.prepared.task].held_out_rows(self._split(name))

    def _validator(self, collator: Collator, device: torch.device, longest: int) -> Validator:
        """`longest`: tokens of the longest row of the training."""
        micro = self.config.batch.micro_size
        return Validator(
            dataset=self._held_out("validation"),
            collator=collator,
            task=self.config.prepared.task,
            labels=self.config.prepared.labels,
            batch_size=micro,
            device=device,
            # On the CPU, larger batches are not faster, and the sum of the losses would be rounded differently.
            max_tokens=micro * longest if self.config.world.gpus else None,
        )

    def _restore_best(self, loop: TrainingLoop) -> None:
        """Load the weights of the best state, if early stopping selects another one than the last."""
        best = loop.run.best.step
        if best is None or best == loop.run.step:
            return
        with self.report.phase("restore", f"restoring the best state, step {best}"):
            loop.parts.checkpoints.load_weights(best, loop.engine)

    def _export(self, loop: TrainingLoop, base: Path) -> TrainResult:
        step, run = loop.run.step, loop.run
        with self.report.phase("export", "exporting the model"):
            self._record_reference(loop)
            exported: Exported | None = export(
                loop.module, config=self.config, base=base, store=self.store, scratch=self.runtime.scratch
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

    def _record_reference(self, loop: TrainingLoop) -> None:
        """Measure the model that is exported. The evaluate stage compares every exported folder with the result."""
        prepared = self.config.prepared
        sample = choose_sample(prepared, self._held_out)
        reference = measure(loop.engine, sample, task=prepared.task, device=loop.parts.device)
        if self.runtime.is_main:
            write_reference(self.config, self.store, reference)

    def _write_log(self, loop: TrainingLoop) -> None:
        """Write `training.json` on rank 0: the log since the first step of the run."""
        if not self.runtime.is_main:
            return
        document = {
            "log": loop.run.log,
            "attempt": self.config.attempt,
            "phase_seconds": self.report.progress.phase_seconds,
            "steps": loop.parts.plan.total_steps,
            "tokens": loop.run.tokens,
            "trained_parameters": _trained_parameters(loop.module),
            "attention": attention_of(loop.module),
            **({} if loop.phases is None else {"phases": loop.phases.summary(last_step=loop.run.step)}),
            # Warnings of this attempt, and those of earlier ones, which the checkpoint contains.
            "warnings": [
                text
                for text in dict.fromkeys(
                    [*self.report.progress.warnings, loop.loss_warning(), loop.run.overfitting.found]
                )
                if text
            ],
            "skipped_steps": loop.engine.skipped_steps,
        }
        progress, world = self.report.progress, self.config.world
        if progress.tokens_per_second:
            document["speed"] = {
                "tokens_per_second": progress.tokens_per_second,
                "processes": world.size,
                "on_gpus": world.gpus,
                "peak_memory_bytes": progress.peak_memory_bytes or 0,
            }
        self.store.put(self.config.layout.training_log, json.dumps(document).encode(), content_type="application/json")


@contextmanager
def _reported(loop: TrainingLoop) -> Iterator[None]:
    """Report how the attempt ends to the trackers, and wait for them for some seconds."""
    try:
        yield
    except FencedError:
        loop.trackers.abandon()
        raise
    except BaseException as error:
        is_stopped = isinstance(error, StoppedError)
        loop.trackers.end(TrackingOutcome.STOPPED if is_stopped else TrackingOutcome.FAILED)
        loop.trackers.join(quickly=True)  # the next attempt reports what is missing
        raise
    else:
        loop.trackers.join()


def _chunk_loss(model: Any) -> None:
    """Raises BadConfigError if the method has changed the output layer."""
    try:
        defer_logits(model)
    except ChunkingError as error:
        raise BadConfigError(
            f"spec.training.chunkedLoss must be false: {error}",
            advice="remove spec.training.chunkedLoss, or the output layer from the modules of spec.method",
        ) from error


def attention_of(model: Any) -> str:
    """Return the name that transformers has for how the model computes attention, such as `sdpa` or `eager`.

    transformers chooses sdpa, which uses the fastest kernel of torch for the device, where the class supports it.
    """
    return str(getattr(model.config, "_attn_implementation", None) or "of the model")


def _trained_parameters(module: nn.Module) -> int:
    """Return the number of trained parameters. Under ZeRO-3 a rank holds shards, with the whole size as `ds_numel`."""
    return sum(
        int(getattr(parameter, "ds_numel", parameter.numel()))
        for parameter in module.parameters()
        if parameter.requires_grad
    )


def trial_loop(
    config: PreparedConfig,
    store: ObjectStore,
    runtime: RuntimeEnv,
    base: Path,
    report: ProgressReporter,
    stop: StopFlag,
) -> TrainingLoop:
    """Return the loop of a training whose steps are not kept, for a process of its own. Collective.

    What the run has recorded before its first step, such as zeros of pruning, must be in storage.
    """
    attempt = _Attempt(config, store, runtime, report, stop)
    # Nothing is saved or restored.
    parts = attempt._parts(training_plan(config), cast(CheckpointManager, None), base)
    pruning = pruning_of_run(config, base, attempt._split("train"), parts, store)
    model, _ = attempt._pruned_model(base, pruning)
    return TrainingLoop(parts, attempt._built(model, config, parts, parts.plan.rate_factor))


def run(context: StageContext) -> TrainResult:
    """Run the stage on every rank."""
    assert context.stop is not None, "the train stage has `saves_state` in finetune_api.stages"
    return train(context.prepared_config(), context.store, context.runtime, context.report, context.stop)
