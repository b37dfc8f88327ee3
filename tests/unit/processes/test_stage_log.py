"""Summaries that the stages log."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from factories import make_job, make_prepared
from finetune_api.comparison import OVERFLOW
from finetune_api.constants import Stage
from finetune_api.progress import EvaluateResult, TrainResult
from finetune_api.trainer_config import SplitCounts, StorageSettings, TrainerConfig
from finetune_api.v1alpha1 import Metric
from finetune_api.validation import parse_job
from finetune_operator.policy.world import stage_config
from finetune_trainer.data.info import RuleInfo, ShownRecord
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.stage_log import log_evaluated, log_prepared, log_train_started, log_trained

PREPARED = make_prepared(
    counts=SplitCounts(train=48, test=1),
    labels=("bad", "good"),
    parameters=22_700_000,
    notes=("dropped 2 records: empty text 2",),
)


@dataclass(frozen=True)
class File:
    split: str = "train"
    rows: int = 25


@dataclass(frozen=True)
class Data:
    sources: tuple[File, ...] = (File(), File())
    lengths: dict[str, dict[int, int]] = field(default_factory=lambda: {"train": {10: 40, 100: 8}, "test": {7: 1}})
    rules: tuple[RuleInfo, ...] = ()


@dataclass(frozen=True)
class Plan:
    steps_per_epoch: int = 3
    total_steps: int = 9


def config(stage: Stage) -> TrainerConfig:
    return stage_config(parse_job(make_job(workers={"nodes": 2})), 1, stage, 1, StorageSettings())


@pytest.fixture
def output(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "finetune")
    return caplog


def test_prepare_logs_model_files_rows_tokens_and_dropped_records(output: pytest.LogCaptureFixture) -> None:
    log_prepared(config(Stage.PREPARE), PREPARED, Data())
    assert output.messages == [
        "base model s3://bucket/models/base: 22,700,000 parameters, SequenceClassification, Float32, ZeRO stage 2",
        "read 2 files: 50 records",
        "train split: 48 rows, 1,200 tokens",
        "test split: 1 row, 7 tokens",
        "2 labels",
        "dropped 2 records: empty text 2",
        "dataset written to s3://bucket/out/datasets/d",
    ]


def test_prepare_logs_the_examples_of_each_rule(output: pytest.LogCaptureFixture) -> None:
    examples = (
        ShownRecord(place="a.jsonl line 3", text="5 characters: short"),
        ShownRecord(place="a.jsonl line 4", text=""),
    )
    log_prepared(config(Stage.PREPARE), PREPARED, Data(rules=(RuleInfo(rule="length", dropped=2, examples=examples),)))
    start = output.messages.index("length: changed 0 records, dropped 2 records")
    assert output.messages[start + 1 : start + 3] == ["  a.jsonl line 3: 5 characters: short", "  a.jsonl line 4"]


def test_prepare_logs_the_reasons_of_a_rule_that_has_several(output: pytest.LogCaptureFixture) -> None:
    rule = RuleInfo(rule="languages", dropped=1_021, reasons={"fr": 1_000, "de": 21})
    log_prepared(config(Stage.PREPARE), PREPARED, Data(rules=(rule,)))
    assert "languages: changed 0 records, dropped 1,021 records (fr 1,000, de 21)" in output.messages


def test_train_logs_its_length_and_its_result(output: pytest.LogCaptureFixture) -> None:
    log_train_started(config(Stage.TRAIN), Plan())
    log_trained(TrainResult(model_uri="s3://b/model", digest="d", final_step=6, best_step=4, stopped_early=True))
    assert output.messages == [
        "attempt 1: 9 steps in total, 3 per epoch, on 2 processes; global batch 16 = 2 x micro-batch 8 x 1 accumulated",
        "training stopped early at step 6, the best state is that of step 4",
        "model exported to s3://b/model",
    ]


def test_evaluate_logs_its_metrics_and_the_address_of_the_report(output: pytest.LogCaptureFixture) -> None:
    result = EvaluateResult(
        report_uri="s3://b/report.html",
        baseline={Metric.ACCURACY: 0.125, Metric.PERPLEXITY: 20.0},
        tuned={Metric.ACCURACY: 0.875, Metric.LOSS: 0.25, Metric.PERPLEXITY: OVERFLOW},
    )
    log_evaluated(PREPARED, result, ("The test split has 1 example only.",))
    assert output.messages == [
        "test split of 1 row: Accuracy 87.5 %, base model 12.5 %",
        "test split of 1 row: Loss 0.250",
        "test split of 1 row: Perplexity overflow (> 1e308), base model 20.00",
        "The test split has 1 example only.",
        "report written to s3://b/report.html",
    ]


def test_rank_zero_logs_each_activity_once(output: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    for folder in (tmp_path, None):
        report = ProgressReporter(folder, stage=Stage.TRAIN)
        for activity in ("loading model and data", "saving a checkpoint", "saving a checkpoint"):
            with report.phase("x", activity):
                pass
    assert output.messages == ["loading model and data", "saving a checkpoint"]
