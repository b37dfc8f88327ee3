"""Old checkpoints are removed during training, and never delay it."""

import time
from typing import Any

from finetune_api.trainer_config import StorageSettings
from finetune_trainer.checkpoint.async_saver import TrainingState
from finetune_trainer.checkpoint.format.orders import Answer, Order, PartOrder, PruneOrder
from finetune_trainer.store import ObjectStore
from inline_uploader import InlineUploader
from tiny_engine import Case, make_engine, make_manager, make_store, seed_ranks, train

CASE = Case(2)
AN_HOUR = 3600.0


class Training:
    """A rank that saves after every step."""

    def __init__(self, rank: int, size: int, settings: Any, folder: str, **options: Any) -> None:
        self.rank, self.size = rank, size
        self.engine, self.scheduler = make_engine(CASE, size, disturb=False)
        self.manager = make_manager(settings, folder, rank, size, **options)
        self.saver, self.pruner = self.manager._saver, self.manager._pruner
        self.manager.claim()
        seed_ranks(rank)

    def step(self, step: int, *, spread_seconds: float | None = None, **judged: Any) -> None:
        train(CASE, self.engine, self.scheduler, self.rank, self.size, range(step - 1, step))
        state = TrainingState(step=step, engine=self.engine, small_state={"step": step}, **judged)
        self.saver.save(state, spread_seconds=spread_seconds)


def names(store: ObjectStore, folder: str) -> list[str]:
    prefix = f"s3://{folder}/runs/r0001-1/checkpoints/manifests/"
    return [info.uri.removeprefix(prefix) for info in store.list(prefix)]


def saves_eight_times(rank: int, size: int, settings: Any, folder: str) -> list[Any]:
    keep = {"keepLast": 2, "keepBest": 1, "keepEvery": 4}
    training = Training(rank, size, settings, folder, checkpoint=keep)
    for step in range(1, 9):
        training.step(step, best_step=2 if step > 1 else None)
    reported = training.saver.last.step
    finished = training.pruner.wait(60.0)
    training.manager.close()
    return [reported, finished, training.pruner.error]


def restores_each(rank: int, size: int, settings: Any, folder: str, steps: list[int]) -> list[int]:
    engine, _ = make_engine(CASE, size, disturb=True)
    manager = make_manager(settings, folder, rank, size, attempt=2)
    return [manager.load(manager.find(step), engine).small_state["step"] for step in steps]


def test_after_many_saves_only_kept_checkpoints_exist_and_each_can_be_restored(
    storage_settings: StorageSettings, store: ObjectStore, bucket: str, run_world: Any
) -> None:
    place: dict[str, Any] = {"settings": storage_settings, "folder": bucket}
    assert run_world(saves_eight_times, 2, **place) == [[8, True, ""]] * 2
    assert names(store, bucket) == [f"{step:08d}-a0001.json" for step in (2, 4, 7, 8)]
    assert run_world(restores_each, 2, steps=[8, 7, 4, 2], **place) == [[8, 7, 4, 2]] * 2


class SlowUploader(InlineUploader):
    """Its removals continue until they are expedited, and a little longer."""

    LOOKS = 3

    def __init__(self, storage: Any) -> None:
        super().__init__(storage)
        self.parts: list[float] = []
        """Times of part orders, on a clock shared by all processes."""
        self.broken_off: list[float] = []
        self._open: PruneOrder | None = None
        self._looks_left = self.LOOKS
        self._is_expedited = False

    def send(self, order: Order) -> None:
        if isinstance(order, PruneOrder):
            self._open, self._looks_left, self._is_expedited = order, self.LOOKS, False
            return
        assert self._open is None, "one order at a time"
        if isinstance(order, PartOrder):
            self.parts.append(time.monotonic())
        super().send(order)

    def expedite(self) -> None:
        self._is_expedited = self._open is not None

    def receive(self, timeout: float) -> Answer | None:
        if self._open is None:
            return super().receive(timeout)
        time.sleep(min(timeout, 0.1))  # like a socket
        self._looks_left -= self._is_expedited
        if self._looks_left > 0:
            return None
        self._open = None
        self.broken_off.append(time.monotonic())
        return Answer(done=True)


def saves_during_a_removal(rank: int, size: int, settings: Any, folder: str) -> dict[str, Any]:
    training = Training(rank, size, settings, folder, store=make_store(settings), client=SlowUploader)
    training.step(1)
    saver, found = training.saver, {}
    found["before"] = (saver.last.step, saver.in_flight, saver.poll(), training.pruner.is_open)
    found["settled"] = (saver.wait(), training.pruner.is_open)
    training.step(2)
    found["after"] = saver.last.step
    client = training.manager._client
    return found | {"parts": client.parts, "broken off": client.broken_off}


