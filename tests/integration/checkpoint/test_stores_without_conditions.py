"""Servers that ignore or reject `If-None-Match`: still only one claimant per attempt, and a warning."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_trainer.checkpoint.async_saver import TrainingState
from finetune_trainer.checkpoint.stored.claims import Claims
from finetune_trainer.errors import FencedError
from finetune_trainer.store import ObjectStore
from store_proxy import Conditions, StoreProxy
from stored_checkpoints import manifests, run_uri
from tiny_engine import Case, claim_and_restore, make_engine, make_manager, seed_ranks, train

CASE = Case(2, dropout=0.1)
LACKING = [Conditions.IGNORED, Conditions.REFUSED, Conditions.REFUSED_AS_BAD]
CLAIMANTS = 6


def claims_of(proxy: StoreProxy, folder: str, attempt: int, generation: int = 0) -> Claims:
    store = ObjectStore.connect(proxy.settings())
    return Claims(store, f"{run_uri(folder)}/attempts", attempt=attempt, generation=generation)


def names(store: ObjectStore, folder: str) -> list[str]:
    return [info.uri.rpartition("/")[2] for info in store.list(f"{run_uri(folder)}/attempts/")]


@pytest.mark.parametrize("conditions", LACKING)
def test_of_many_claimants_of_an_attempt_exactly_one_continues(
    storage_settings: StorageSettings,
    store_server: EmbeddedStore,
    store: ObjectStore,
    bucket: str,
    conditions: Conditions,
) -> None:
    with StoreProxy(store_server, conditions) as proxy:
        together = threading.Barrier(CLAIMANTS)

        def claim(claims: Claims) -> str:
            together.wait()
            try:
                return claims.claim(world_size=1)
            except FencedError as error:
                return f"fenced: {error}"

        with ThreadPoolExecutor(CLAIMANTS) as pool:
            reported = list(pool.map(claim, [claims_of(proxy, bucket, 1) for _ in range(CLAIMANTS)]))
        [warning] = [text for text in reported if not text.startswith("fenced: ")]
        word = "ignores" if conditions is Conditions.IGNORED else "refuses"
        assert f"storage at {proxy.settings().endpoint} {word} conditional writes" in warning
        assert {text[:36] for text in reported if text != warning} == {"fenced: attempt 1 is already claimed"}
        assert len(names(store, bucket)) == 1, "the others have withdrawn, and nothing is left of the tries"
        # And none later.
        with pytest.raises(FencedError, match="attempt 1 is already claimed"):
            claims_of(proxy, bucket, 1).claim(world_size=1)


@pytest.mark.parametrize("conditions", [Conditions.HONOURED, *LACKING])
def test_a_newer_attempt_fences_an_older_one(
    storage_settings: StorageSettings, store_server: EmbeddedStore, bucket: str, conditions: Conditions
) -> None:
    with StoreProxy(store_server, conditions) as proxy:
        old, new = (claims_of(proxy, bucket, attempt) for attempt in (1, 2))
        old.claim(world_size=1)
        old.check()
        new.claim(world_size=1)
        new.check()
        for late in (old.check, lambda: old.claim(world_size=1)):
            with pytest.raises(FencedError, match="attempt 2 has claimed the run; attempt 1 must not write anymore"):
                late()


ALLOWED, CLAIMED, NEWER = "", "is already claimed", "must not write anymore"
CLAIMS = [
    pytest.param((1, 0), (1, 0), True, ALLOWED, id="the same process claims again"),
    pytest.param((1, 2), (1, 2), True, ALLOWED, id="the same process claims its generation again"),
    pytest.param((1, 0), (1, 0), False, CLAIMED, id="another process of the same generation"),
    pytest.param((1, 2), (1, 2), False, CLAIMED, id="another process of the same later generation"),
    pytest.param((1, 0), (1, 1), False, ALLOWED, id="a newer generation"),
    pytest.param((1, 1), (1, 0), False, NEWER, id="an older generation"),
    pytest.param((1, 9), (2, 0), False, ALLOWED, id="a newer attempt"),
    pytest.param((2, 0), (1, 9), False, NEWER, id="an older attempt of a higher generation"),
]
"""(attempt, generation) of the first and of the second claim, whether both are by the same process, and the result."""


@pytest.mark.parametrize("conditions", [Conditions.HONOURED, Conditions.IGNORED])
@pytest.mark.parametrize(("held", "wanted", "is_same", "outcome"), CLAIMS)
def test_a_claim_is_for_an_attempt_and_a_generation(
    storage_settings: StorageSettings,
    store_server: EmbeddedStore,
    bucket: str,
    conditions: Conditions,
    held: tuple[int, int],
    wanted: tuple[int, int],
    is_same: bool,
    outcome: str,
) -> None:
    with StoreProxy(store_server, conditions) as proxy:
        first = claims_of(proxy, bucket, *held)
        first.claim(world_size=1)
        second = first if is_same else claims_of(proxy, bucket, *wanted)
        if outcome:
            with pytest.raises(FencedError, match=outcome):
                second.claim(world_size=1)
            first.check()
            return
        second.claim(world_size=1)
        second.check()
        if not is_same:
            with pytest.raises(FencedError, match=NEWER):
                first.check()


def test_a_server_that_now_supports_conditions_still_has_the_earlier_claims(
    storage_settings: StorageSettings, store_server: EmbeddedStore, bucket: str
) -> None:
    with StoreProxy(store_server, Conditions.IGNORED) as proxy:
        claims_of(proxy, bucket, 1).claim(world_size=1)
        proxy.conditions = Conditions.HONOURED
        with pytest.raises(FencedError, match="attempt 1 is already claimed"):
            claims_of(proxy, bucket, 1).claim(world_size=1)
        claims_of(proxy, bucket, 2).claim(world_size=1)
        proxy.conditions = Conditions.IGNORED
        with pytest.raises(FencedError, match="attempt 2 is already claimed"):
            claims_of(proxy, bucket, 2).claim(world_size=1)


def test_with_conditional_writes_a_start_costs_three_additional_requests(
    storage_settings: StorageSettings, store_server: EmbeddedStore, store: ObjectStore, bucket: str
) -> None:
    with StoreProxy(store_server) as proxy:
        assert claims_of(proxy, bucket, 1).claim(world_size=1) == ""
        assert [(one.method, one.is_conditional) for one in proxy.requests] == [
            ("GET", False),  # who is there
            ("PUT", True),
            ("PUT", True),
            ("DELETE", False),
            ("PUT", True),
        ]
    assert names(store, bucket) == ["1.json"]


def save_once(rank: int, size: int, settings: Any, folder: str) -> dict[str, Any]:
    engine, scheduler = make_engine(CASE, size, disturb=False)
    manager = make_manager(settings, folder, rank, size)
    manager.claim()
    claimed = time.monotonic()
    seed_ranks(rank)
    train(CASE, engine, scheduler, rank, size, range(2))
    state = TrainingState(step=2, engine=engine, small_state={"scheduler": scheduler.state_dict()})
    manager._saver.save(state, spread_seconds=0.1)
    losses = train(CASE, engine, scheduler, rank, size, range(2, 5))
    manager._saver.wait()
    manager.close()
    return {"losses": losses, "warnings": manager.warnings, "claimed": claimed}


def resume(rank: int, size: int, settings: Any, folder: str) -> dict[str, Any]:
    engine, scheduler = make_engine(CASE, size, disturb=True)
    manager = make_manager(settings, folder, rank, size, attempt=2)
    manifest = claim_and_restore(manager, engine, scheduler)
    losses = train(CASE, engine, scheduler, rank, size, range(manifest.step, 5))
    manager.save(TrainingState(step=5, engine=engine, small_state={}))
    manager.close()
    return {"losses": losses, "warnings": manager.warnings}


@pytest.mark.parametrize("conditions", [Conditions.IGNORED, Conditions.REFUSED])
def test_training_saves_and_resumes_and_reports_the_limitation_of_the_server(
    storage_settings: StorageSettings,
    store_server: EmbeddedStore,
    store: ObjectStore,
    bucket: str,
    run_world: Any,
    conditions: Conditions,
) -> None:
    with StoreProxy(store_server, conditions) as proxy:
        place = {"settings": proxy.settings(), "folder": bucket}
        before = run_world(save_once, 2, **place)
        conditional = [one for one in proxy.requests if one.is_conditional and one.at > before[0]["claimed"]]
        assert conditional == []
        after = run_world(resume, 2, **place)
    for first, second in zip(before, after, strict=True):
        assert second["losses"] == first["losses"]
        for reported in (first["warnings"], second["warnings"]):
            assert [text for text in reported if "conditional writes (If-None-Match)" in text] == reported
            assert len(reported) == 1
    assert manifests(store, bucket) == ["00000002-a0001.json", "00000005-a0002.json"]
