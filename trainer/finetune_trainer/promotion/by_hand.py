"""Promotions and rollbacks by a person, for the command line. Reads every byte of the model, and loads none."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_api.clock import rfc3339, utc_now
from finetune_api.run_layout import PromotionLayout, RunLayout
from finetune_api.trainer_config import Exchanged, JobRef
from finetune_api.v1alpha1 import ArtifactFormat, PromotionOutcome

from ..errors import BadConfigError, ObjectMissingError, StorageProtocolError, TrainerError
from ..model.files import INDEX_FILE, model_files
from ..store import ObjectStore, join
from ..store.digests import folder_sha256
from .model_registry import register
from .records import Check, ModelFile, PromotedModel, PromotionEntry, PromotionRecord, RegistryAddress
from .storage import CurrentRecord, PromotionStorage

__all__ = ["Change", "PromotionEntry", "PromotionRecord", "Promotions", "RefusedError", "RegistryAddress"]


class RefusedError(Exception):
    """The model is not promoted. The message says why and how to go on."""


class _Decision(Exchanged):
    outcome: str = ""
    checks: tuple[Check, ...] = ()
    registry: RegistryAddress | None = None


class _Evaluated(Exchanged):
    """The part of `evaluation.json` that a promotion by hand needs."""

    job: JobRef
    run: int
    task: str
    model: PromotedModel
    promotion: _Decision | None = None


@dataclass(frozen=True)
class Change:
    """What a promotion or a rollback has changed."""

    record: PromotionRecord
    replaced: PromotionRecord | None
    """The record before. None: no model was promoted."""
    is_new: bool
    """False: the model was promoted already, and only its files were completed."""
    warning: str = ""
    """Why the model was not registered in the model registry. Empty: it was, or there is none."""


class Promotions:
    """The promoted model of an output."""

    def __init__(self, store: ObjectStore, layout: PromotionLayout, *, person: str, tracking_uri: str = "") -> None:
        """`tracking_uri`: the MLflow server that the user trusts with the credentials of the environment."""
        self._store = store
        self._storage = PromotionStorage(store, layout)
        self._person = person
        self._tracking_uri = tracking_uri.rstrip("/")

    def current(self) -> PromotionRecord | None:
        """Return the record; None if no model was promoted. Raises StorageProtocolError if it cannot be read."""
        return self._storage.read().record

    def promote(self, folder: str, *, reason: str = "", force: bool = False) -> Change:
        """Promote the exported model of a run, and bring `promoted/` to its content.

        `force`: also if the evaluation has refused it. Raises RefusedError, and ObjectMissingError if the run has no
        evaluation or no exported model.
        """
        evaluated = self._evaluated(folder)
        if evaluated.promotion is not None and evaluated.promotion.outcome == PromotionOutcome.REFUSED and not force:
            failed = "".join(f"\n- {check.text}" for check in evaluated.promotion.checks if not check.holds)
            raise RefusedError(f"the evaluation has refused {evaluated.model.uri}:{failed}\nadd --force to promote it")
        before = self._storage.read()
        files = self._verified(evaluated.model)
        if before.record is not None and before.record.is_of(folder, evaluated.model.digest):
            registry = _registry_of(evaluated) or before.record.registry
            return self._published(before.record.model_copy(update={"registry": registry}), before, is_new=False)
        entry = PromotionEntry(
            model=evaluated.model,
            folder=folder,
            job=evaluated.job,
            run=evaluated.run,
            time=rfc3339(utc_now(), "seconds"),
            person=self._person,
            reason=reason,
            checks=() if evaluated.promotion is None else evaluated.promotion.checks,
            registry=_registry_of(evaluated) or (before.record and before.record.registry),
        )
        return self._replaced(before, lambda token: PromotionRecord.after_promotion(before.record, entry, files, token))

    def roll_back(self, *, reason: str = "") -> Change:
        """Promote the previous entry again. Raises RefusedError if there is none."""
        before = self._storage.read()
        record = before.record
        if record is None or record.previous is None:
            raise RefusedError(
                f"{self._storage.layout.record} has no previous entry to roll back to; "
                "promote another run with `finetune promote`"
            )
        files = self._verified(record.previous.model)
        return self._replaced(
            before,
            lambda token: PromotionRecord.after_rollback(
                record,
                files,
                token,
                time=rfc3339(utc_now(), "seconds"),
                person=self._person,
                reason=reason,
                registry=self._newest_registry(record),
            ),
        )

    def _newest_registry(self, record: PromotionRecord) -> RegistryAddress | None:
        """Return where the newest evaluation of the promoted model has registered it, if it is known.

        The evaluation may have used another server than the record has, which is that of the promotion.
        """
        try:
            return _registry_of(self._evaluated(record.folder))
        except TrainerError:
            return None

    def _replaced(self, before: CurrentRecord, make: Callable[[str], PromotionRecord]) -> Change:
        stored = self._storage.replace(before, make(uuid.uuid4().hex))
        if stored is None:
            raise RefusedError(
                f"{self._storage.layout.record} was changed by another promotion at the same time; "
                "look at it with `finetune promoted`, and run the command again"
            )
        return self._published(stored, before, is_new=True)

    def _published(self, record: PromotionRecord, before: CurrentRecord, *, is_new: bool) -> Change:
        self._storage.publish()
        return Change(record, before.record, is_new, self._registered(record))

    def _registered(self, record: PromotionRecord) -> str:
        """Register the model. Returns a warning, or an empty string.

        Others may be able to write the record, so credentials are not sent to a server that only the record names.
        """
        registry = record.registry
        if registry is None:
            return ""
        if registry.tracking_uri.rstrip("/") != self._tracking_uri:
            return (
                f"the model was not registered as {registry.model}@{registry.alias}: set MLFLOW_TRACKING_URI to "
                f"{registry.tracking_uri}, if you trust it, and repeat the command `finetune promote {record.folder}`"
            )
        return register(registry, record.entry)

    def _evaluated(self, folder: str) -> _Evaluated:
        uri = RunLayout(folder).evaluation
        try:
            evaluated = _Evaluated.model_validate_json(self._store.get(uri))
        except ObjectMissingError as error:
            raise ObjectMissingError(
                f"{folder} has no evaluation.json, which has the digest of its model", advice="evaluate the run first"
            ) from error
        except ValidationError as error:
            raise StorageProtocolError(f"{uri} is not the result of an evaluation", advice="evaluate again") from error
        merged = RunLayout(folder).artifact(ArtifactFormat.MERGED)
        if evaluated.model.uri != merged:
            raise BadConfigError(
                f"{folder} must have a complete model, and its evaluation is that of {evaluated.model.uri}",
                advice=f"add {ArtifactFormat.MERGED} to spec.output.formats of the job, which needs no training",
            )
        return evaluated.model_copy(update={"model": evaluated.model.model_copy(update={"task": evaluated.task})})

    def _verified(self, model: PromotedModel) -> tuple[ModelFile, ...]:
        """Return the files of a model. Raises BadConfigError if it is missing or does not have its digest."""
        prefix = model.uri + "/"
        sizes = {info.uri.removeprefix(prefix): info.size for info in self._store.list(prefix)}
        names = model_files(sizes, lambda: self._store.get(join(model.uri, INDEX_FILE)))
        if not names:
            raise ObjectMissingError(f"there is no model at {model.uri}", advice="restore it, or promote another run")
        files = tuple(
            ModelFile(name=name, size=sizes[name], sha256=self._store.sha256(join(model.uri, name))) for name in names
        )
        found = folder_sha256((file.name, file.sha256) for file in files)
        if found != model.digest:
            raise BadConfigError(
                f"{model.uri} is not the model that was evaluated: its digest must be {model.digest[:12]}, and is "
                f"{found[:12]}",
                advice="restore the folder, or train and evaluate again with another spec.runNonce",
            )
        return files


def _registry_of(evaluated: _Evaluated) -> RegistryAddress | None:
    return None if evaluated.promotion is None else evaluated.promotion.registry
