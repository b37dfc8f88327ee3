"""The promoted model of an output in object storage.

`replace` decides between concurrent promotions; `publish` then brings the folder `promoted/` to the content of the
record. See docs/promotion.md.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from finetune_api.run_layout import PROMOTION_MARKER, PromotionLayout, RunLayout
from finetune_api.trainer_config import Exchanged
from finetune_api.v1alpha1 import ArtifactFormat

from ..checkpoint.stored.claim_keys import ClaimDecision, ClaimKey, decide_claim, keys_of
from ..errors import BadConfigError, StorageProtocolError
from ..model.files import CARD_FILE, CONFIG_FILES
from ..store import Conditions, ObjectStore, StoredVersion, join
from ..store.transfer import inside
from .records import FORMAT_VERSION, PromotionEntry, PromotionMarker, PromotionRecord

MAX_RECORD_BYTES = 4 << 20
_SETTLE_SECONDS = 30.0
"""How long other writers of the sequence may take: as long as their requests may be retried."""
_LOOK_SECONDS = 0.2
_DAMAGED_ADVICE = "restore the object from a backup, or delete it: the next promotion then starts a new record"


class _Header(Exchanged):
    """The part of a record that every version has."""

    version: int


@dataclass(frozen=True)
class CurrentRecord:
    """The record as it was read."""

    record: PromotionRecord | None
    """None: no model was promoted yet."""
    etag: str = ""
    """ETag of `promoted.json`. Empty: it does not exist."""
    is_mirrored: bool = True
    """Whether `promoted.json` has this record. False: a writer ended after its place in the sequence was settled."""

    @property
    def number(self) -> int:
        """Number of the record; 0 if there is none."""
        return 0 if self.record is None else self.record.number


class PromotionStorage:
    """Record and files of the promoted model of one output."""

    def __init__(self, store: ObjectStore, layout: PromotionLayout) -> None:
        self._store = store
        self._layout = layout

    @property
    def layout(self) -> PromotionLayout:
        """Addresses of this output."""
        return self._layout

    # The record

    def read(self) -> CurrentRecord:
        """Read the record. Raises StorageProtocolError if a newer version has written it, or if it is damaged."""
        version = self._store.get_version(self._layout.record, most_bytes=MAX_RECORD_BYTES)
        found = CurrentRecord(None) if version is None else CurrentRecord(self._decoded(version), version.etag)
        settled = max((key for key in self._sequence() if not key.token), default=ClaimKey(0))
        if settled.attempt <= found.number:
            return found
        newer = self._settled(settled)
        if newer is None:  # a still newer one has replaced it
            return self.read()
        return CurrentRecord(newer, found.etag, is_mirrored=False)

    def replace(self, before: CurrentRecord, record: PromotionRecord) -> PromotionRecord | None:
        """Replace the record that was read. Returns the stored record, or None if another writer has replaced it.

        Of concurrent calls with the same `before`, exactly one succeeds.
        """
        conditions = self._store.swap_conditions(self._layout.sequence)
        if conditions is not Conditions.HONOURED:
            return self._settle(before, record)
        data = _encoded(record)
        if before.etag:
            is_ours = self._store.put_if_match(self._layout.record, data, before.etag)
        else:
            is_ours = self._store.put_if_absent(self._layout.record, data)
        return record if is_ours else None

    def _decoded(self, version: StoredVersion) -> PromotionRecord:
        try:
            header = _Header.model_validate_json(version.content)
            self._check_version(header.version)
            record = PromotionRecord.model_validate_json(version.content)
            for file in record.files:
                inside(Path(), file.name)
        except (ValidationError, BadConfigError) as error:
            raise StorageProtocolError(
                f"{self._layout.record} is not a record of a promoted model: {' '.join(str(error).split())[:300]}",
                advice=_DAMAGED_ADVICE,
            ) from error
        for entry in filter(None, (record, record.previous, *record.earlier, *record.rolled_back)):
            self._check_inside(entry)
        return record

    def _check_version(self, version: int) -> None:
        if version > FORMAT_VERSION:
            raise StorageProtocolError(
                f"{self._layout.record} must have format version {FORMAT_VERSION} or older, not {version}",
                advice="use the version of finetune-operator that has written it, or a newer one",
            )

    def _check_inside(self, entry: PromotionEntry) -> None:
        """Every model is that of a run of this output: an address elsewhere could be anything."""
        is_inside = PromotionLayout.of_run(entry.folder) == self._layout
        if not is_inside or entry.model.uri != RunLayout(entry.folder).artifact(ArtifactFormat.MERGED):
            raise StorageProtocolError(
                f"{self._layout.record} must name models of runs of {self._layout.output_uri}, not "
                f"{entry.model.uri[:200]}",
                advice=_DAMAGED_ADVICE,
            )

    # The order of promotions without conditional writes

    def _settle(self, before: CurrentRecord, record: PromotionRecord) -> PromotionRecord | None:
        """Take the next place in the sequence; see docs/decisions/0006 and docs/promotion.md."""
        number = self._next_number(before)
        if number is None:
            return None
        record = record.model_copy(update={"number": number})
        claim, settled = ClaimKey(number, token=record.token), ClaimKey(number)
        data = _encoded(record)
        self._store.put(self._key_uri(claim), data)
        is_ours = self._contend(claim, before)
        if is_ours:
            self._store.put(self._key_uri(settled), data)
        self._store.delete(self._key_uri(claim))
        if not is_ours or not self._is_newest(number):
            return None
        self._mirror(record)
        old = [self._key_uri(key) for key in self._sequence() if key.attempt < number]
        self._store.delete_many(old)
        return record

    def _next_number(self, before: CurrentRecord) -> int | None:
        """The number after the current one, without those of writers that have ended; None: it was replaced."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            later = [key for key in self._sequence() if key.attempt > before.number]
            if any(not key.token for key in later):
                return None
            if not later or time.monotonic() > deadline:
                return max((key.attempt for key in later), default=before.number) + 1
            time.sleep(_LOOK_SECONDS)

    def _contend(self, mine: ClaimKey, before: CurrentRecord) -> bool:
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            listed = self._sequence()
            if any(not key.token and key.attempt > before.number for key in listed):
                return False
            found = decide_claim(mine, listed)
            if found is not ClaimDecision.WAIT or time.monotonic() > deadline:
                return found is ClaimDecision.OURS
            time.sleep(_LOOK_SECONDS)

    def _is_newest(self, number: int) -> bool:
        """Whether no later number was taken by a writer that did not wait for this one, if it was suspended."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            later = [key for key in self._sequence() if key.attempt > number]
            if not later:
                return True
            if any(not key.token for key in later) or time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_SECONDS)

    def _mirror(self, record: PromotionRecord) -> None:
        """Write `promoted.json`, and repeat it if a newer record was written meanwhile."""
        while True:
            self._store.put(self._layout.record, _encoded(record), content_type="application/json")
            newest = max((key for key in self._sequence() if not key.token), default=ClaimKey(0))
            if newest.attempt <= record.number:
                return
            record = self._settled(newest) or record

    def _settled(self, key: ClaimKey) -> PromotionRecord | None:
        """Read a record of the sequence; None if a newer one has replaced it. Raises StorageProtocolError if its number
        is not that of its place: it would be newer than `promoted.json` for ever."""
        version = self._store.get_version(self._key_uri(key), most_bytes=MAX_RECORD_BYTES)
        record = None if version is None else self._decoded(version)
        if record is not None and record.number != key.attempt:
            raise StorageProtocolError(
                f"{self._key_uri(key)} must have number {key.attempt}, not {record.number}", advice=_DAMAGED_ADVICE
            )
        return record

    def _sequence(self) -> list[ClaimKey]:
        prefix = self._layout.sequence + "/"
        return keys_of(info.uri.removeprefix(prefix) for info in self._store.list(prefix))

    def _key_uri(self, key: ClaimKey) -> str:
        return join(self._layout.sequence, key.name)

    # The files

    def publish(self) -> PromotionRecord | None:
        """Bring `promoted/` to the content of the record, unless it has it. Returns the record.

        Only for a process whose model is promoted. If the record is replaced meanwhile, the files become those of the
        new record, because this process may have written after the one that replaced it. Raises ObjectMissingError if a
        file of the model is missing.
        """
        while True:
            current = self.read()
            if current.record is None:
                return None
            if not current.is_mirrored:
                self._mirror(current.record)
            if self.is_published(current.record):
                return current.record
            if (etags := self._copied(current.record)) is not None:
                marker = PromotionMarker.of(current.record, etags).model_dump_json(indent=1).encode()
                self._store.put(self._layout.marker, marker, content_type="application/json")

    def is_published(self, record: PromotionRecord) -> bool:
        """Whether `promoted/` has the marker of the record, and the files that it was written for."""
        version = self._store.get_version(self._layout.marker, most_bytes=MAX_RECORD_BYTES)
        try:
            marker = None if version is None else PromotionMarker.model_validate_json(version.content)
        except ValidationError:
            return False
        if marker is None or marker != PromotionMarker.of(record, marker.etags):
            return False
        etags = self._etags(record)
        return etags is not None and marker.etags in ({}, etags)

    def _copied(self, record: PromotionRecord) -> dict[str, str] | None:
        """Copy the model. Returns the ETags of its files; None as soon as the record was replaced."""
        for step in self._steps(record):
            if not self._is_current(record):
                return None
            step()
        if not self._is_current(record):
            return None
        etags = self._etags(record)
        if etags is None:
            raise StorageProtocolError(
                f"{self._layout.folder} does not have the files of {record.model.uri} after they were copied",
                advice="evaluate again, or run `finetune promote` with the folder of the run",
            )
        return etags

    def _steps(self, record: PromotionRecord) -> Iterator[Callable[[], None]]:
        """Yield deletions and copies, in order.

        Without `config.json`, no library loads the folder, so it is removed first and written last.
        """
        source, target = record.model.uri, self._layout.folder
        names = [file.name for file in record.files]
        if self._store.exists(join(source, CARD_FILE)):
            names.append(CARD_FILE)
        first = [name for name in sorted(names) if name not in CONFIG_FILES]
        last = [name for name in sorted(names, reverse=True) if name in CONFIG_FILES]  # config.json is the last one
        for uri in (self._layout.marker, *(join(target, name) for name in CONFIG_FILES)):
            yield partial(self._store.delete, uri)
        for name in first:
            yield partial(self._copy, join(source, name), join(target, name))
        for uri in self._stale({*names}):
            yield partial(self._store.delete, uri)
        for name in last:
            yield partial(self._copy, join(source, name), join(target, name))

    def _copy(self, source: str, target: str) -> None:
        """Copy within the server, or through this process if the server cannot."""
        try:
            self._store.copy(source, target)
        except StorageProtocolError:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "file"
                self._store.download(source, path)
                self._store.upload(path, target)

    def _is_current(self, record: PromotionRecord) -> bool:
        current = self.read().record
        return current is not None and current.token == record.token

    def _stale(self, names: set[str]) -> Iterator[str]:
        prefix = self._layout.folder + "/"
        for info in list(self._store.list(prefix)):
            if info.uri.removeprefix(prefix) not in {*names, PROMOTION_MARKER}:
                yield info.uri

    def _etags(self, record: PromotionRecord) -> dict[str, str] | None:
        """ETags of the model's files in `promoted/`; None if there are others, or some with other sizes."""
        prefix = self._layout.folder + "/"
        found = {info.uri.removeprefix(prefix): info for info in self._store.list(prefix)}
        sizes = {file.name: file.size for file in record.files}
        if found.keys() - sizes.keys() - {CARD_FILE, PROMOTION_MARKER}:
            return None
        if any(name not in found or found[name].size != size for name, size in sizes.items()):
            return None
        return {name: found[name].etag for name in sizes}


def _encoded(record: PromotionRecord) -> bytes:
    return record.model_dump_json(indent=1).encode()
