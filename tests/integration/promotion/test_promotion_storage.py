"""Promotions in a real store, with and without conditional writes."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from finetune_api.run_layout import PromotionLayout
from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_trainer.errors import ObjectMissingError, StorageProtocolError
from finetune_trainer.promotion import storage as promotion_storage
from finetune_trainer.promotion.records import PromotionRecord
from finetune_trainer.promotion.storage import PromotionStorage
from finetune_trainer.store import ObjectStore
from finetune_trainer.store.digests import folder_sha256, sha256_of
from promoted_models import StoredModel, promoted_files, stored_model
from store_proxy import Conditions, StoreProxy

ALL = [Conditions.HONOURED, Conditions.IGNORED, Conditions.REFUSED, Conditions.REFUSED_AS_BAD, Conditions.ONLY_ABSENT]
LACKING = ALL[1:]
WRITERS = 6


@pytest.fixture
def output(bucket: str) -> str:
    return f"s3://{bucket}/out"


@contextmanager
def opened(server: EmbeddedStore, output: str, conditions: Conditions, **proxied: Any) -> Iterator[PromotionStorage]:
    with StoreProxy(server, conditions, **proxied) as proxy:
        yield storage_of(proxy, output)


def storage_of(proxy: StoreProxy, output: str) -> PromotionStorage:
    return PromotionStorage(ObjectStore.connect(proxy.settings()), PromotionLayout.of(output))


def promote(storage: PromotionStorage, model: StoredModel) -> PromotionRecord | None:
    """Promote a model regardless of the promoted one."""
    before = storage.read()
    stored = storage.replace(before, model.record(f"token{model.run}", before.record))
    if stored is not None:
        storage.publish()
    return stored


def check_published(store: ObjectStore, output: str, model: StoredModel, tmp_path: Any) -> None:
    """`promoted/` has exactly the files of the model, and their digest is that of record and marker."""
    assert promoted_files(store, output) == model.contents
    layout = PromotionLayout.of(output)
    record, marker = store.get_json(layout.record), store.get_json(layout.marker)
    assert (marker["number"], marker["token"], marker["model"]) == (record["number"], record["token"], record["model"])
    folder = tmp_path / f"loaded-{record['number']}"
    store.download_files(layout.folder, [file["name"] for file in marker["files"]], folder)
    found = {file["name"]: sha256_of(folder / file["name"]) for file in marker["files"]}
    assert found == {file["name"]: file["sha256"] for file in marker["files"]}
    assert folder_sha256(found.items()) == marker["model"]["digest"] == model.digest


@pytest.mark.parametrize("conditions", ALL)
def test_models_are_promoted_one_after_the_other(
    storage_settings: StorageSettings,
    store_server: EmbeddedStore,
    store: ObjectStore,
    output: str,
    conditions: Conditions,
    tmp_path: Any,
) -> None:
    first, second = stored_model(store, output, 1, shards=3), stored_model(store, output, 2)
    with opened(store_server, output, conditions) as storage:
        assert storage.read().record is None
        assert storage.publish() is None, "nothing is promoted"
        for number, model in enumerate((first, second, first), start=1):
            stored = promote(storage, model)
            assert stored is not None
            assert (stored.number, storage.read().record) == (number, stored)
            check_published(store, output, model, tmp_path)
        assert [stored.previous.run, *(entry.run for entry in stored.earlier)] == [2, 1]
    left = [info.uri.rpartition("/")[2] for info in store.list(PromotionLayout.of(output).sequence)]
    assert left == ([] if conditions is Conditions.HONOURED else ["3.json"])


@pytest.mark.parametrize("is_first", [True, False], ids=["first promotion", "later promotion"])
@pytest.mark.parametrize("conditions", ALL)
def test_of_many_concurrent_promotions_exactly_one_wins(
    storage_settings: StorageSettings,
    store_server: EmbeddedStore,
    store: ObjectStore,
    output: str,
    conditions: Conditions,
    is_first: bool,
    tmp_path: Any,
) -> None:
    models = [stored_model(store, output, run, size=50) for run in range(1, WRITERS + 1)]
    together = threading.Barrier(WRITERS)
    with StoreProxy(store_server, conditions) as proxy:
        if not is_first:
            promote(storage_of(proxy, output), stored_model(store, output, 99, shards=2, size=50))
        storages = [storage_of(proxy, output) for _ in models]
        seen = [storage.read() for storage in storages]

        def attempt(number: int) -> PromotionRecord | None:
            record = models[number].record(f"token{number}", seen[number].record)
            together.wait()
            stored = storages[number].replace(seen[number], record)
            if stored is not None:
                storages[number].publish()
            return stored

        with ThreadPoolExecutor(WRITERS) as pool:
            won = list(pool.map(attempt, range(WRITERS)))
        [stored] = [record for record in won if record is not None]
        assert storages[0].read().record == stored
        winner = models[won.index(stored)]
        assert (stored.model.uri, stored.number) == (winner.uri, 1 if is_first else 2)
        check_published(store, output, winner, tmp_path)
        # And none later, with what was read before.
        assert storages[0].replace(seen[0], models[0].record("late", seen[0].record)) is None


@pytest.mark.parametrize("conditions", [Conditions.HONOURED, Conditions.IGNORED])
def test_an_interrupted_copy_is_completed_and_never_has_a_marker(
    storage_settings: StorageSettings,
    store_server: EmbeddedStore,
    store: ObjectStore,
    output: str,
    conditions: Conditions,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = stored_model(store, output, 1), stored_model(store, output, 2, shards=2)
    layout = PromotionLayout.of(output)
    with opened(store_server, output, conditions) as storage:
        promote(storage, old)
        before = storage.read()
        assert storage.replace(before, new.record("new", before.record)) is not None
        for steps in range(12):
            if interrupted_after(steps, storage, monkeypatch):
                files = promoted_files(store, output)
                assert store.exists(layout.marker) == (steps == 0), "it is removed first and written last"
                assert "config.json" not in files or files in (old.contents, new.contents)
        assert storage.publish() == storage.read().record
        check_published(store, output, new, tmp_path)


def interrupted_after(steps: int, storage: PromotionStorage, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Copy at most this many steps. Returns whether it was interrupted."""
    original = PromotionStorage._steps

    def first_steps(self: PromotionStorage, record: PromotionRecord) -> Iterator[Callable[[], None]]:
        for number, step in enumerate(original(self, record)):
            if number == steps:
                raise KeyboardInterrupt
            yield step

    with monkeypatch.context() as patched:
        patched.setattr(PromotionStorage, "_steps", first_steps)
        try:
            storage.publish()
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("conditions", [Conditions.HONOURED, Conditions.IGNORED])
def test_a_holder_that_is_overtaken_while_it_copies_leaves_the_files_of_the_new_holder(
    storage_settings: StorageSettings,
    store_server: EmbeddedStore,
    store: ObjectStore,
    output: str,
    conditions: Conditions,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The new holder copies everything in the middle of the old one's copy, after the old one's last check."""
    slow, fast = stored_model(store, output, 1, shards=3), stored_model(store, output, 2)
    with StoreProxy(store_server, conditions) as proxy:
        storage, other = storage_of(proxy, output), storage_of(proxy, output)
        original, overtaken = PromotionStorage._copy, list[str]()

        def overtake(self: PromotionStorage, source: str, target: str) -> None:
            if self is storage and not overtaken and "00002" in source:
                overtaken.append(source)
                assert promote(other, fast) is not None
                check_published(store, output, fast, tmp_path)
            original(self, source, target)

        monkeypatch.setattr(PromotionStorage, "_copy", overtake)
        promote(storage, slow)
        assert overtaken
        assert storage.read().record.model.uri == fast.uri
        check_published(store, output, fast, tmp_path)


def test_a_writer_that_ended_after_its_place_was_settled_is_completed(
    storage_settings: StorageSettings,
    store_server: EmbeddedStore,
    store: ObjectStore,
    output: str,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third = (stored_model(store, output, run) for run in (1, 2, 3))

    def end(self: PromotionStorage, record: PromotionRecord) -> None:
        raise KeyboardInterrupt

    with opened(store_server, output, Conditions.IGNORED) as storage:
        promote(storage, first)
        with monkeypatch.context() as patched:
            patched.setattr(PromotionStorage, "_mirror", end)
            with pytest.raises(KeyboardInterrupt):
                promote(storage, second)
        assert store.get_json(PromotionLayout.of(output).record)["run"] == 1
        before = storage.read()
        assert (before.record.run, before.is_mirrored) == (2, False)
        storage.publish()
        check_published(store, output, second, tmp_path)
        assert promote(storage, third) is not None
        check_published(store, output, third, tmp_path)


def test_the_claim_of_a_writer_that_has_ended_delays_the_next_promotion_but_does_not_prevent_it(
    storage_settings: StorageSettings,
    store_server: EmbeddedStore,
    store: ObjectStore,
    output: str,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(promotion_storage, "_SETTLE_SECONDS", 0.5)
    model = stored_model(store, output, 1)
    store.put(f"{PromotionLayout.of(output).sequence}/1-0dead.json", b"{}")
    with opened(store_server, output, Conditions.IGNORED) as storage:
        stored = promote(storage, model)
        assert stored is not None
        assert stored.number == 2
        check_published(store, output, model, tmp_path)


@pytest.mark.parametrize("later", [Conditions.HONOURED, Conditions.IGNORED])
def test_a_server_that_changes_its_support_continues_the_record(
    storage_settings: StorageSettings,
    store_server: EmbeddedStore,
    store: ObjectStore,
    output: str,
    later: Conditions,
    tmp_path: Any,
) -> None:
    models = [stored_model(store, output, run) for run in (1, 2, 3)]
    with StoreProxy(store_server, Conditions.HONOURED if later is Conditions.IGNORED else Conditions.IGNORED) as proxy:
        storage = storage_of(proxy, output)
        promote(storage, models[0])
        seen = storage.read()
        proxy.conditions = later
        assert promote(storage, models[1]).number == 2
        assert storage.replace(seen, models[2].record("late", seen.record)) is None
        assert promote(storage, models[2]).number == 3
        check_published(store, output, models[2], tmp_path)


def test_a_server_without_copies_gets_the_files_through_this_process(
    storage_settings: StorageSettings, store_server: EmbeddedStore, store: ObjectStore, output: str, tmp_path: Any
) -> None:
    model = stored_model(store, output, 1)
    with opened(store_server, output, Conditions.HONOURED, copies=False) as storage:
        promote(storage, model)
    check_published(store, output, model, tmp_path)


@pytest.mark.parametrize("older", [False, True], ids=["", "after an older version"])
def test_a_file_that_was_replaced_by_one_of_the_same_size_is_copied_again(
    store_server: EmbeddedStore, store: ObjectStore, output: str, older: bool, tmp_path: Any
) -> None:
    with opened(store_server, output, Conditions.HONOURED) as storage:
        model = stored_model(store, output, 1)
        assert promote(storage, model) is not None
        if older:  # its marker has no ETags, and its files count by their sizes as before
            marker = store.get_json(storage.layout.marker)
            del marker["etags"]
            store.put(storage.layout.marker, json.dumps(marker).encode())
        name, content = max(model.contents.items(), key=lambda item: len(item[1]))
        store.put(f"{storage.layout.folder}/{name}", bytes(len(content)))
        storage.publish()
        assert (promoted_files(store, output) == model.contents) == (not older)
        if not older:
            check_published(store, output, model, tmp_path)


def test_a_missing_file_of_the_model_is_reported_and_leaves_no_marker(
    storage_settings: StorageSettings, store: ObjectStore, output: str
) -> None:
    model, storage = stored_model(store, output, 1), PromotionStorage(store, PromotionLayout.of(output))
    store.delete(f"{model.uri}/tokenizer.json")
    with pytest.raises(ObjectMissingError, match=r"runs/r0001-1f3a9c42/model/tokenizer\.json does not exist"):
        promote(storage, model)
    assert not store.exists(PromotionLayout.of(output).marker)


def changed(record: PromotionRecord, **fields: Any) -> bytes:
    return json.dumps({**record.model_dump(mode="json"), **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "must have format version 1 or older, not 2"),
        ({"version": None}, "is not a record of a promoted model"),
        ({"folder": "s3://other/out/runs/r0001-1f3a9c42"}, "must name models of runs of s3://"),
        ({"model": {"uri": "file:///etc", "digest": "d"}}, "must name models of runs of s3://"),
        ({"model": {"uri": "hf://evil/model", "digest": "d"}}, "must name models of runs of s3://"),
        ({"files": [{"name": "../x", "size": 1, "sha256": "d"}]}, "must be a path within its folder"),
        ({"number": "many"}, "is not a record of a promoted model"),
    ],
    ids=str,
)
def test_a_record_that_cannot_be_trusted_is_rejected(
    store: ObjectStore, output: str, fields: dict[str, Any], message: str
) -> None:
    storage, layout = PromotionStorage(store, PromotionLayout.of(output)), PromotionLayout.of(output)
    record = stored_model(store, output, 1).record("token")
    store.put(layout.record, changed(record))
    assert storage.read().record == record
    store.put(layout.record, changed(record, unknown="newer field"))
    assert storage.read().record == record
    store.put(layout.record, changed(record, **fields))
    with pytest.raises(StorageProtocolError, match=message):
        storage.read()


def test_a_record_at_another_place_of_the_sequence_is_rejected(
    store: ObjectStore, store_server: EmbeddedStore, output: str
) -> None:
    """It would stay newer than the record, which would be written again and again."""
    model = stored_model(store, output, 1)
    with opened(store_server, output, Conditions.HONOURED) as storage:
        assert promote(storage, model) is not None
        record = store.get(PromotionLayout.of(output).record)
        store.put(f"{PromotionLayout.of(output).sequence}/9.json", record)
        for call in (storage.read, storage.publish):
            with pytest.raises(StorageProtocolError, match=r"9\.json must have number 9, not 1"):
                call()
