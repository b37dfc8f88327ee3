"""Failures during saves and restores: damaged blobs, late writers, dying storage, incompatible checkpoints."""

import os
import signal
from typing import Any

import pytest

from finetune_api.trainer_config import StorageSettings
from finetune_trainer.checkpoint.async_saver import TrainingState
from finetune_trainer.errors import BadConfigError, FencedError, StorageUnreachableError, TrainerError
from finetune_trainer.store import ObjectStore
from killable_store import BUCKET, KillableStore
from stored_checkpoints import blob_uri, data_blobs, manifests
from tiny_engine import GLOBAL_BATCH, Case, claim_and_restore, make_engine, make_manager, make_store, seed_ranks, train


def save_two(rank: int, size: int, case: Case, settings: Any, folder: str) -> list[str]:
    """Save steps 2 and 4 of 6; returns the losses."""
    engine, scheduler = make_engine(case, size, disturb=False)
    manager = make_manager(settings, folder, rank, size)
    manager.claim()
    seed_ranks(rank)
    losses = []
    for start in (0, 2):
        losses += train(case, engine, scheduler, rank, size, range(start, start + 2))
        manager.save(TrainingState(step=start + 2, engine=engine, small_state={"scheduler": scheduler.state_dict()}))
    return losses + train(case, engine, scheduler, rank, size, range(4, 6))


def go_back(rank: int, size: int, case: Case, settings: Any, folder: str) -> dict[str, Any]:
    """Restore as attempt 2, continue training, save step 4 again, and restore that as attempt 3."""
    engine, scheduler = make_engine(case, size, disturb=True)
    manager = make_manager(settings, folder, rank, size, attempt=2)
    manifest = claim_and_restore(manager, engine, scheduler)
    losses = train(case, engine, scheduler, rank, size, range(2, 4))
    manager.save(TrainingState(step=4, engine=engine, small_state={"scheduler": scheduler.state_dict()}))
    losses += train(case, engine, scheduler, rank, size, range(4, 6))
    again = make_manager(settings, folder, rank, size, attempt=3)
    last = again.restore(engine)
    return {
        "step": manifest.step,
        "warnings": manager.warnings,
        "losses": losses,
        "parent": last.manifest.parent_step,
        "last": last.manifest.name,
        "later warnings": again.warnings,
    }


DAMAGES = ("other bytes", "cut short", "missing")


def damage(store: ObjectStore, folder: str, kind: str) -> str:
    """Damage a blob that only the newest checkpoint of `save_two` refers to; returns its digest."""
    newest, before = (set(data_blobs(store, folder, name)) for name in ("00000004-a0001", "00000002-a0001"))
    digest = min(newest - before)
    uri = blob_uri(folder, digest)
    content = bytearray(store.get(uri))
    content[1000] ^= 1
    if kind == "missing":
        store.delete(uri)
    else:
        store.put(uri, bytes(content) if kind == "other bytes" else bytes(content[:-4]))
    return digest


def in_each(rank: int, size: int, body: Any, folders: list[str], **arguments: Any) -> list[Any]:
    return [body(rank, size, folder=folder, **arguments) for folder in folders]


def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    storage_settings: StorageSettings, store: ObjectStore, bucket: str, run_world: Any
) -> None:
    folders = [f"{bucket}/{kind.replace(' ', '-')}" for kind in DAMAGES]
    place: dict[str, Any] = {"case": Case(3, dropout=0.1), "settings": storage_settings, "folders": folders}
    place["uploaders"] = len(folders)
    before = run_world(in_each, 2, body=save_two, **place)[0]
    digests = [damage(store, folder, kind) for folder, kind in zip(folders, DAMAGES, strict=True)]
    for rank_results in run_world(in_each, 2, body=go_back, **place):
        for after, losses, digest in zip(rank_results, before, digests, strict=True):
            assert after["step"] == 2
            assert len(after["warnings"]) == 1
            assert after["warnings"][0].startswith("checkpoint 00000004-a0001 cannot be used:")
            assert digest in after["warnings"][0]
            assert after["losses"] == losses[2:]
            assert (after["last"], after["parent"], after["later warnings"]) == ("00000004-a0002", 2, [])


