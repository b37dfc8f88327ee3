"""A run of a topic classifier and one of a chat model, as input of the evaluate stage."""

import math
import random
from collections.abc import Callable

import numpy as np
import pytest

from factories import make_prepared
from finetune_api.constants import Stage
from finetune_api.trainer_config import BatchPlan, JobRef, SplitCounts, StorageSettings, TrainerConfig, World
from finetune_api.v1alpha1 import TASK_SUPPORT, AttemptStatus, DataFormat, Metric, Outcome, SimpleBaseline, Spec, Task
from finetune_trainer.evaluate.compare import compare
from finetune_trainer.evaluate.data_section import DataSection
from finetune_trainer.evaluate.records import Address, BaselineResult, Evaluation, Generation, ModelMetrics
from finetune_trainer.evaluate.report import ReportInputs
from finetune_trainer.evaluate.significance import Interval, PairedTest, mcnemar_exact, sign_test, wilson_interval
from finetune_trainer.evaluate.training_log import TrainingLog
from finetune_trainer.tasks.metrics import classification_metrics, perplexity

TOPICS = ("ai", "botprofile", "computers", "conversations", "emotion", "food", "gossip", "greetings", "health")
TOPICS += ("history", "humor", "literature", "money", "movies", "politics", "psychology", "science", "sports", "trivia")
STEPS = 240


def clock(seconds: float) -> str:
    minute, second = divmod(round(seconds), 60)
    return f"2026-03-01T12:{minute:02d}:{second:02d}Z"


def attempts() -> tuple[AttemptStatus, ...]:
    return (
        AttemptStatus(
            stage=Stage.TRAIN,
            number=1,
            job_name="topics-r1-train-a1",
            start_time=clock(0),
            first_step_time=clock(21),
            end_time=clock(130),
            last_step=96,
            outcome=Outcome.RETRYABLE,
            reason="OutOfMemory",
        ),
        AttemptStatus(
            stage=Stage.TRAIN,
            number=2,
            job_name="topics-r1-train-a2",
            start_time=clock(133),
            end_time=clock(150),
            outcome=Outcome.RETRYABLE,
            reason="Signal9",
        ),
        AttemptStatus(
            stage=Stage.TRAIN,
            number=3,
            job_name="topics-r1-train-a3",
            start_time=clock(152),
            first_step_time=clock(166),
            end_time=clock(340),
            resumed_from_step=80,
            last_step=STEPS,
            outcome=Outcome.SUCCEEDED,
        ),
    )


def training_log(task: Task) -> TrainingLog:
    noise = random.Random(7)
    log = []
    for step in range(2, STEPS + 1, 2):
        loss = 2.9 * math.exp(-step / 70) + 0.25 + noise.gauss(0, 0.08)
        rate = 5e-5 * min(step / 24, (STEPS - step) / (STEPS - 24))
        log.append({"step": step, "loss": loss, "learning_rate": rate, "grad_norm": 1.5 + noise.random()})
        if step % 40 == 0:
            loss = 2.8 * math.exp(-step / 80) + 0.35
            entry = {"step": step, "eval_loss": loss}
            if task is Task.SEQUENCE_CLASSIFICATION:
                share = 1 - math.exp(-step / 60)
                entry |= {"eval_accuracy": share, "eval_macro_f1": share - 0.04}
            else:
                entry["eval_perplexity"] = perplexity(loss)
            log.append(entry)
    seconds = {"import": 0.3, "claim": 0.1, "model": 2.1, "engine": 3.2, "restore": 1.4, "steps": 141.0}
    seconds |= {"evaluate": 12.5, "save": 6.1, "export": 2.2}
    return TrainingLog(log=tuple(log), attempt=3, phase_seconds=seconds, steps=STEPS, tokens=412_345)


def trainer_config(task: Task, *, labels: tuple[str, ...] = (), **spec: object) -> TrainerConfig:
    classification = task is Task.SEQUENCE_CLASSIFICATION
    document = {
        "model": {"uri": "hf://sentence-transformers/all-MiniLM-L6-v2@main"},
        "data": {"train": [{"uri": "s3://corp/topics/2026-*.jsonl"}]},
        "training": {"epochs": 3, "learningRate": 5e-5},
        "workers": {"nodes": 2, "env": [{"name": "HF_TOKEN", "value": "hf_secret"}]},
        "output": {"uri": "s3://corp/models/topics"},
        **spec,
    }
    return TrainerConfig(
        job=JobRef(namespace="team-a", name="topics", uid="7b0e"),
        run=1,
        stage=Stage.EVALUATE,
        spec=Spec.model_validate(document),
        storage=StorageSettings(),
        world=World(),
        batch=BatchPlan(global_size=16, micro_size=8, accumulation=1),
        prepared=make_prepared(
            dataset_uri="s3://corp/models/topics/datasets/0f3c9d1b2a4e",
            dataset_digest="0f3c9d1b2a4e8877",
            model_digest="c1a5f0d23b17aa02",
            format=DataFormat.CLASSIFICATION if classification else DataFormat.CHAT,
            task=task,
            counts=SplitCounts(train=1620, validation=202, test=203),
            labels=labels,
            parameters=22_713_216,
        ),
        attempts=attempts(),
    )


