"""Compares the model with the promoted one, decides whether it is promoted, and promotes it."""

import logging
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finetune_api.clock import rfc3339, utc_now
from finetune_api.run_layout import PromotionLayout
from finetune_api.trainer_config import Prepared, PreparedConfig
from finetune_api.v1alpha1 import Metric, Promotion, PromotionOutcome, Spec

from ..data.shards import TokenDataset
from ..errors import ModelUnusableError, ObjectMissingError, StorageProtocolError
from ..model.files import tokenizer_files
from ..model.inspect import inspect_model
from ..promotion.model_registry import register
from ..promotion.records import ModelFile, PromotedModel, PromotionEntry, PromotionRecord, RegistryAddress
from ..promotion.storage import CurrentRecord, PromotionStorage
from ..runtime import RuntimeEnv
from ..store.client import ObjectStore
from ..store.digests import sha256_of
from ..tasks import TASKS
from . import gate
from .candidates import Candidate, complete_candidate
from .records import Evaluation, ModelMetrics, PromotionDecision
from .significance import PairedTest

if TYPE_CHECKING:  # imports torch
    from .evaluator import ModelEvaluator, ModelResult

log = logging.getLogger("finetune")

_SHOWN_LABELS, _SHOWN_LETTERS = 4, 40


@dataclass(frozen=True)
class Rival:
    """The promoted model when the evaluation started."""

    current: CurrentRecord
    candidate: Candidate | None = None
    """None: there is none, or it cannot be compared."""
    obstacle: str = ""
    """Why it cannot be compared."""
    record_error: str = ""
    """Why it is unknown which model is promoted."""
    is_same: bool = False
    """Whether it is the model of this run, which is not compared with itself."""

    @property
    def uri(self) -> str:
        """Its folder; empty: no model is promoted."""
        return "" if self.current.record is None else self.current.record.model.uri