def without_any(rank: int, size: int, settings: Any, folder: str) -> list[Any]:
    import torch

    engine, _ = make_engine(Case(2), size, disturb=True)
    before = [parameter.detach().clone() for parameter in engine.module.parameters()]
    manager = make_manager(settings, folder, rank, size, attempt=2)
    restored = manager.restore(engine)
    pairs = zip(before, engine.module.parameters(), strict=True)
    return [restored, len(manager.warnings), all(torch.equal(a, b) for a, b in pairs), engine.global_steps]


def test_without_a_usable_checkpoint_the_engine_is_unchanged(
    storage_settings: StorageSettings, store: ObjectStore, bucket: str, run_world: Any
) -> None:
    run_world(save_two, 2, case=Case(2), settings=storage_settings, folder=bucket)
    for name in ("00000002-a0001", "00000004-a0001"):
        uri = blob_uri(bucket, data_blobs(store, bucket, name)[-1])
        store.put(uri, bytes(len(store.get(uri))))
    assert run_world(without_any, 2, settings=storage_settings, folder=bucket) == [[None, 2, True, 0]] * 2


def error_of(action: Any) -> tuple[str, str]:
    try:
        action()
    except TrainerError as error:
        return type(error).__name__, str(error)
    return "", ""


def late_writer(rank: int, size: int, settings: Any, folder: str) -> dict[str, Any]:
    engine, scheduler = make_engine(Case(2), size, disturb=False)
    old = make_manager(settings, folder, rank, size, attempt=1)
    new = make_manager(settings, folder, rank, size, attempt=2)
    old.claim()
    train(Case(2), engine, scheduler, rank, size, range(1))
    old.save(TrainingState(step=1, engine=engine, small_state={}))
    new.claim()
    train(Case(2), engine, scheduler, rank, size, range(1, 2))
    found = {"late save": error_of(lambda: old.save(TrainingState(step=2, engine=engine, small_state={})))}
    found["late claim"] = error_of(old.claim)
    found["same claim"] = error_of(make_manager(settings, folder, rank, size, attempt=2).claim)
    new.save(TrainingState(step=2, engine=engine, small_state={}))
    found["chosen"] = new.choose().name
    return found


def test_a_late_writer_cannot_commit_after_a_newer_claim(
    storage_settings: StorageSettings, store: ObjectStore, bucket: str, run_world: Any
) -> None:
    for found in run_world(late_writer, 2, settings=storage_settings, folder=bucket):
        assert found["late save"][0] == found["late claim"][0] == found["same claim"][0] == FencedError.__name__
        assert "attempt 2 has claimed the run; attempt 1 must not write anymore" in found["late save"][1]
        assert "attempt 2 is already claimed" in found["same claim"][1]
        assert found["chosen"] == "00000002-a0002"
    assert manifests(store, bucket) == ["00000001-a0001.json", "00000002-a0002.json"]


def overtaken_between_check_and_put(rank: int, size: int, settings: Any, folder: str) -> str:
    """The newer attempt claims and commits the same step between the older one's check and its put."""
    engine, scheduler = make_engine(Case(0), size, disturb=False)
    store = make_store(settings)
    old = make_manager(settings, folder, rank, size, attempt=1, store=store)
    new = make_manager(settings, folder, rank, size, attempt=2)
    old.claim()
    train(Case(0), engine, scheduler, rank, size, range(1))
    overtaken: list[str] = []

    def overtake(params: dict[str, Any], **_: Any) -> None:
        if "/manifests/" in params["url_path"] and not overtaken:
            overtaken.append("now")
            new.claim()
            new.save(TrainingState(step=1, engine=engine, small_state={"by": 2}))

    store._client.meta.events.register("before-call.s3.PutObject", overtake)
    old.save(TrainingState(step=1, engine=engine, small_state={"by": 1}))
    assert overtaken
    restored = make_manager(settings, folder, rank, size, attempt=3).restore(engine)
    return f"{restored.manifest.name} by {restored.small_state['by']}"


