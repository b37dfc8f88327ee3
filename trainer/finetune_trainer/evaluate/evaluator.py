"""Evaluates a model on the test split and on the prompts. Imports torch."""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_api.trainer_config import Prepared, TrainerConfig
from finetune_api.v1alpha1 import Metric

from ..data.base_tokens import BaseTokens
from ..data.collate import Collator
from ..data.prepare import make_formatter
from ..data.prompts import format_prompts
from ..data.shards import TokenDataset
from ..errors import ModelUnusableError
from ..methods import METHODS
from ..model.tokenizer import load_tokenizer
from ..progress import ProgressReporter
from ..tasks import TASKS
from ..tasks.base import Measured, TestSplit
from . import generate
from .candidates import Candidate, open_model
from .records import ModelMetrics, Reloaded
from .reload import ReloadCheck
from .significance import Interval, bootstrap_mean, wilson_interval
from .vocabulary_rows import RowsOfPieces, RowsWithNewTokens


@dataclass(frozen=True)
class SetResult:
    """Results of one model on one regression set."""

    figures: ModelMetrics
    scores: npt.NDArray[np.float64]
    """As in ModelResult."""


@dataclass(frozen=True)
class ModelResult:
    """Results of one model."""

    figures: ModelMetrics | None
    """None: there is no test split."""
    scores: npt.NDArray[np.float64]
    """For the paired test, shape (examples,): 1 for a correct answer of a classifier; loss per token for each example
    of a language model (without examples that have no label tokens)."""
    answers: tuple[str, ...]
    reloaded: Reloaded | None = None
    """Only for exported folders: the comparison with the trained model."""
    sets: Mapping[str, SetResult] = field(default_factory=dict)
    """By name of the regression set."""


