"""Storage that delays, resets, rejects, truncates or changes requests: wrong content is never accepted."""

from typing import Any

from faulty_store import DISTURBANCES, OLD_LISTS, FaultyStoreProxy
from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_trainer.checkpoint.async_saver import TrainingState
from tiny_engine import Case, make_engine, make_manager, seed_ranks, train

CASE, STEPS = Case(2, dropout=0.1), 6
RESUMED = dict.fromkeys(DISTURBANCES, 4) | {
    "stored-changed": 0,  # both checkpoints have blobs that do not match their names
    OLD_LISTS: 0,  # the first list contained no checkpoint
}
"""Disturbance -> step from which a run resumes that saved its second and fourth step."""


def save(manager: Any, engine: Any, scheduler: Any, step: int) -> None:
    manager.save(TrainingState(step=step, engine=engine, small_state={"scheduler": scheduler.state_dict()}))


def saved(rank: int, size: int, settings: Any, folder: str) -> list[str]:
    """Losses of a run that saves twice."""
    engine, scheduler = make_engine(CASE, size, disturb=False)
    manager = make_manager(settings, folder, rank, size)
    manager.claim()
    assert manager.restore(engine) is None
    seed_ranks(rank)
    losses = []
    for start in (0, 2):
        losses += train(CASE, engine, scheduler, rank, size, range(start, start + 2))
        save(manager, engine, scheduler, start + 2)
    losses += train(CASE, engine, scheduler, rank, size, range(4, STEPS))
    manager.close()
    return losses


def resumed(rank: int, size: int, settings: Any, folder: str) -> dict[str, Any]:
    """The next attempt in new processes: the step it resumes from, its warnings and losses."""
    from finetune_trainer.train.state import resume_schedule

    engine, scheduler = make_engine(CASE, size, disturb=False)
    manager = make_manager(settings, folder, rank, size, attempt=2)
    manager.claim()
    seed_ranks(rank)
    step = 0
    if restored := manager.restore(engine):
        resume_schedule(scheduler, restored.small_state["scheduler"])
        manager.restore_rng(restored.manifest)
        step = restored.manifest.step
    losses = train(CASE, engine, scheduler, rank, size, range(step, STEPS))
    save(manager, engine, scheduler, STEPS)
    manager.close()
    return {"step": step, "losses": losses, "warnings": manager.warnings}


def in_all(rank: int, size: int, body: Any, settings: Any, bucket: str) -> dict[str, Any]:
    return {kind: body(rank, size, settings, f"{bucket}/{kind}") for kind in RESUMED}


def test_wrong_content_is_never_accepted_and_temporary_failures_cost_nothing(
    storage_settings: StorageSettings, store_server: EmbeddedStore, bucket: str, run_world: Any
) -> None:
    with FaultyStoreProxy(store_server) as proxy:
        place: dict[str, Any] = {"settings": proxy.settings(), "bucket": bucket, "uploaders": len(RESUMED)}
        before, after = (run_world(in_all, 2, body=body, **place)[0] for body in (saved, resumed))
    assert set(proxy.struck) == set(RESUMED), "each trouble has been there"
    assert {kind: found["step"] for kind, found in after.items()} == RESUMED
    for kind, found in after.items():
        assert found["losses"] == before[kind][found["step"] :], f"{kind}: bitwise those of the uninterrupted run"
    for reported, step in zip(after["stored-changed"]["warnings"], (4, 2), strict=True):
        assert reported.startswith(f"checkpoint 0000000{step}-a0001 cannot be used: ")
        assert "is damaged: the SHA-256 of its content does not match its name" in reported