@dataclass(frozen=True)
class ModelPromotion:
    """The promotion of the model of one run."""

    config: PreparedConfig
    rules: Promotion
    tuned: Candidate
    storage: PromotionStorage
    rival: Rival

    @classmethod
    def of_run(
        cls,
        config: PreparedConfig,
        prepared: Prepared,
        tuned: Candidate,
        test: TokenDataset | None,
        store: ObjectStore,
        runtime: RuntimeEnv,
    ) -> "ModelPromotion | None":
        """Read which model is promoted, and fetch it. Returns None if the spec has no conditions of a promotion."""
        rules = config.spec.evaluation.promote
        if rules is None:
            return None
        storage = PromotionStorage(store, PromotionLayout.of(config.output_uri))
        rival = _rival(storage, config, tuned)
        if rival.current.record is not None and not rival.is_same and test is not None:
            rival = _fetched(rival, rival.current.record, prepared, tuned, test, store, runtime)
        return cls(config, rules, tuned, storage, rival)

    def measured(self, evaluator: "ModelEvaluator") -> "tuple[ModelPromotion, ModelResult | None]":
        """Evaluate the promoted model on the test split of this run; also return it with what was found meanwhile."""
        if self.rival.candidate is None:
            return self, None
        try:
            return self, evaluator(self.rival.candidate, "promoted model")
        except ModelUnusableError as error:
            return replace(self, rival=replace(self.rival, candidate=None, obstacle=str(error))), None

    def decide(self, evaluation: Evaluation, paired_test: PairedTest | None) -> PromotionDecision:
        """Evaluate the conditions, and replace `promoted.json` if they hold. Call `publish` afterwards.

        `evaluation` has the metrics of all models, `paired_test` compares the promoted model with the tuned one.
        """
        record = self.rival.current.record
        metric = self.rules.metric or evaluation.headline
        checks = gate.checks(
            gate.Evidence(
                rules=self.rules,
                metric=metric,
                tuned=_metrics(evaluation.tuned),
                baseline=_metrics(evaluation.baseline),
                regression_sets={
                    found.name: (_metrics(found.baseline), found.tuned.metrics) for found in evaluation.regression_sets
                },
                promoted_uri="" if self.rival.is_same else self.rival.uri,
                promoted=_metrics(evaluation.promoted),
                record_error=self.rival.record_error,
                obstacle=self.rival.obstacle,
                paired_test=paired_test,
                rolled_back=None if record is None else record.rollback_of(self.config.run_uri),
            )
        )
        decision = PromotionDecision(
            outcome=PromotionOutcome.REFUSED,
            time=rfc3339(utc_now(), "seconds"),
            metric=metric,
            checks=checks,
            uri=self.rival.uri,
            paired_test=paired_test,
            registry=_registry(self.config.spec),
        )
        if self.rival.is_same and record is not None:
            return _kept(decision, record)
        if not all(check.holds for check in checks):
            return decision
        return self._promoted(decision)

    def _promoted(self, decision: PromotionDecision) -> PromotionDecision:
        before = self.rival.current
        entry = self._entry(decision)
        files = tuple(ModelFile(name=file.name, size=file.size, sha256=file.sha256) for file in self.tuned.files)
        record = PromotionRecord.after_promotion(before.record, entry, files, uuid.uuid4().hex)
        if self.storage.replace(before, record) is not None:
            note = "" if before.record else "no model was promoted before"
            return decision.model_copy(
                update={
                    "outcome": PromotionOutcome.PROMOTED,
                    "uri": self.tuned.address.uri,
                    "previous": self.rival.uri,
                    "note": note,
                }
            )
        now = self.storage.read().record
        if now is not None and now.is_of(self.config.run_uri, self.tuned.address.digest):
            return _kept(decision, now)  # by another process of the same attempt
        return decision.model_copy(
            update={
                "outcome": PromotionOutcome.CONFLICT,
                "uri": "" if now is None else now.model.uri,
                "note": f"{'another model' if now is None else now.model.uri} was promoted while this one was being "
                "evaluated; evaluate again, or promote this one with `finetune promote`",
            }
        )

    def _entry(self, decision: PromotionDecision) -> PromotionEntry:
        return PromotionEntry(
            model=PromotedModel(
                uri=self.tuned.address.uri, digest=self.tuned.address.digest, task=self.config.prepared.task
            ),
            folder=self.config.run_uri,
            job=self.config.job,
            run=self.config.run,
            time=decision.time,
            checks=decision.checks,
            registry=decision.registry,
        )

    def registered(self, decision: PromotionDecision) -> PromotionDecision:
        """Register the model if it is promoted. Returns the decision, with a warning if that failed."""
        if decision.outcome is not PromotionOutcome.PROMOTED or decision.registry is None:
            return decision
        warning = register(decision.registry, self._entry(decision))
        now = self.storage.read().record
        if not warning and now is not None and not now.is_of(self.config.run_uri, self.tuned.address.digest):
            # Another model was promoted meanwhile, and this process may have moved the alias after it.
            warning = register(decision.registry, now.entry)
        return decision.model_copy(update={"warning": warning})

    def publish(self, decision: PromotionDecision) -> None:
        """Bring `promoted/` to the content of the model if it is promoted, also after an earlier attempt was killed."""
        if decision.outcome is PromotionOutcome.PROMOTED:
            record = self.storage.publish()
            if record is not None:
                log.info("%s has the files of %s", self.storage.layout.folder, record.model.uri)


def _registry(spec: Spec) -> RegistryAddress | None:
    """Resolve the server of `spec.evaluation.promote.mlflow`; validation requires one of both."""
    registry = spec.evaluation.promote.mlflow if spec.evaluation.promote else None
    uri = (registry.tracking_uri if registry else None) or (spec.tracking.mlflow and spec.tracking.mlflow.tracking_uri)
    if registry is None or not uri:
        return None
    return RegistryAddress(tracking_uri=uri, model=registry.model, alias=registry.alias)


