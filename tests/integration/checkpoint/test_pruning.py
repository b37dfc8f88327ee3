"""Removing checkpoints that are not kept, in a real store: what is removed, what is kept, and interruptions."""

from datetime import timedelta
from itertools import islice

import pytest

from finetune_trainer.checkpoint.archive import Archive
from finetune_trainer.checkpoint.format.orders import Pruned, PruneOrder
from finetune_trainer.checkpoint.format.retention import GRACE, Keep
from finetune_trainer.checkpoint.stored.pruning import Pruning
from finetune_trainer.checkpoint.upload import uploader
from finetune_trainer.checkpoint.upload.uploader import Pace
from finetune_trainer.errors import FencedError
from finetune_trainer.store import ObjectStore
from process_support import until
from stored_runs import StoredRun

AT_ONCE = timedelta(seconds=-1)
"""A grace period that has expired for the newest blob."""
QUIET = timedelta(seconds=4)
"""Longer than the time between two requests on a busy machine."""


@pytest.fixture
def run(store: ObjectStore, bucket: str) -> StoredRun:
    made = StoredRun(store, f"s3://{bucket}/runs/r0001-1")
    made.claim(1)
    return made


def prune(run: StoredRun, keep: Keep, *, grace: timedelta | None = AT_ONCE, batch: int = 200) -> Pruning:
    pruning = Pruning(run.storage, keep, grace=grace, batch=batch)
    for _ in pruning.steps():
        pass
    return pruning


def test_only_kept_checkpoints_remain_and_each_can_be_restored(run: StoredRun) -> None:
    for step in range(1, 9):
        run.save(step, best=2 if step >= 2 else 1)
    pruned = prune(run, Keep(last=2, best=1, every=5)).pruned
    stays = ["00000008-a0001", "00000007-a0001", "00000005-a0001", "00000002-a0001"]
    assert run.names() == list(run.restorable()) == stays
    assert pruned.checkpoints == tuple(f"{step:08d}-a0001" for step in (1, 3, 4, 6))
    assert run.blobs() == run.blobs_of(*(each for each in run.manifests if each.name in stays))
    assert pruned.blobs > 0
    assert prune(run, Keep(last=2, best=1, every=5)).pruned == Pruned(is_finished=True), "nothing is left to do"


def test_a_removal_after_every_save_keeps_the_same_as_one_at_the_end(run: StoredRun) -> None:
    storage = run.storage  # caches references to blobs, like an uploader
    for step in range(1, 7):
        run.save(step)
        for _ in Pruning(storage, Keep(last=2), grace=AT_ONCE).steps():
            pass
    assert list(run.restorable()) == ["00000006-a0001", "00000005-a0001"]
    assert run.blobs() == run.blobs_of(*run.manifests[-2:])


def test_it_may_end_between_any_two_requests_and_the_next_one_finishes_it(run: StoredRun) -> None:
    run.size, run.blob_bytes = 1, 2048
    removed, ends, is_done = [], 0, False
    run.save(1)
    while not is_done:
        run.save(2 * ends + 2)
        newest = run.save(2 * ends + 3)
        pruning = Pruning(run.storage, Keep(last=1), grace=AT_ONCE, batch=1)
        is_done = sum(1 for _ in islice(pruning.steps(), ends)) < ends
        assert run.names()[0] == newest.name
        assert run.blobs() >= run.blobs_of(*(run.storage.catalog.read(name) for name in run.names()))
        removed.append((len(pruning.pruned.checkpoints), pruning.pruned.blobs))
        prune(run, Keep(last=1))
        assert (run.names(), run.blobs()) == ([newest.name], run.blobs_of(newest))
        ends += 1
    assert {manifests for manifests, _ in removed} == {0, 1, 2}
    assert len({blobs for manifests, blobs in removed if manifests == 2}) > 3, "also between batches of blobs"
    assert all(blobs == 0 for manifests, blobs in removed if manifests < 2), "manifests first"


def test_a_newer_attempt_stops_it_and_loses_nothing(run: StoredRun) -> None:
    for step in (1, 2, 3, 4):
        run.save(step)
    before, late = run.blobs(), run.storage
    order = PruneOrder(keep=Keep(last=1))
    run.claim(2)
    answer = uploader.prune(late, order, Pace())
    assert answer.done
    assert answer.failure is not None
    assert answer.failure.kind == FencedError.__name__
    assert (len(run.names()), run.blobs()) == (4, before)


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_a_claim_during_a_removal_stops_it_at_the_next_batch(run: StoredRun, batches: int) -> None:
    for step in (1, 2, 3, 4):
        run.save(step)
    pruning = Pruning(run.storage, Keep(last=2), grace=AT_ONCE, batch=1)
    steps = pruning.steps()
    while len(pruning.pruned.checkpoints) + pruning.pruned.blobs < batches:
        next(steps)
    run.claim(2)
    with pytest.raises(FencedError):
        list(steps)
    assert len(pruning.pruned.checkpoints) + pruning.pruned.blobs == batches
    assert list(run.restorable())[:2] == ["00000004-a0001", "00000003-a0001"]
    run.save(5)
    prune(run, Keep(last=2))
    assert list(run.restorable()) == ["00000005-a0002", "00000004-a0001"]


