"""Which checkpoints are removed, and which blobs with them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.checkpoint.format.manifest import Manifest
from finetune_trainer.checkpoint.format.retention import GRACE, Keep, StoredBlob, kept, unneeded, why_kept
from small_manifests import MANIFEST

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def manifest(name: str, *, best: int | None = None, parent: int | None = None) -> Manifest:
    """`12-a3`; `best` is the best step at that time."""
    step, attempt = (int(part) for part in name.split("-a"))
    change = {"step": step, "attempt": attempt, "parent_step": parent, "is_best": best == step, "best_step": best}
    return MANIFEST.model_copy(update=change)


def short(manifests: list[Manifest]) -> list[str]:
    return [f"{each.step}-a{each.attempt}" for each in manifests]


def line(*steps: int, attempt: int = 1, best: dict[int, int] | None = None) -> list[Manifest]:
    """Consecutive saves; `best`: step -> the best step from then on."""
    made, so_far = [], None
    for index, step in enumerate(steps):
        so_far = (best or {}).get(step, so_far)
        made.append(manifest(f"{step}-a{attempt}", best=so_far, parent=steps[index - 1] if index else None))
    return made


BESTS = line(1, 2, 3, 4, 5, 6, best={1: 1, 3: 3, 4: 4})
WENT_BACK = [*line(10, 20, 30), manifest("25-a2", parent=20), manifest("35-a2", parent=25)]
"""30-a1 was damaged."""


@pytest.mark.parametrize(
    ("manifests", "keep", "expected"),
    [
        pytest.param([], Keep(), [], id="no checkpoints"),
        pytest.param(line(1), Keep(last=1, best=0), ["1-a1"], id="the only one is kept"),
        pytest.param(line(1, 2, 3, 4), Keep(), ["4-a1", "3-a1"], id="the newest two"),
        pytest.param(line(1, 2, 3, 4), Keep(last=9), ["4-a1", "3-a1", "2-a1", "1-a1"], id="fewer than the limit"),
        pytest.param(
            [*line(7, 8, 9), *line(5, 6, attempt=2)],
            Keep(),
            ["6-a2", "5-a2"],
            id="a newer attempt precedes a later step",
        ),
        pytest.param([*line(7, 8, 9), *line(5, attempt=2)], Keep(), ["5-a2", "9-a1"], id="in the order of a restore"),
        pytest.param(
            BESTS, Keep(last=2, best=0), ["6-a1", "5-a1", "4-a1"], id="what an export would need is always kept"
        ),
        pytest.param(BESTS, Keep(last=2, best=2), ["6-a1", "5-a1", "4-a1", "3-a1"], id="the newest best ones"),
        pytest.param(BESTS, Keep(last=1, best=9), ["6-a1", "4-a1", "3-a1", "1-a1"], id="all best ones"),
        pytest.param(
            line(1, 2, 3, best={1: 1, 3: 3}),
            Keep(),
            ["3-a1", "2-a1", "1-a1"],
            id="if the newest is damaged, the best one of the previous one still exists",
        ),
        pytest.param(
            [*line(5, 10, 20, best={5: 5, 20: 20}), *(manifest(f"{step}-a2", best=5, parent=10) for step in (25, 30))],
            Keep(),
            ["30-a2", "25-a2", "20-a1", "5-a1"],
            id="the best one of the resumed attempt, not of the abandoned one",
        ),
        pytest.param(
            line(10, 20, 30, 40, 50, 60), Keep(last=1, every=25), ["60-a1", "50-a1", "30-a1"], id="first at or after"
        ),
        pytest.param(line(40, 90, 140), Keep(last=1, every=10), ["140-a1", "90-a1", "40-a1"], id="one for many"),
        pytest.param(line(10, 20), Keep(last=1, every=100), ["20-a1"], id="no multiple yet"),
        pytest.param(WENT_BACK, Keep(last=1, every=30), ["35-a2"], id="not one that was superseded"),
        pytest.param(
            WENT_BACK, Keep(last=1, every=10), ["35-a2", "20-a1", "10-a1"], id="but what the run resumed from"
        ),
        pytest.param(
            [manifest("10-a1"), manifest("10-a2"), manifest("20-a2", parent=10)],
            Keep(last=1, every=10),
            ["20-a2", "10-a2"],
            id="the newest attempt of the same step",
        ),
    ],
)
def test_kept_checkpoints(manifests: list[Manifest], keep: Keep, expected: list[str]) -> None:
    assert short(kept(manifests, keep)) == expected
    assert short(kept(manifests[::-1], keep)) == expected, "in any order of the list"


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=30, unique=True).map(sorted),
    st.builds(Keep, last=st.integers(1, 4), best=st.integers(0, 3), every=st.none() | st.integers(1, 60)),
    st.sets(st.integers(1, 200)),
)
def test_pruning_after_each_save_keeps_the_same_as_pruning_at_the_end(
    steps: list[int], keep: Keep, bests: set[int]
) -> None:
    saves = line(*steps, best={step: step for step in bests})
    left: list[Manifest] = []
    for each in saves:
        left = kept([*left, each], keep)
        assert left[0] == each, "the newest is kept"
        assert each.best_step in (None, *(one.step for one in left)), "and what it would export"
    assert left == kept(saves, keep)


def test_the_reasons_for_keeping_a_checkpoint_are_reported() -> None:
    reasons = why_kept(line(10, 20, 30, best={10: 10}), Keep(last=1, best=1, every=20))
    assert reasons == {"00000030-a0001": ["last"], "00000020-a0001": ["every"], "00000010-a0001": ["best"]}


OLD = NOW - GRACE - timedelta(seconds=1)


def blob(digest: str, modified: datetime) -> StoredBlob:
    return StoredBlob(digest=digest * 64, size=3, modified=modified)


def test_unreferenced_blobs_are_removed_after_the_grace_period() -> None:
    named, old, young, other = blob("a", OLD), blob("b", OLD), blob("c", NOW - GRACE), StoredBlob("x.part", 3, OLD)
    assert unneeded([named, old, young, other], {named.digest}, newest=NOW) == [old]


def test_the_age_of_a_blob_is_measured_by_the_clock_of_storage() -> None:
    """`newest` is the latest time recorded by storage itself, so a wrong clock of the pod does no harm."""
    ancient = blob("a", OLD - timedelta(days=4000))
    assert unneeded([ancient], set(), newest=ancient.modified) == []


def test_without_a_grace_period_all_unreferenced_blobs_are_removed() -> None:
    assert unneeded([blob("a", NOW), blob("b", NOW)], {"b" * 64}, newest=NOW, grace=None) == [blob("a", NOW)]