def test_a_writer_overtaken_during_its_commit_has_no_precedence(
    storage_settings: StorageSettings, store: ObjectStore, bucket: str, run_world: Any
) -> None:
    found = run_world(overtaken_between_check_and_put, 1, settings=storage_settings, folder=bucket)
    assert found == ["00000001-a0002 by 2"]
    assert manifests(store, bucket) == ["00000001-a0001.json", "00000001-a0002.json"]


class DyingStore(ObjectStore):
    """Its server is killed at the given put of a blob, or at the conditional put of the manifest."""

    server = 0
    puts_left = 10**9
    at_manifest = False

    def put(self, uri: str, data: bytes | memoryview, **options: Any) -> None:
        self.puts_left -= 1
        if self.puts_left == 0:
            os.kill(self.server, signal.SIGKILL)
        super().put(uri, data, **options)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        if self.at_manifest and "/manifests/" in uri:
            os.kill(self.server, signal.SIGKILL)
        return super().put_if_absent(uri, data)


def save_while_it_dies(rank: int, size: int, settings: Any, folder: str, server: int, moment: str) -> tuple[str, str]:
    from finetune_trainer.store import RetryPolicy

    engine, scheduler = make_engine(Case(2), size, disturb=False)
    store = DyingStore.connect(settings, retry=RetryPolicy(attempts_per_request=1))
    assert isinstance(store, DyingStore)
    manager = make_manager(settings, folder, rank, size, store=store)
    manager.claim()
    train(Case(2), engine, scheduler, rank, size, range(1))
    manager.save(TrainingState(step=1, engine=engine, small_state={"step": 1}))
    train(Case(2), engine, scheduler, rank, size, range(1, 2))
    # A short timeout only now: a server that has just started may take longer for its first object.
    store._retry = RetryPolicy(total_seconds=0.5, attempts_per_request=1)
    store.server, store.at_manifest = server, moment == "manifest"
    store.puts_left = 2 if moment == "blobs" and rank == 1 else 10**9
    return error_of(lambda: manager.save(TrainingState(step=2, engine=engine, small_state={"step": 2})))


def restored_step(rank: int, size: int, settings: Any, folder: str) -> int:
    from finetune_trainer.store import RetryPolicy

    engine, _ = make_engine(Case(2), size, disturb=True)
    # A server that has just started may need time before it serves its objects.
    store = ObjectStore.connect(settings, retry=RetryPolicy(total_seconds=60.0))
    manager = make_manager(settings, folder, rank, size, attempt=2, store=store)
    return int(manager.restore(engine).small_state["step"])


@pytest.mark.parametrize("moment", ["blobs", "manifest"])
def test_storage_that_dies_during_a_save_leaves_the_previous_checkpoint(
    killable: KillableStore, run_world: Any, moment: str
) -> None:
    place: dict[str, Any] = {"settings": killable.settings(), "folder": f"{BUCKET}/{moment}"}
    for kind, message in run_world(save_while_it_dies, 2, server=killable.pid, moment=moment, **place):
        assert kind == StorageUnreachableError.__name__
        assert killable.access.endpoint in message
    killable.start()
    assert run_world(restored_step, 2, **place) == [1, 1]