def _metrics(figures: ModelMetrics | None) -> dict[Metric, float]:
    return {} if figures is None else figures.metrics


def _kept(decision: PromotionDecision, record: PromotionRecord) -> PromotionDecision:
    failed = any(not check.holds for check in decision.checks)
    note = f"this run's model has been promoted since {record.time}" + (", and stays promoted" if failed else "")
    return decision.model_copy(
        update={
            "outcome": PromotionOutcome.PROMOTED,
            "uri": record.model.uri,
            "previous": record.previous.model.uri if record.previous else "",
            "note": note,
        }
    )


def _rival(storage: PromotionStorage, config: PreparedConfig, tuned: Candidate) -> Rival:
    try:
        current = storage.read()
    except StorageProtocolError as error:
        return Rival(CurrentRecord(None), record_error=f"{error}; {error.advice}" if error.advice else str(error))
    record = current.record
    return Rival(current, is_same=record is not None and record.is_of(config.run_uri, tuned.address.digest))


def _fetched(
    rival: Rival,
    record: PromotionRecord,
    prepared: Prepared,
    tuned: Candidate,
    test: TokenDataset,
    store: ObjectStore,
    runtime: RuntimeEnv,
) -> Rival:
    """Download the promoted model, and find out whether its numbers can be compared with those of this run."""
    if record.model.task and record.model.task != prepared.task:
        return replace(rival, obstacle=f"it was trained for {record.model.task}, and this model for {prepared.task}")
    try:
        candidate = complete_candidate(record.model.uri, store, runtime, is_own=False)
        obstacle = _obstacle(candidate, record, prepared, tuned, test)
    except (ModelUnusableError, ObjectMissingError) as error:
        return replace(rival, obstacle=str(error))
    return replace(rival, obstacle=obstacle) if obstacle else replace(rival, candidate=candidate)


def _obstacle(
    candidate: Candidate, record: PromotionRecord, prepared: Prepared, tuned: Candidate, test: TokenDataset
) -> str:
    """The rows of the test split are token ids of this run's tokenizer and label ids of its data."""
    if candidate.address.digest != record.model.digest:
        return (
            f"its files were changed after its promotion: its digest must be {record.model.digest[:12]}, and is "
            f"{candidate.address.digest[:12]}"
        )
    if _tokenizer(candidate) != _tokenizer(tuned):
        return "it has another tokenizer"
    facts, own = (inspect_model(each.folder, each.address.uri) for each in (candidate, tuned))
    if facts.vocabulary != own.vocabulary:
        return f"its vocabulary has {facts.vocabulary:,} tokens, and that of this model {own.vocabulary:,}"
    longest = int(test.lengths.max())
    if facts.positions is not None and longest > facts.positions:
        return f"it reads at most {facts.positions:,} tokens, and the test split has a row of {longest:,}"
    return _other_labels(candidate, prepared) if TASKS[prepared.task].has_labels else ""


def _tokenizer(candidate: Candidate) -> dict[str, str]:
    """Name and digest of every file that affects tokenization."""
    names = set(tokenizer_files(candidate.folder))
    known = {file.name: file.sha256 for file in candidate.files}
    return {name: known.get(name) or sha256_of(candidate.folder / name) for name in names}


def _other_labels(candidate: Candidate, prepared: Prepared) -> str:
    from transformers import AutoConfig

    try:
        names = AutoConfig.from_pretrained(candidate.folder).id2label
        labels = tuple(str(names[index]) for index in sorted(names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnusableError(f"its config.json cannot be read: {error}") from error
    if labels == prepared.labels:
        return ""
    if sorted(labels) == sorted(prepared.labels):
        return "it has the labels in another order"
    other = [label[:_SHOWN_LETTERS] for label in sorted(set(labels) ^ set(prepared.labels))[:_SHOWN_LABELS]]
    return f"it has other labels: {len(labels):,} instead of {len(prepared.labels):,}, different are {', '.join(other)}"