def test_unreferenced_blobs_are_kept_for_the_grace_period(run: StoredRun) -> None:
    for step in (1, 2):
        run.save(step)
    run.store_parts(3)
    before = run.blobs()
    pruned = prune(run, Keep(last=1), grace=GRACE).pruned
    assert (pruned.checkpoints, pruned.blobs, run.blobs()) == (("00000001-a0001",), 0, before)
    prune(run, Keep(last=1))
    assert run.blobs() == run.blobs_of(run.manifests[-1])


def test_a_save_in_flight_loses_nothing_to_an_external_prune(run: StoredRun) -> None:
    """It found blobs of a removed checkpoint, older than any grace period, and did not upload them again."""
    for step in (1, 2):
        run.save(step)
    quiet = QUIET
    until(lambda: run.storage.quiet_for() > quiet, within=30, what="nothing is written")
    parts = run.store_parts(3, values=1)
    pruned = Archive(run.store, run.uri).prune(Keep(last=1), is_idle=False, quiet=quiet)
    manifest = run.commit(3, parts)
    assert run.blobs_of(manifest) <= run.blobs()
    assert (pruned.checkpoints, pruned.blobs) == (("00000001-a0001",), 0)
    assert "a save may be in flight" in pruned.blocked_by


def test_a_run_that_has_stopped_writing_is_pruned_externally(run: StoredRun) -> None:
    for step in (1, 2):
        run.save(step)
    pruned = Archive(run.store, run.uri).prune(Keep(last=1), is_idle=False, quiet=AT_ONCE)
    assert (pruned.blobs > 0, pruned.blocked_by) == (True, "")
    assert run.blobs() == run.blobs_of(run.manifests[-1])


def test_an_external_prune_ends_at_the_next_batch_when_a_save_starts(run: StoredRun) -> None:
    for step in (1, 2):
        run.save(step)
    quiet = QUIET
    pruning = Pruning(run.storage, Keep(last=1), grace=AT_ONCE, batch=1, quiet=quiet)
    until(lambda: run.storage.quiet_for() > quiet, within=30, what="nothing is written")
    steps = pruning.steps()
    while not pruning.pruned.blobs:
        next(steps)
    run.store_parts(3)
    list(steps)
    assert pruning.pruned.blobs == 1
    assert "a save may be in flight" in pruning.pruned.blocked_by


DAMAGED = {
    "a manifest that is not JSON": ("checkpoints/manifests/00000001-a0001.json", b"{"),
    "a manifest of another version": ("checkpoints/manifests/00000001-a0001.json", b'{"version": 2}'),
    "a manifest under another name": ("checkpoints/manifests/00000009-a0009.json", b""),
    "something that is not a manifest": ("checkpoints/manifests/notes.txt", b"mine"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_an_unreadable_object_is_kept_and_keeps_all_blobs(run: StoredRun, kind: str) -> None:
    for step in (1, 2, 3):
        run.save(step)
    key, content = DAMAGED[kind]
    newest = f"{run.uri}/checkpoints/manifests/00000003-a0001.json"
    run.store.put(f"{run.uri}/{key}", content or run.store.get(newest))
    before = run.blobs()
    pruned = prune(run, Keep(last=1)).pruned
    assert run.store.exists(f"{run.uri}/{key}")
    assert "00000002-a0001" in pruned.checkpoints, "what is understood goes"
    assert run.blobs() == before
    assert key.rpartition("/")[2].removesuffix(".json") in pruned.blocked_by
    run.store.delete(f"{run.uri}/{key}")
    prune(run, Keep(last=1))
    assert run.blobs() == run.blobs_of(run.manifests[-1])


def test_a_kept_checkpoint_with_unknown_references_keeps_all_blobs(run: StoredRun) -> None:
    for step in (1, 2, 3):
        run.save(step)
    part = run.manifests[1].parts[1].digest
    run.store.put(run.blob_uri(part), b"damaged")
    before = run.blobs()
    pruned = prune(run, Keep(last=2)).pruned
    assert pruned.checkpoints == ("00000001-a0001",)
    assert pruned.blocked_by.startswith("checkpoint 00000002-a0001: ")
    assert part in pruned.blocked_by
    assert run.blobs() == before
    prune(run, Keep(last=1))
    assert run.blobs() == run.blobs_of(run.manifests[-1]), "once it is not kept any more, nothing is in the way"


def test_an_expedited_removal_ends_after_at_most_one_request(run: StoredRun) -> None:
    for step in (1, 2, 3):
        run.save(step)
    expedited = Pace()
    expedited.expedite()
    answer = uploader.prune(run.storage, PruneOrder(keep=Keep(last=1)), expedited)
    assert (answer.done, answer.failure, answer.pruned) == (True, None, Pruned())
    assert len(run.names()) == 3
