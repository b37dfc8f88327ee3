"""The format of `promoted.json`, and how a promotion and a rollback change it. Pure.

A record has the promoted model and the entries that a rollback returns to, as a stack: a promotion pushes the entry
that it replaces, and a rollback pops the newest one.
"""

from collections.abc import Mapping
from typing import Self

from finetune_api.trainer_config import Exchanged, JobRef

FORMAT_VERSION = 1
MAX_EARLIER = 10
"""Entries before the previous one, and entries that were rolled back."""


class Check(Exchanged):
    """A condition of a promotion, and whether it holds."""

    holds: bool
    text: str
    """The condition with its values, such as `Accuracy 0.913 must be at least 0.95`."""


class ModelFile(Exchanged):
    """A file of the promoted model."""

    name: str
    """Relative to the model's folder."""
    size: int
    sha256: str


class PromotedModel(Exchanged):
    """The exported folder of a run, which never changes, and its digest."""

    uri: str
    digest: str
    task: str = ""
    """Task that the model was trained for."""


class RegistryAddress(Exchanged):
    """`spec.evaluation.promote.mlflow` with its defaults resolved."""

    tracking_uri: str
    model: str
    alias: str


class PromotionEntry(Exchanged):
    """A model that is or was promoted."""

    model: PromotedModel
    folder: str
    """Folder of the run that trained the model."""
    job: JobRef
    """Job of that run."""
    run: int
    """Number of that run."""
    time: str
    """When it was promoted, RFC 3339, UTC."""
    person: str = ""
    """User who promoted it with the command line. Empty: the evaluate stage of the run."""
    reason: str = ""
    """Why, as written by this user."""
    checks: tuple[Check, ...] = ()
    """Conditions of `spec.evaluation.promote` with their values."""
    registry: RegistryAddress | None = None
    """Where the model is registered. Absent: nowhere."""


class PromotionRecord(PromotionEntry):
    """`promoted.json`. Its own entry is that of the model that is promoted now."""

    version: int = FORMAT_VERSION
    number: int
    """Number of the change; increases with every promotion and rollback."""
    token: str
    """Different for each writer, so that no two records are equal."""
    files: tuple[ModelFile, ...]
    """Files of the model, without the model card."""
    previous: PromotionEntry | None = None
    """The entry that a rollback returns to."""
    earlier: tuple[PromotionEntry, ...] = ()
    """The entries before that, newest first."""
    rolled_back: tuple[PromotionEntry, ...] = ()
    """Entries that a rollback replaced, newest first. Their runs are promoted again only by the command line."""

    @property
    def entry(self) -> PromotionEntry:
        """The entry of the model that is promoted now."""
        return PromotionEntry.model_validate({name: getattr(self, name) for name in PromotionEntry.model_fields})

    def is_of(self, folder: str, digest: str) -> bool:
        """Whether this model of this run is promoted."""
        return (self.folder, self.model.digest) == (folder, digest)

    def rollback_of(self, folder: str) -> PromotionEntry | None:
        """The entry of a run whose model was rolled back; None if it was not."""
        return next((entry for entry in self.rolled_back if entry.folder == folder), None)

    @classmethod
    def after_promotion(
        cls, before: "PromotionRecord | None", entry: PromotionEntry, files: tuple[ModelFile, ...], token: str
    ) -> Self:
        """Return the record after a promotion. `before`: the record that it replaces, if any."""
        stack = () if before is None else (before.entry, *_stack(before))
        rolled_back = () if before is None else before.rolled_back
        return cls._of(
            entry,
            files,
            token,
            number=_number_after(before),
            stack=stack,
            rolled_back=tuple(other for other in rolled_back if other.folder != entry.folder),
        )

    @classmethod
    def after_rollback(
        cls,
        before: "PromotionRecord",
        files: tuple[ModelFile, ...],
        token: str,
        *,
        time: str,
        person: str,
        reason: str,
        registry: RegistryAddress | None = None,
    ) -> Self:
        """Return the record after a rollback to the previous entry, which must exist.

        `registry`: where the alias is that must move; by default that of the model that is rolled back.
        """
        assert before.previous is not None, "a rollback needs a previous entry"
        entry = before.previous.model_copy(
            update={
                "time": time,
                "person": person,
                "reason": reason,
                "registry": registry or before.registry or before.previous.registry,
            }
        )
        return cls._of(
            entry,
            files,
            token,
            number=_number_after(before),
            stack=before.earlier,
            rolled_back=(before.entry, *(other for other in before.rolled_back if other.folder != entry.folder)),
        )

    @classmethod
    def _of(
        cls,
        entry: PromotionEntry,
        files: tuple[ModelFile, ...],
        token: str,
        *,
        number: int,
        stack: tuple[PromotionEntry, ...],
        rolled_back: tuple[PromotionEntry, ...],
    ) -> Self:
        return cls(
            **{name: getattr(entry, name) for name in PromotionEntry.model_fields},
            number=number,
            token=token,
            files=files,
            previous=stack[0] if stack else None,
            earlier=stack[1 : 1 + MAX_EARLIER],
            rolled_back=rolled_back[:MAX_EARLIER],
        )


class PromotionMarker(Exchanged):
    """`promoted/promotion.json`: which model the files of the folder are."""

    number: int
    token: str
    """Those of the record."""
    model: PromotedModel
    files: tuple[ModelFile, ...]
    etags: dict[str, str] = {}
    """ETag of each file when its copy was complete: another one shows that the file was replaced since, also by one of
    the same size. Empty: the marker was written by an older version."""

    @classmethod
    def of(cls, record: PromotionRecord, etags: Mapping[str, str]) -> Self:
        """Return the marker of a record whose files have these ETags."""
        return cls(number=record.number, token=record.token, model=record.model, files=record.files, etags=dict(etags))


def _stack(record: PromotionRecord) -> tuple[PromotionEntry, ...]:
    return () if record.previous is None else (record.previous, *record.earlier)


def _number_after(record: PromotionRecord | None) -> int:
    return 1 if record is None else record.number + 1