def classifier_figures(labels: tuple[str, ...]) -> tuple[ModelMetrics, ModelMetrics, PairedTest]:
    generator = np.random.default_rng(3)
    targets = np.repeat(np.arange(len(labels)), 11)
    base = generator.integers(0, len(labels), targets.size)
    wrong = generator.random(targets.size) < 0.03 + 0.5 * (targets / len(labels)) ** 3
    tuned = np.where(wrong, (targets + 2) % len(labels), targets)
    figures = []
    for predictions, loss in ((base, 3.01), (tuned, 0.412)):
        metrics = classification_metrics(predictions, targets, labels)
        figures.append(
            ModelMetrics(
                metrics={Metric.LOSS: loss} | metrics.figures,
                intervals={Metric.ACCURACY: wilson_interval(int((predictions == targets).sum()), targets.size)},
                classification=metrics,
                examples=targets.size,
                seconds=3.2,
            )
        )
    test = mcnemar_exact(base == targets, tuned == targets)
    return figures[0], figures[1], test


def language_figures() -> tuple[ModelMetrics, ModelMetrics, PairedTest]:
    generator = np.random.default_rng(3)
    before = generator.normal(3.2, 0.4, 120)
    after = before - np.abs(generator.normal(0.9, 0.4, 120))
    figures = [
        ModelMetrics(
            metrics={Metric.LOSS: float(losses.mean()), Metric.PERPLEXITY: perplexity(float(losses.mean()))},
            intervals={
                Metric.PERPLEXITY: Interval(
                    low=perplexity(float(losses.mean()) - 0.1), high=perplexity(float(losses.mean()) + 0.1)
                )
            },
            examples=120,
            tokens=4_310,
            seconds=8.1,
        )
        for losses in (before, after)
    ]
    return figures[0], figures[1], sign_test(before, after)


@pytest.fixture(scope="session")
def linear_baseline() -> Callable[[float, int, int, float], BaselineResult]:
    """A factory of results of the linear baseline of the topic classifier."""
    return _linear_baseline


def _linear_baseline(accuracy: float, better: int, worse: int, p_value: float) -> BaselineResult:
    return BaselineResult(
        name=SimpleBaseline.TFIDF_LOGISTIC_REGRESSION,
        figures=ModelMetrics(
            metrics={Metric.LOSS: 0.9, Metric.ACCURACY: accuracy, Metric.MACRO_F1: accuracy},
            intervals={Metric.ACCURACY: Interval(low=accuracy - 0.05, high=accuracy + 0.05)},
            examples=209,
            seconds=0.5,
        ),
        paired_test=PairedTest(name="McNemar, exact", better=better, worse=worse, same=0, p_value=p_value),
        notes=("It is fitted to 50,000 of the 90,000 training rows.",),
    )


def data_section() -> DataSection:
    """Rows of a simple corpus: most are short."""
    lengths = tuple(round(1600 * math.exp(-((math.log(5 + 10 * index) - 3) ** 2)) / 4.2) for index in range(20))
    return DataSection(
        dropped=(("empty text", 12), ("text longer than 65,536 characters", 1)),
        truncated=7,
        max_length=256,
        tokens=52_310,
        dropped_tokens=1_046,
        edges=tuple(10 * index for index in range(21)),
        histogram=lengths,
    )


@pytest.fixture(scope="session")
def report_inputs() -> Callable[..., ReportInputs]:
    """A factory of report inputs with individual changes."""

    def make(
        task: Task = Task.SEQUENCE_CLASSIFICATION,
        *,
        labels: tuple[str, ...] = TOPICS,
        generations: tuple[Generation, ...] = (),
        baseline: bool = True,
        tuned: bool = True,
        baselines: tuple[BaselineResult, ...] = (),
        with_log: bool = True,
        notes: tuple[str, ...] = (),
        spec: dict[str, object] | None = None,
    ) -> ReportInputs:
        classification = task is Task.SEQUENCE_CLASSIFICATION
        labels = labels if classification else ()
        config = trainer_config(task, labels=labels, **(spec or {}))
        before, after, test = classifier_figures(labels) if classification else language_figures()
        prepared = config.prepared
        assert prepared is not None
        record = Evaluation(
            job=config.job,
            run=1,
            time="2026-03-01T12:06:10Z",
            task=task,
            format=prepared.format,
            base_model=Address(uri=config.spec.model.uri, digest=prepared.model_digest),
            model=Address(uri=config.model_uri, digest="9d8f7a6b5c4d3e2f"),
            dataset=Address(uri=prepared.dataset_uri, digest=prepared.dataset_digest),
            counts=prepared.counts,
            baseline=before if baseline and tuned else None,
            tuned=after if tuned else None,
            headline=TASK_SUPPORT[task].headline_for(labels),
            comparison=compare(before if baseline else None, after) if tuned else (),
            paired_test=test if baseline and tuned else None,
            baselines=baselines,
            majority_share=1 / len(labels) if classification and tuned else None,
            generations=generations,
            notes=notes,
            versions={"finetune-operator": "0.1.0", "torch": "2.15.0", "transformers": "5.23.0"},
        )
        return ReportInputs(
            record=record,
            config=config,
            training=training_log(task) if with_log else None,
            data=data_section(),
            phase_seconds={"import": 4.1, "model": 3.0, "base model": 3.4, "tuned model": 3.2, "report": 0.9},
        )

    return make