def foreign(rank: int, size: int, settings: Any, folder: str) -> dict[str, tuple[str, str]]:
    """Load the checkpoint of a full fine-tune into incompatible engines."""
    found = {}
    for name, case in (("lora", Case(2, "lora")), ("frozen", Case(2, "frozen")), ("bf16", Case(0, bf16=True))):
        engine, _ = make_engine(case, size, disturb=False)
        manager = make_manager(settings, folder, rank, size, attempt=2)
        found[name] = error_of(lambda manager=manager, engine=engine: manager.restore(engine))
    engine, _ = make_engine(Case(2), size, disturb=False)
    engine.basic_optimizer.param_groups[1]["weight_decay"] = 0.5
    manager = make_manager(settings, folder, rank, size, attempt=2)
    found["weight decay"] = error_of(lambda: manager.restore(engine))
    return found


def test_a_checkpoint_with_other_parameters_is_rejected(
    storage_settings: StorageSettings, bucket: str, run_world: Any
) -> None:
    place: dict[str, Any] = {"settings": storage_settings, "folder": bucket}
    run_world(save_two, 2, case=Case(2), **place)
    for found in run_world(foreign, 2, **place):
        assert {kind for kind, _ in found.values()} == {BadConfigError.__name__}
        assert "which is not trained now" in found["lora"][1]
        assert "model.layers.0." in found["frozen"][1]
        assert "ZeRO stage 0 cannot be saved" in found["bf16"][1]
        assert "have weight decay [0.5, 0.5], but [0.5, 0.0]" in found["weight decay"][1]


def best_state(rank: int, size: int, settings: Any, folder: str) -> list[Any]:
    """Restore the weights of an earlier step, and continue with the current optimizer state."""
    import torch

    equal = []
    for case in (Case(0), Case(2, bf16=True), Case(3), Case(3, "lora")):
        engine, scheduler = make_engine(case, size, disturb=False)
        manager = make_manager(settings, f"{folder}/{case.name}", rank, size)
        manager.claim()
        rows = torch.arange(GLOBAL_BATCH * 8).view(GLOBAL_BATCH, 8) % 96

        def loss(engine: Any = engine, rows: Any = rows) -> str:
            engine.eval()
            with torch.no_grad():
                value = float(engine(input_ids=rows, labels=rows).loss).hex()
            engine.train()
            return value

        train(case, engine, scheduler, rank, size, range(2))
        manager.save(TrainingState(step=2, engine=engine, small_state={}, best_step=2, metrics={"Loss": 0.5}))
        best = loss()
        train(case, engine, scheduler, rank, size, range(2, 4))
        manager.save(TrainingState(step=4, engine=engine, small_state={}))
        last = loss()
        found = manager.find(2)
        manager.load_weights(2, engine)
        equal.append([loss() == best != last, found.is_best, found.metrics, engine.global_steps, manager.find(3)])
    return equal


def test_only_the_weights_of_the_best_step_are_restored(
    storage_settings: StorageSettings, bucket: str, run_world: Any
) -> None:
    for found in run_world(best_state, 2, uploaders=4, settings=storage_settings, folder=bucket):
        assert found == [[True, True, {"Loss": 0.5}, 4, None]] * 4


def joint_failures(rank: int, size: int) -> list[tuple[str, str]]:
    from finetune_trainer.collectives import all_ranks, gather_all, rank_zero

    def fails_on(failing: tuple[int, ...]) -> int:
        if rank in failing:
            raise FencedError(f"by {rank}", advice="none")
        return rank

    found = [error_of(lambda failing=failing: gather_all(lambda: fails_on(failing), int)) for failing in ((1,), (0, 1))]
    found.append(error_of(lambda: rank_zero(lambda: fails_on((0,)), int)))
    assert gather_all(lambda: rank, int) == [0, 1]
    assert all_ranks(lambda: rank) == rank
    assert rank_zero(lambda: rank + 7, int) == 7
    return found


def test_an_error_of_one_rank_is_raised_on_all_ranks(run_world: Any) -> None:
    zero, one = run_world(joint_failures, 2)
    assert zero == [("FencedError", "rank 1: by 1"), ("FencedError", "by 0"), ("FencedError", "by 0")]
    assert one == [("FencedError", "by 1"), ("FencedError", "rank 0: by 0"), ("FencedError", "rank 0: by 0")]