@dataclass(frozen=True)
class ModelEvaluator:
    """Evaluates models one after another."""

    config: TrainerConfig
    prepared: Prepared
    test: TokenDataset | None
    report: ProgressReporter
    check: ReloadCheck
    template_date: date
    """The date that chat templates got as the current date when the dataset was made."""
    base_tokens: BaseTokens | None = None
    """With `spec.model.vocabulary`: converts rows to the tokens of the base model."""
    sets: Mapping[str, TokenDataset] = field(default_factory=dict)
    """Rows of the regression sets by name."""

    def __call__(self, candidate: Candidate, name: str) -> ModelResult:
        """Load the model, check it if this run exported it, evaluate it on test split and prompts, and release it.

        Only base model and trained model of this run are evaluated on the regression sets and asked the prompts.
        """
        model, tokenizer, reloaded = self._open(candidate, name)
        figures, scores = None, np.zeros(0)
        if self.test is not None:
            with self.report.phase(name, f"evaluating the {name}"):
                figures, scores = self._measure(model, tokenizer, self.test, candidate, name)
        of_sets = {}
        for title, rows in self.sets.items() if candidate.is_own else ():
            with self.report.phase(f"{name}, regression sets", f"evaluating the {name} on {title}"):
                of_sets[title] = SetResult(*self._measure(model, tokenizer, rows, candidate, name, title))
        answers = self._answers(model, tokenizer, candidate, name) if self._prompts and candidate.is_own else ()
        del model
        gc.collect()
        return ModelResult(figures, scores, answers, reloaded, of_sets)

    def reload(self, candidate: Candidate, name: str) -> Reloaded:
        """Load and check an exported folder that is not evaluated, and release it."""
        _, _, reloaded = self._open(candidate, name)
        assert reloaded is not None, "only exported folders are checked"
        gc.collect()
        return reloaded

    def export(self, candidate: Candidate, name: str) -> ModelResult:
        """Load an export with quantized weights, compare it with the trained model, evaluate it on the test split, and
        release it."""
        assert candidate.quantized is not None
        assert candidate.source is not None
        uri, quantized = candidate.address.uri, candidate.quantized
        with self.report.phase("model", f"loading the {name}"):
            model = open_model(candidate, self.config, self.prepared)
            tokenizer = load_tokenizer(candidate.source)
        with self.report.phase("reload", f"comparing the {name} with the trained model"):
            quantized.check(model, candidate.source, candidate.folder, uri, self.check.texts(tokenizer))
            reloaded = self.check(model, uri, tokenizer.pad_token_id, accepted=quantized.accepted)
        figures = None
        if self.test is not None:
            with self.report.phase(name, f"evaluating the {name}"):
                figures, _ = self._measure(model, tokenizer, self.test, candidate, name)
        del model
        gc.collect()
        return ModelResult(figures, np.zeros(0), (), reloaded)

    def _open(self, candidate: Candidate, name: str) -> tuple[Any, Any, Reloaded | None]:
        with self.report.phase("model", f"loading the {name}"):
            model = open_model(candidate, self.config, self.prepared)
            tokenizer = load_tokenizer(candidate.tokenizer)
        if not candidate.exported or not candidate.is_own:
            return model, tokenizer, None
        with self.report.phase("reload", f"comparing the {name} with the trained model"):
            return model, tokenizer, self.check(model, candidate.address.uri, tokenizer.pad_token_id)

    @property
    def _prompts(self) -> Sequence[str]:
        return self.config.spec.evaluation.prompts if TASKS[self.prepared.task].support.answers_prompts else ()

    def _measure(
        self, model: Any, tokenizer: Any, test: TokenDataset, candidate: Candidate, name: str, regression_set: str = ""
    ) -> tuple[ModelMetrics, npt.NDArray[np.float64]]:
        collate = Collator(tokenizer.pad_token_id, self.prepared.task)
        started = time.perf_counter()
        rows = self._rows_for(candidate, test)
        on_set = f" on {regression_set}" if regression_set else ""
        progress = self._progress(f"evaluating the {name}{on_set}", len(rows))
        found = TASKS[self.prepared.task].measure(model, rows, collate, self.prepared.labels, progress)
        if not all(math.isfinite(value) for value in found.metrics.values()):
            where = f"the regression set {regression_set}" if regression_set else "the test split"
            raise ModelUnusableError(
                f"{candidate.address.uri} has a loss on {where} that is not a number",
                advice="with a 16-bit type, try spec.model.dtype: Float32; otherwise check the loss curve in "
                "training.json",
            )
        return model_metrics(found, time.perf_counter() - started), found.scores

    def _rows_for(self, candidate: Candidate, test: TokenDataset) -> TestSplit:
        """The test split with the task's targets, in the tokens of a model."""
        if self.base_tokens is None or self.prepared.vocabulary is None:
            return TASKS[self.prepared.task].held_out_rows(test)
        if candidate.has_new_tokens:
            return RowsWithNewTokens(test, self.base_tokens)
        task = TASKS[self.prepared.task]
        return RowsOfPieces(test, self.base_tokens, task, self.prepared.vocabulary.positions)

    def _formatted_prompts(self, tokenizer: Any, candidate: Candidate) -> list[str]:
        """The prompts, formatted as the prepare stage formatted the training data."""
        formatter = make_formatter(
            self.prepared.format, self.config.spec.data, tokenizer, candidate.address.uri, self.template_date
        )
        return format_prompts(self._prompts, formatter, candidate.address.uri)

    def _answers(self, model: Any, tokenizer: Any, candidate: Candidate, name: str) -> tuple[str, ...]:
        activity = f"answering prompts with the {name}"
        method = self.config.spec.method
        with self.report.phase(f"{name}, prompts", activity):
            found = generate.answers(
                model,
                tokenizer,
                self._formatted_prompts(tokenizer, candidate),
                max_new_tokens=self.config.spec.evaluation.max_new_tokens,
                seed=self.config.spec.training.seed,
                report=self._progress(activity, len(self._prompts)),
                virtual_tokens=METHODS[method.name].virtual_tokens(method.block) if candidate.adapter else 0,
            )
        return tuple(found)

    def _progress(self, activity: str, total: int) -> Callable[[int], None]:
        return lambda done: self.report.update(activity=f"{activity}: {done} of {total}")


def model_metrics(found: Measured, seconds: float) -> ModelMetrics:
    """The metrics with their intervals."""
    return ModelMetrics(
        metrics=found.metrics,
        intervals=_intervals(found),
        classification=found.classification,
        examples=found.examples,
        tokens=found.tokens,
        seconds=seconds,
    )


def _intervals(found: Measured) -> dict[Metric, Interval]:
    """95 % intervals of the metrics for which the task returns counts."""
    intervals = {metric: wilson_interval(*counts) for metric, counts in found.shares.items()}
    for mean in found.means:
        spread = bootstrap_mean(mean.sums, mean.weights, seed=0)
        for metric, of_mean in mean.metrics.items():
            ends = {"low": of_mean(spread.low), "high": of_mean(spread.high)}
            intervals[metric] = spread.model_copy(update=ends)
    return intervals