def test_a_save_interrupts_a_removal_and_no_rank_stores_anything_before_it_has_ended(
    storage_settings: StorageSettings, store: ObjectStore, bucket: str, run_world: Any
) -> None:
    found = run_world(saves_during_a_removal, 2, settings=storage_settings, folder=bucket)
    for rank in found:
        assert rank["before"] == (1, False, False, True), "committed and reported during the removal"
        assert rank["settled"] == (True, True), "waiting for a save does not wait for it"
        assert rank["after"] == 2
    (ended,) = found[0]["broken off"]
    assert [rank["parts"][1] > ended > rank["parts"][0] for rank in found] == [True, True]
    assert names(store, bucket) == ["00000001-a0001.json", "00000002-a0001.json"]


def saves_without_pauses(rank: int, size: int, settings: Any, folder: str) -> dict[str, Any]:
    training = Training(rank, size, settings, folder, store=make_store(settings), client=SlowUploader)
    rooms = []
    for step in range(1, 6):
        rooms.append(training.saver.wait_until_idle(10.0))
        if rooms[-1]:
            training.step(step)
    return {"rooms": rooms, "insists": training.pruner.blocks_saves, "must": training.saver.wait_until_idle()}


def test_a_removal_that_three_saves_interrupted_yields_only_to_a_required_save(
    storage_settings: StorageSettings, bucket: str, run_world: Any
) -> None:
    found = run_world(saves_without_pauses, 2, settings=storage_settings, folder=bucket)
    for rank in found:
        assert (rank["rooms"], rank["must"]) == ([True, True, True, True, False], True)
    assert [rank["insists"] for rank in found] == [True, False], "rank 0 alone is asked whether a save is due"


def awaited(rank: int, size: int, settings: Any, folder: str) -> list[bool]:
    """A save that is due before the previous one is committed."""
    training = Training(rank, size, settings, folder, checkpoint={"keepLast": 1})
    opened = []
    for step in range(1, 5):
        assert training.saver.wait_until_idle(60.0)
        opened.append(training.pruner.is_open)
        training.step(step, spread_seconds=0.0)
    training.saver.wait()
    opened.append(training.pruner.is_open)
    assert training.pruner.wait(60.0)
    training.manager.close()
    return opened


def test_a_removal_does_not_start_if_a_save_is_waiting(
    storage_settings: StorageSettings, store: ObjectStore, bucket: str, run_world: Any
) -> None:
    found = run_world(awaited, 2, settings=storage_settings, folder=bucket)
    assert found == [[False] * 4 + [True]] * 2
    assert names(store, bucket) == ["00000004-a0001.json"]


class HangingUploader(SlowUploader):
    """Its removals never end: storage accepts a request and does not answer."""

    LOOKS = 1 << 30


def with_hanging_removal(rank: int, size: int, settings: Any, folder: str) -> dict[str, Any]:
    training = Training(rank, size, settings, folder, store=make_store(settings), client=HangingUploader)
    training.step(1)
    started = time.monotonic()
    has_room = training.saver.wait_until_idle(1.0)
    return {"room": has_room, "seconds": time.monotonic() - started, "flight": training.saver.in_flight}


def test_a_hanging_removal_costs_a_save_but_does_not_stop_training(
    storage_settings: StorageSettings, bucket: str, run_world: Any
) -> None:
    for found in run_world(with_hanging_removal, 2, settings=storage_settings, folder=bucket):
        assert (found["room"], found["flight"]) == (False, False)
        assert found["seconds"] < 30


def may_not_remove(rank: int, size: int, settings: Any, folder: str) -> dict[str, Any]:
    store = make_store(settings)

    def refuse(parsed: dict[str, Any], **_: Any) -> None:
        parsed["Errors"] = [{"Key": "key", "Code": "AccessDenied", "Message": "for ever"}]

    store._client.meta.events.register("after-call.s3.DeleteObjects", refuse)
    training = Training(rank, size, settings, folder, store=store, checkpoint={"keepLast": 1})
    for step in (1, 2):
        training.step(step)
    training.pruner.wait(10.0)
    return {"last": training.saver.last.step, "trouble": training.pruner.error}


def test_storage_that_allows_no_removal_is_reported_and_costs_no_save(
    storage_settings: StorageSettings, bucket: str, run_world: Any
) -> None:
    zero, one = run_world(may_not_remove, 2, settings=storage_settings, folder=bucket)
    assert (zero["last"], one["last"], one["trouble"]) == (2, 2, "")
    assert "AccessDenied for ever" in zero["trouble"]
