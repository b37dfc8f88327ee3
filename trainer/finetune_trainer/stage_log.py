"""Log lines that summarize each stage, from its result."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from finetune_api.comparison import metric_text
from finetune_api.progress import EvaluateResult, TrainResult
from finetune_api.trainer_config import Prepared, TrainerConfig
from finetune_api.v1alpha1 import BASELINE_SUPPORT

log = logging.getLogger("finetune")

SPLITS = ("train", "validation", "test")


class _Source(Protocol):
    @property
    def split(self) -> str: ...
    @property
    def rows(self) -> int: ...


class _Shown(Protocol):
    @property
    def place(self) -> str: ...
    @property
    def text(self) -> str: ...


class _Rule(Protocol):
    @property
    def rule(self) -> str: ...
    @property
    def changed(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def reasons_text(self) -> str: ...
    @property
    def added(self) -> int: ...
    @property
    def examples(self) -> Sequence[_Shown]: ...


class _DataSet(Protocol):
    """The part of `data.info.DatasetInfo` that is logged."""

    @property
    def sources(self) -> tuple[_Source, ...]: ...
    @property
    def lengths(self) -> Mapping[str, Mapping[int, int]]: ...
    @property
    def rules(self) -> Sequence[_Rule]: ...


class _Plan(Protocol):
    """The part of `train.plan.TrainingPlan` that is logged."""

    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def total_steps(self) -> int: ...


def log_prepared(config: TrainerConfig, prepared: Prepared, info: _DataSet) -> None:
    """Log files, rows, tokens, dropped records and chosen settings."""
    for line in _prepared(config, prepared, info):
        log.info("%s", line)


def _prepared(config: TrainerConfig, prepared: Prepared, info: _DataSet) -> Iterator[str]:
    yield (
        f"base model {config.spec.model.uri}: {prepared.parameters:,} parameters, {prepared.task}, {prepared.dtype}, "
        f"ZeRO stage {prepared.zero_stage}"
    )
    records = sum(source.rows for source in info.sources)
    yield f"read {_counted(len(info.sources), 'file')}: {_counted(records, 'record')}"
    for split in SPLITS:
        rows = getattr(prepared.counts, split)
        tokens = sum(length * count for length, count in info.lengths.get(split, {}).items())
        if rows:
            yield f"{split} split: {_counted(rows, 'row')}, {_counted(tokens, 'token')}"
    if prepared.labels:
        yield f"{len(prepared.labels)} labels"
    for rule in info.rules:
        added = f", added {_counted(rule.added, 'copy', 'copies')}" if rule.added else ""
        changed, dropped = (_counted(number, "record") for number in (rule.changed, rule.dropped))
        reasons = f" {rule.reasons_text}" if rule.reasons_text else ""
        yield f"{rule.rule}: changed {changed}, dropped {dropped}{reasons}{added}"
        yield from (f"  {shown.place}: {shown.text}" if shown.text else f"  {shown.place}" for shown in rule.examples)
    yield from prepared.notes
    yield f"dataset {'reused from' if prepared.reused else 'written to'} {prepared.dataset_uri}"


def log_train_started(config: TrainerConfig, plan: _Plan) -> None:
    """Log the length of the training and its batch sizes."""
    world, batch = config.world, config.batch
    log.info(
        "attempt %d: %s in total, %d per epoch, on %s; global batch %d = %s x micro-batch %d x %d accumulated",
        config.attempt,
        _counted(plan.total_steps, "step"),
        plan.steps_per_epoch,
        _counted(world.size, "process", "processes"),
        batch.global_size,
        world.size,
        batch.micro_size,
        batch.accumulation,
    )


def log_parameters(*, trained: int, total: int, attention: str) -> None:
    """Log how many parameters of the model are trained, and how it computes attention."""
    log.info("%s of %s parameters are trained, %s are frozen", f"{trained:,}", f"{total:,}", f"{total - trained:,}")
    log.info("attention is computed with %s", attention)


def log_trained(result: TrainResult) -> None:
    """Log the last step of the training and the exported model."""
    ended = "stopped early" if result.stopped_early else "finished"
    best = "" if result.best_step is None else f", the best state is that of step {result.best_step}"
    log.info("training %s at step %d%s", ended, result.final_step, best)
    log.info("model exported to %s", result.model_uri)


def log_evaluated(prepared: Prepared, result: EvaluateResult, notes: tuple[str, ...]) -> None:
    """Log the metrics of the test split and the address of the report."""
    for metric, value in result.tuned.items():
        before = result.baseline.get(metric)
        compared = "" if before is None else f", base model {metric_text(metric, before)}"
        counted = _counted(prepared.counts.test, "row")
        promoted = result.promoted.get(metric)
        compared += "" if promoted is None else f", promoted model {metric_text(metric, promoted)}"
        for name, figures in result.baselines.items():
            if metric in figures:
                compared += f", {BASELINE_SUPPORT[name].name} {metric_text(metric, figures[metric])}"
        log.info("test split of %s: %s %s%s", counted, metric, metric_text(metric, value), compared)
    for regression_set, found in result.tuned_sets.items():
        for metric, value in found.items():
            before = result.baseline_sets.get(regression_set, {}).get(metric)
            compared = "" if before is None else f", base model {metric_text(metric, before)}"
            log.info("regression set %s: %s %s%s", regression_set, metric, metric_text(metric, value), compared)
    for note in notes:
        log.info("%s", note)
    log.info("report written to %s", result.report_uri)
    if result.promotion is not None:
        log.info("promotion %s: %s", result.promotion.outcome, result.promotion.message)


def _counted(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
