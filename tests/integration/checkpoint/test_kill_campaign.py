"""A part of `make soak`: twenty kills of ranks, uploaders and storage, without any loss."""

import threading
from pathlib import Path

import pytest

from soak.campaign import Campaign, setup
from soak.events import Point, Victim, events
from soak.trap import Trap, point_of

KILLS = 20


@pytest.mark.timeout(1800)  # four minutes on an idle machine, fifteen next to two busy processes on two cores
def test_after_twenty_kills_every_logged_loss_is_that_of_the_uninterrupted_run(tmp_path: Path) -> None:
    campaign = Campaign(seed=7, kills=KILLS, path=tmp_path / "campaign.jsonl", cases=1)
    with setup(tmp_path, max_lost_seconds=1.0) as place:
        for outcome in campaign.run(place):
            assert outcome.corrupt == []
            assert outcome.mismatches == 0
    assert campaign.kills >= KILLS, "a run with only restores left has one more"
    # An interrupted campaign would continue from these runs.
    assert Campaign(seed=7, kills=KILLS, path=tmp_path / "campaign.jsonl").outcomes == campaign.outcomes


def test_two_hundred_kills_cover_every_victim_at_every_request() -> None:
    drawn = {(event.victim, event.point, event.is_after) for event in events(1, 200)}
    assert {victim for victim, _, _ in drawn} == set(Victim)
    for point in Point:
        assert {
            (victim, point, after) for victim in (Victim.ONE_RANK, Victim.STORE) for after in (False, True)
        } <= drawn
    assert events(1, 200) == events(1, 200)


REQUESTS = [
    ("PUT", "/killable/out/attempts/3.json", b"{}", Point.CLAIM),
    ("PUT", "/killable/out/checkpoints/manifests/00000010-a0001.json", b"{}", Point.MANIFEST),
    ("PUT", "/killable/out/checkpoints/blobs/abc", b"\x00\x01", Point.BLOB),
    ("PUT", "/killable/out/checkpoints/blobs/abc", b'{"blobs":[],"layout":"d"}', Point.PART),
    ("PUT", "/killable/out/checkpoints/blobs/abc", b'{"fragments":[]}', None),
    ("GET", "/killable/out/checkpoints/blobs/abc", b"", Point.RESTORE),
    ("GET", "/killable?list-type=2&prefix=out%2Fcheckpoints%2Fblobs%2F", b"", None),
    ("POST", "/killable?delete", b"<Key>out/checkpoints/manifests/a.json</Key>", Point.PRUNED_MANIFESTS),
    ("POST", "/killable?delete", b"<Key>out/checkpoints/blobs/a</Key>", Point.PRUNED_BLOBS),
    ("HEAD", "/killable/out/checkpoints/blobs/abc", b"", None),
]


@pytest.mark.parametrize(("method", "path", "body", "point"), REQUESTS)
def test_a_request_is_classified_by_its_effect(method: str, path: str, body: bytes, point: Point | None) -> None:
    assert point_of(method, path, body) is point


def test_a_process_killed_by_a_trap_may_be_seen_dead_before_the_trap_has_fired() -> None:
    trap = Trap(events(1, 1)[0].model_copy(update={"point": Point.BLOB, "number": 1}), lambda: True)
    assert trap.catches(Point.BLOB)
    threading.Timer(0.2, trap.fired.set).start()
    assert trap.has_fired()


def test_a_trap_without_a_process_to_kill_has_not_fired() -> None:
    trap = Trap(events(1, 1)[0].model_copy(update={"point": Point.BLOB, "number": 1}), lambda: False)
    assert trap.catches(Point.BLOB)
    trap.is_busy = trap.kill()
    assert not trap.has_fired()
