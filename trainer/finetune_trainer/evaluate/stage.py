"""The evaluate stage: evaluates base and tuned model, writes metrics, report and model cards, and promotes the model.

A single process.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_api.clock import rfc3339, utc_now
from finetune_api.progress import EvaluateResult, PromotionResult, shortened
from finetune_api.trainer_config import Prepared, PreparedConfig, TrainerConfig
from finetune_api.v1alpha1 import Metric, Task
from finetune_api.v1alpha1.status import MAX_HISTORY, MAX_PROMOTION_MESSAGE

from ..data.base_tokens import BaseTokens
from ..data.chat import TEMPLATE_DATE
from ..data.info import DatasetInfo, read_dataset_info
from ..data.prepare import open_regression_sets
from ..data.regression_sets import RegressionRows
from ..data.shards import TokenDataset
from ..errors import ObjectMissingError, TrainerError
from ..model.estimate import quantization_note
from ..model.fetch import prepared_model
from ..model.precision import gpu_has_bfloat16, usable_dtype
from ..model.tokenizer import load_tokenizer
from ..progress import ProgressReporter
from ..run_record import read_chosen_rate, versions
from ..runtime import RuntimeEnv
from ..stage_context import StageContext
from ..stage_log import log_evaluated
from ..store.client import ObjectStore
from ..tasks import TASKS, TrainingTask
from ..tasks.metrics import perplexity
from ..tracking.base import Outcome, RunResult
from ..tracking.reports import open_reports
from . import compare
from .candidates import Candidate, base_candidate, exported_candidates, random_head_reason
from .data_section import DataSection
from .earlier_runs import compare_with_earlier_runs
from .evaluator import ModelEvaluator, ModelResult, model_metrics
from .model_card import model_card
from .old_runs import delete_old_runs
from .promote import ModelPromotion
from .pruned import pruned_candidate, pruning_notes, pruning_result, with_pruning
from .quantized import export_notes, export_results, measured_exports
from .records import (
    Address,
    BaselineResult,
    Evaluation,
    Generation,
    PromotionDecision,
    PruningResult,
    RegressionResult,
)
from .reload import ReloadCheck
from .report import ReportInputs, render_report
from .significance import PairedTest, mcnemar_exact, sign_test
from .simple_baselines import MeasuredBaselines, TrainingSplit, baselines_of, measure_baselines
from .training_log import TrainingLog
from .vocabulary_rows import count_words

log = logging.getLogger("finetune")

_FEW = 100
"""Below this number of test examples, an interval is wider than about ten points."""


def evaluate(
    config: PreparedConfig, store: ObjectStore, runtime: RuntimeEnv, report: ProgressReporter
) -> EvaluateResult:
    """Reload every exported folder, compare base and fine-tuned model on the test split, write evaluation.json,
    report.html and the model cards, and promote the model if it meets the conditions of the spec.

    Raises ExportUnusableError for an exported folder that is not the trained model, ModelUnusableError for a model that
    cannot be loaded or returns NaN, and storage errors.
    """
    rate = read_chosen_rate(store, config)
    if rate is not None and config.spec.training.learning_rate is None:
        config = config.with_learning_rate(rate.learning_rate)
    prepared = config.prepared
    has_bfloat16 = not config.world.gpus or gpu_has_bfloat16()
    dtype = usable_dtype(prepared.dtype, config.spec.model.dtype, has_bfloat16=has_bfloat16)
    prepared = prepared.model_copy(update={"dtype": dtype})
    with report.phase("data", "reading the test split"):
        info = read_dataset_info(store, prepared.dataset_uri)
        test = _test_split(prepared, store, runtime)
    with report.phase("export", "exporting missing formats"):
        source = _export_missing(config, prepared, store, runtime)
    with report.phase("fetch", "fetching the models"):
        tuned, *others = exported_candidates(config, store, runtime)
        base = base_candidate(config, store, runtime) if config.spec.evaluation.base_model else None
        regression = _regression_rows(config, info, tuned, store, runtime)
        promotion = ModelPromotion.of_run(config, prepared, tuned, test, store, runtime)
    training = _training_log(config, store)
    examples = info.documents.get("test", prepared.counts.test)
    notes = (*_notes(config, prepared, base, examples), *(training.warnings if training else ()))
    check = ReloadCheck.of_run(config, prepared, store, runtime.cache)
    base_tokens = _base_tokens(config, store, runtime)
    evaluator = ModelEvaluator(
        config,
        prepared,
        test,
        report,
        check,
        info.template_date or TEMPLATE_DATE,
        base_tokens,
        sets={name: found.rows for name, found in regression.items()},
    )
    # Exported folders are checked first: if one is not the trained model, the other results are meaningless.
    after = evaluator(tuned, "tuned model")
    reloaded = [after.reloaded, *(evaluator.reload(candidate, "exported adapter") for candidate in others)]
    quantized, checks = measured_exports(config, store, runtime, source, evaluator)
    reloaded.extend(checks)
    before = evaluator(base, "base model") if base is not None and _needs_baseline(config, prepared) else None
    pruning = _pruning(config, store, report, evaluator, base, tuned)
    simple = _simple_baselines(config, prepared, info, test, store, runtime, report)
    notes = (*notes, *_vocabulary_notes(prepared, test, tuned, before, after))
    record = _record(config, prepared, tuned.address, before, after, (*notes, *simple.notes)).model_copy(
        update={
            "reloaded": tuple(entry for entry in reloaded if entry is not None),
            "baselines": _baseline_results(TASKS[prepared.task], simple, after),
            "regression_sets": _regression_results(TASKS[prepared.task], regression, before, after),
        }
    )
    record = with_pruning(record, pruning).model_copy(update={"quantized": quantized})
    record = record.model_copy(update={"notes": (*record.notes, *export_notes(record))})
    if promotion is not None:
        promotion, rival = promotion.measured(evaluator)
        record = _with_promotion(record, promotion, rival, after)
        if record.promotion is not None and record.promotion.warning:
            _warn(report, record.promotion.warning)
    with report.phase("report", "writing the report"):
        inputs = ReportInputs(
            record=record,
            config=config,
            training=training,
            data=DataSection.of(info),
            rate=rate,
            phase_seconds=report.progress.phase_seconds,
        )
        uri = _write(inputs, store)
    if promotion is not None and record.promotion is not None:
        with report.phase("promote", "copying the promoted model"):
            promotion.publish(record.promotion)
    _report_result(config, record, uri, training, store, runtime, partial(_warn, report))
    result = EvaluateResult(
        report_uri=uri,
        model_uri=tuned.address.uri,
        digest=tuned.address.digest,
        baseline=record.baseline.metrics if record.baseline else {},
        tuned=record.tuned.metrics if record.tuned else {},
        promoted=record.promoted.metrics if record.promoted else {},
        pruned=pruning.pruned.metrics if pruning and pruning.pruned else {},
        baselines={entry.name: entry.figures.metrics for entry in record.baselines},
        baseline_sets={found.name: found.baseline.metrics for found in record.regression_sets if found.baseline},
        tuned_sets={found.name: found.tuned.metrics for found in record.regression_sets},
        exports=export_results(record),
        promotion=_promotion_result(record.promotion),
        kept_runs=_delete_old_runs(config, store, report),
    )
    report.update(activity="done", flush=True)
    log_evaluated(prepared, result, (*notes, *pruning_notes(record), *export_notes(record)))
    return result


def _simple_baselines(
    config: PreparedConfig,
    prepared: Prepared,
    info: DatasetInfo,
    test: TokenDataset | None,
    store: ObjectStore,
    runtime: RuntimeEnv,
    report: ProgressReporter,
) -> MeasuredBaselines:
    names = baselines_of(config.spec.evaluation, prepared)
    if test is None or not names:
        return MeasuredBaselines()
    training_split = TrainingSplit.of(
        info,
        lambda rows: TokenDataset.open(store, prepared.dataset_uri, "train", runtime.cache, rows=rows),
    )
    return measure_baselines(names, prepared, training_split, test, report)


def _pruning(
    config: PreparedConfig,
    store: ObjectStore,
    report: ProgressReporter,
    evaluator: ModelEvaluator,
    base: Candidate | None,
    tuned: Candidate,
) -> PruningResult | None:
    """Evaluate the pruned base model, and measure the files. None without `spec.method.full.pruning`."""
    block = config.spec.method.pruning
    if block is None:
        return None
    figures = None
    if base is not None and evaluator.test is not None:
        figures = evaluator(pruned_candidate(base, block, config, store), "pruned base model").figures
    with report.phase("sizes", "measuring the weight files"):
        return pruning_result(config, block, store, base=base, tuned=tuned, figures=figures)


def _export_missing(config: PreparedConfig, prepared: Prepared, store: ObjectStore, runtime: RuntimeEnv) -> Path | None:
    """Export the formats that the spec requests and that no earlier evaluation of the run exported.

    Returns the folder of the complete model if a format has quantized weights, which are compared with it.
    """
    from ..model.export import complete_model, export_missing, export_quantized, is_exported

    formats, scratch = config.spec.output.formats, runtime.scratch
    has_quantized = any(artifact.is_quantized for artifact in formats)
    if not has_quantized and all(is_exported(config, store, artifact) for artifact in formats):
        return None

    base = prepared_model(config, store, runtime).path
    as_prepared = config.model_copy(update={"prepared": prepared})
    export_missing(as_prepared, store, base=base, scratch=scratch)
    if not has_quantized:
        return None
    source = complete_model(as_prepared, store, base=base, cache=runtime.cache, scratch=scratch)
    export_quantized(as_prepared, store, source=source, scratch=scratch)
    return source


def _test_split(prepared: Prepared, store: ObjectStore, runtime: RuntimeEnv) -> TokenDataset | None:
    return TokenDataset.open(store, prepared.dataset_uri, "test", runtime.cache) if prepared.counts.test else None


def _regression_rows(
    config: PreparedConfig, info: DatasetInfo, tuned: Candidate, store: ObjectStore, runtime: RuntimeEnv
) -> dict[str, RegressionRows]:
    """The exported tokenizer is that of the prepared rows."""
    if not config.spec.evaluation.regression_sets:
        return {}
    tokenizer = load_tokenizer(tuned.adapter or tuned.folder)
    return open_regression_sets(config.spec, info, tokenizer, store, runtime)


def _needs_baseline(config: TrainerConfig, prepared: Prepared) -> bool:
    """Whether there is anything to evaluate the base model on."""
    evaluation = config.spec.evaluation
    has_prompts = TASKS[prepared.task].support.answers_prompts and bool(evaluation.prompts)
    return prepared.counts.test > 0 or has_prompts or bool(evaluation.regression_sets)


def _notes(config: TrainerConfig, prepared: Prepared, base: Candidate | None, examples: int) -> tuple[str, ...]:
    """`examples`: number of examples of the test split; a text that was split into rows counts once."""
    found = [f"{warning[0].upper()}{warning[1:]}." for warning in prepared.warnings]
    if note := quantization_note(
        config.spec.model.quantization,
        dtype=prepared.dtype,
        parameters=prepared.parameters,
        quantized=prepared.quantized_parameters,
        quantized_bytes=prepared.quantized_bytes,
    ):
        found.append(f"{note}.")
        if base is not None and prepared.counts.test:
            found.append("The base model was evaluated with its quantized weights, from which training started.")
    if prepared.counts.test == 0:
        found.append("There was no test split (data.test.fraction is 0), so nothing was measured on held-out data.")
    elif examples < _FEW:
        found.append(f"The test split has {examples} examples only; consider the confidence intervals.")
    if not config.spec.evaluation.base_model:
        found.append("The base model was not evaluated (evaluation.baseModel is false).")
    elif base is not None and prepared.counts.test and (reason := random_head_reason(base, prepared)):
        found.append(
            f"The base model {reason}: its metrics are those of a randomly initialized head, "
            "with which training started, and close to chance."
        )
    return tuple(found)


def _base_tokens(config: PreparedConfig, store: ObjectStore, runtime: RuntimeEnv) -> BaseTokens | None:
    if config.prepared.vocabulary is None:
        return None
    from tokenizers import Tokenizer

    from ..model.vocabulary import BASE_TOKENIZER_FILE
    from ..new_tokens import read_new_tokens

    folder = prepared_model(config, store, runtime).path
    return BaseTokens(Tokenizer.from_file(str(folder / BASE_TOKENIZER_FILE)), read_new_tokens(folder).pieces)


def _vocabulary_notes(
    prepared: Prepared,
    test: TokenDataset | None,
    tuned: Candidate,
    before: ModelResult | None,
    after: ModelResult,
) -> tuple[str, ...]:
    """How the vocabulary was extended and, for language models, the perplexity per word."""
    vocabulary = prepared.vocabulary
    if vocabulary is None:
        return ()
    old, new = vocabulary.tokens_per_word
    note = (
        f"{vocabulary.added:,} tokens were added to the vocabulary: {old:.3g} tokens per word of the training split "
        f"before, {new:.3g} after."
    )
    if test is None or after.figures is None or prepared.task is not Task.CAUSAL_LM:
        return (note,)
    words = count_words(test, load_tokenizer(tuned.adapter or tuned.folder))
    models = {"the base model": before, "the tuned model": after}
    found = [
        f"{perplexity(result.figures.metrics[Metric.LOSS] * result.figures.tokens / words):.4g} for {name}"
        for name, result in models.items()
        if result is not None and result.figures is not None and words
    ]
    per_word = f" Perplexity per word of the test split: {', '.join(found)}." if found else ""
    return (
        f"{note} All losses and perplexities of the test split are per token of the base model's tokenizer, so that "
        f"they can be compared.{per_word}",
    )


def _record(
    config: TrainerConfig,
    prepared: Prepared,
    model: Address,
    before: ModelResult | None,
    after: ModelResult | None,
    notes: tuple[str, ...],
) -> Evaluation:
    baseline, tuned = compare.limit_classes(before.figures if before else None, after.figures if after else None)
    return Evaluation(
        job=config.job,
        run=config.run,
        time=rfc3339(utc_now(), "seconds"),
        task=prepared.task,
        format=prepared.format,
        base_model=Address(uri=config.spec.model.uri, digest=prepared.original_model_digest),
        model=model,
        dataset=Address(uri=prepared.dataset_uri, digest=prepared.dataset_digest),
        counts=prepared.counts,
        baseline=baseline,
        tuned=tuned,
        headline=TASKS[prepared.task].support.headline_for(prepared.labels),
        comparison=compare.compare(baseline, tuned) if tuned else (),
        paired_test=_paired_test(TASKS[prepared.task], before, after),
        majority_share=_majority_share(after),
        generations=_generations(config, before, after),
        notes=notes,
        versions=versions(),
    )


def _with_promotion(
    record: Evaluation, promotion: ModelPromotion, rival: ModelResult | None, after: ModelResult
) -> Evaluation:
    """Add the promoted model and the decision. Metrics of its classes are left out, which bounds the record."""
    figures = None if rival is None or rival.figures is None else rival.figures
    if figures is not None:
        record = record.model_copy(update={"promoted": figures.model_copy(update={"classification": None})})
    test = _paired_test(TASKS[record.task], rival, after)
    return record.model_copy(update={"promotion": promotion.registered(promotion.decide(record, test))})


def _promotion_result(decision: PromotionDecision | None) -> PromotionResult | None:
    if decision is None:
        return None
    return PromotionResult(
        outcome=decision.outcome,
        message=shortened(decision.message, MAX_PROMOTION_MESSAGE),
        uri=decision.uri,
        previous=decision.previous,
        time=decision.time,
    )


def _baseline_results(task: TrainingTask, simple: MeasuredBaselines, after: ModelResult) -> tuple[BaselineResult, ...]:
    """The simple baselines, each compared with the tuned model on the same examples."""
    return tuple(
        BaselineResult(
            name=found.name,
            figures=model_metrics(found.measured, found.seconds).model_copy(update={"classification": None}),
            paired_test=_test_of_scores(task, found.measured.scores, after.scores),
            notes=found.notes,
        )
        for found in simple.found
    )


def _regression_results(
    task: TrainingTask, sets: Mapping[str, RegressionRows], before: ModelResult | None, after: ModelResult
) -> tuple[RegressionResult, ...]:
    """The tuned model on each set, compared with the base model on the same examples."""
    results = []
    for name, rows in sets.items():
        tuned, base = after.sets[name], None if before is None else before.sets[name]
        results.append(
            RegressionResult(
                name=name,
                baseline=None if base is None else base.figures.model_copy(update={"classification": None}),
                tuned=tuned.figures.model_copy(update={"classification": None}),
                paired_test=None if base is None else _test_of_scores(task, base.scores, tuned.scores),
                dropped=sum(rows.dropped.values()),
            )
        )
    return tuple(results)


def _paired_test(task: TrainingTask, before: ModelResult | None, after: ModelResult | None) -> PairedTest | None:
    if before is None or after is None or after.figures is None:
        return None
    return _test_of_scores(task, before.scores, after.scores)


def _test_of_scores(task: TrainingTask, before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> PairedTest:
    if task.scores_are_answers:
        return mcnemar_exact(before > 0, after > 0)
    return sign_test(before, after)


def _majority_share(after: ModelResult | None) -> float | None:
    figures = after.figures.classification if after and after.figures else None
    return max(row.support for row in figures.per_class) / figures.count if figures else None


def _generations(
    config: TrainerConfig, before: ModelResult | None, after: ModelResult | None
) -> tuple[Generation, ...]:
    if after is None or not after.answers:
        return ()
    earlier = before.answers if before else (None,) * len(after.answers)
    return tuple(
        Generation(prompt=prompt, before=first, after=second)
        for prompt, first, second in zip(config.spec.evaluation.prompts, earlier, after.answers, strict=True)
    )


def _training_log(config: TrainerConfig, store: ObjectStore) -> TrainingLog | None:
    try:
        return TrainingLog.model_validate(store.get_json(config.layout.training_log))
    except ObjectMissingError:
        return None


def _write(inputs: ReportInputs, store: ObjectStore) -> str:
    """Store all documents, the report last. Returns the address of the report."""
    config, record = inputs.config, inputs.record
    store.put(
        config.layout.evaluation,
        record.model_dump_json(indent=1).encode(),
        content_type="application/json",
    )
    for artifact in config.spec.output.formats:
        card = model_card(record, config, inputs.data, artifact)
        address = f"{config.layout.artifact(artifact)}/README.md"
        store.put(address, card.encode(), content_type="text/markdown; charset=utf-8")
    inputs = dataclasses.replace(inputs, earlier=compare_with_earlier_runs(config, store))
    uri = config.layout.report
    store.put(uri, render_report(inputs).encode(), content_type="text/html; charset=utf-8")
    return uri


def _report_result(
    config: PreparedConfig,
    record: Evaluation,
    report_uri: str,
    training: TrainingLog | None,
    store: ObjectStore,
    runtime: RuntimeEnv,
    warn: Callable[[str], None],
) -> None:
    """Report the result to the trackers, and the entries of the training log that they do not have."""
    log = training.log if training else ()
    reports = open_reports(config, store, runtime, log, warn, for_results=True)
    models = {"test": record.tuned, "base": record.baseline}
    models |= {f"regression/{found.name}": found.tuned for found in record.regression_sets}
    metrics = {
        f"{name}/{metric.key}": value
        for name, model in models.items()
        for metric, value in (model.metrics if model else {}).items()
    }
    tags = {
        "finetune.model_uri": record.model.uri,
        "finetune.model_digest": record.model.digest,
        "finetune.report_uri": report_uri,
        **({"finetune.promotion": str(record.promotion.outcome)} if record.promotion else {}),
    }
    last = max((int(entry["step"]) for entry in log if "step" in entry), default=0)
    reports.end(Outcome.EVALUATED, RunResult(last, metrics, tags))
    reports.join()


def _warn(report: ProgressReporter, message: str) -> None:
    log.warning(message)
    report.warn(message)


def _delete_old_runs(config: TrainerConfig, store: ObjectStore, report: ProgressReporter) -> tuple[int, ...]:
    """Delete the files of old runs. A failure is a warning: the model of this run is complete."""
    if config.spec.output.keep_runs is None:
        return ()
    with report.phase("delete", "deleting old runs"):
        try:
            return delete_old_runs(config, store, report.warn)[-MAX_HISTORY - 1 :]
        except TrainerError as error:
            report.warn(f"old runs could not be deleted (spec.output.keepRuns): {error}")
            return ()


def run(context: StageContext) -> EvaluateResult:
    """Run the stage."""
    return evaluate(context.prepared_config(), context.store, context.runtime, context.report)
