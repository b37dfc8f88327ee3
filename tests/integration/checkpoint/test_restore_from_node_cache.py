"""A restore on the host of the save reads its node-local cache, with the same bits as storage."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_trainer.checkpoint.async_saver import TrainingState
from finetune_trainer.checkpoint.stored.node_local_cache import FOLDER
from finetune_trainer.store import ObjectStore
from store_proxy import StoreProxy
from stored_checkpoints import data_blobs
from tiny_engine import Case, make_engine, make_manager, seed_ranks, train

CASE = Case(2, dropout=0.1)
SAVES = (1, 2, 3, 4)


def save_four(rank: int, size: int, settings: Any, folder: str, cache: Path) -> list[str]:
    """Train with saves; returns the losses of steps 5 and 6."""
    engine, scheduler = make_engine(CASE, size, disturb=False)
    manager = make_manager(settings, folder, rank, size, cache=cache)
    manager.claim()
    seed_ranks(rank)
    for step in SAVES:
        train(CASE, engine, scheduler, rank, size, range(step - 1, step))
        state = TrainingState(step=step, engine=engine, small_state={"scheduler": scheduler.state_dict()})
        manager._saver.save(state, spread_seconds=0.1)
    losses = train(CASE, engine, scheduler, rank, size, range(4, 6))
    manager._saver.wait()
    manager.close()
    return losses


def state_of(engine: Any, rank: int, size: int) -> str:
    """Digest of this rank's parameters and moments."""
    import numpy as np

    from finetune_trainer.checkpoint.engine import optimizer_state

    slots = optimizer_state.owned(engine, rank=rank, world_size=size)
    arrays = np.empty(optimizer_state.layout_of(slots).bytes(), dtype=np.uint8)
    steps = optimizer_state.read(engine, slots, arrays.view(np.float32))
    return hashlib.sha256(arrays.tobytes() + repr(steps).encode()).hexdigest()


def resume(
    rank: int, size: int, settings: Any, folder: str, caches: list[Path | None], case: Case = CASE
) -> list[dict[str, Any]]:
    """Restore with each of the caches, and continue training."""
    from finetune_trainer.train.state import resume_schedule

    found = []
    for cache in caches:
        engine, scheduler = make_engine(case, size, disturb=True)
        manager = make_manager(settings, folder, rank, size, attempt=2, cache=cache)
        restored = manager.restore(engine)
        found.append({"origin": restored.origin, "warnings": manager.warnings, "state": state_of(engine, rank, size)})
        resume_schedule(scheduler, restored.small_state["scheduler"])
        manager.restore_rng(restored.manifest)
        found[-1]["losses"] = train(case, engine, scheduler, rank, size, range(4, 6))
        engine.destroy()
    return found


def copies(cache: Path) -> dict[str, Path]:
    return {path.name: path for path in cache.glob(f"{FOLDER}/*/*")}


def test_a_restore_on_the_same_host_reads_no_data_from_storage(
    storage_settings: StorageSettings,
    store_server: EmbeddedStore,
    store: ObjectStore,
    bucket: str,
    run_world: Any,
    tmp_path: Path,
) -> None:
    place: dict[str, Any] = {"folder": bucket}
    before = run_world(save_four, 2, settings=storage_settings, cache=tmp_path, **place)
    newest, last = (set(data_blobs(store, bucket, f"{step:08d}-a0001")) for step in (4, 3))
    assert set(copies(tmp_path)) == newest | last, "what the last two saves need, of both ranks"
    with StoreProxy(store_server) as proxy:
        after = run_world(resume, 2, settings=proxy.settings(), caches=[tmp_path], **place)
        assert [digest for digest in newest if proxy.count("GET", digest)] == []
        assert proxy.count("GET", "/checkpoints/blobs/") > 0, "the small ones: truth is in storage"
    [[from_storage]] = run_world(resume, 2, settings=storage_settings, caches=[None], **place)[:1]
    for [found] in after:
        assert found["losses"] == before[0]
        assert found["warnings"] == []
        assert found["origin"].startswith("node-local cache (")
        assert " and storage (0.0 MB)" in found["origin"]
    assert after[0][0]["state"] == from_storage["state"]
    assert from_storage["origin"].startswith("storage (")


def damaged(cache: Path, folder: Path, kind: str, digests: set[str]) -> Path:
    """A copy of the cache, with every second of these files damaged."""
    shutil.copytree(cache, folder)
    files = copies(folder)
    for digest in sorted(digests)[::2]:
        content = bytearray(files[digest].read_bytes())
        content[100] ^= 1
        if kind == "missing":
            files[digest].unlink()
        else:
            files[digest].write_bytes(content if kind == "other bytes" else content[:-4])
    return folder


def test_damaged_and_missing_files_of_the_cache_are_read_from_storage(
    storage_settings: StorageSettings, store: ObjectStore, bucket: str, run_world: Any, tmp_path: Path
) -> None:
    place: dict[str, Any] = {"settings": storage_settings, "folder": bucket}
    losses = run_world(save_four, 2, cache=tmp_path / "whole", **place)
    digests = set(data_blobs(store, bucket, "00000004-a0001"))
    kinds = ("other bytes", "cut short", "missing")
    caches = [damaged(tmp_path / "whole", tmp_path / kind, kind, digests) for kind in kinds]
    for results in run_world(resume, 2, caches=[*caches, None], **place):
        assert [found["losses"] for found in results] == losses[:1] * 4
        assert len({found["state"] for found in results}) == 1
        assert [found["warnings"] for found in results] == [[]] * 4
        for found in results[:3]:
            assert found["origin"].startswith("node-local cache (")
            assert " and storage (0.0 MB)" not in found["origin"]
    whole = copies(tmp_path / "whole")
    for cache in caches:
        left = copies(cache)
        assert set(left) == set(whole) - set(sorted(digests)[::2])


def test_another_world_size_reads_the_cache_of_the_host(
    storage_settings: StorageSettings, bucket: str, run_world: Any, tmp_path: Path
) -> None:
    place: dict[str, Any] = {"settings": storage_settings, "folder": bucket}
    run_world(save_four, 2, cache=tmp_path, **place)
    for case in (CASE, Case(3, dropout=0.1)):
        [[host, storage]] = run_world(resume, 1, caches=[tmp_path, None], case=case, **place)
        assert host["state"] == storage["state"]
        assert host["origin"].startswith("node-local cache (")


def test_an_unwritable_cache_does_not_prevent_saves(
    storage_settings: StorageSettings, bucket: str, run_world: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    place: dict[str, Any] = {"settings": storage_settings, "folder": bucket}
    losses = run_world(save_four, 2, cache=tmp_path / "file", **place)
    for [found] in run_world(resume, 2, caches=[tmp_path / "file"], **place):
        assert found["losses"] == losses[0]
        assert found["origin"].startswith("storage (")
