"""Whether watch events are sufficient for a reconcile without live reads: (object, child) -> view or not."""

from typing import Any

import pytest

from finetune_operator.cache.cached_view import cached_view_of
from finetune_operator.cache.job_cache import JobCache
from finetune_operator.manifests import JobKey

KEY = JobKey("ml", "a")


def make_object(*attempts: tuple[str, str], version: str = "5", observed: int = 1, **metadata: Any) -> dict[str, Any]:
    status: dict[str, Any] = {}
    if attempts:
        reported = [{"jobName": name, **({"outcome": outcome} if outcome else {})} for name, outcome in attempts]
        status = {"observedGeneration": observed, "run": {"number": 1, "attempts": reported}}
    return {"metadata": {"uid": "u", "generation": 1, "resourceVersion": version} | metadata, "status": status}


def make_child(name: str = "train", ended: str = "Complete", owner: str = "u", **metadata: Any) -> dict[str, Any]:
    owners = [{"uid": owner, "controller": True}]
    conditions = [{"type": ended, "status": "True"}] if ended else []
    reported = {"name": name, "uid": f"uid-{name}", "ownerReferences": owners}
    return {"metadata": reported | metadata, "status": {"conditions": conditions}}


def make_pod(owner: str = "uid-train", *, state: str = "terminated") -> dict[str, Any]:
    owners = [{"uid": owner, "controller": True}]
    return {"metadata": {"ownerReferences": owners}, "status": {"containerStatuses": [{"state": {state: {}}}]}}


NEW = make_object()
WAITS = make_object(("prepare", "Succeeded"), ("train", ""))
GOING = {"deletionTimestamp": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("job", "child", "is_enough"),
    [
        (NEW, None, True),
        ({**NEW, "status": {"observedGeneration": -1}}, None, True),
        (make_object(generation=2), None, False),
        (make_object(**GOING), None, False),
        (WAITS, None, False),
        (WAITS, make_child(), True),
        (WAITS, make_child(ended=""), False),
        (WAITS, make_child(ended="Failed"), False),
        (WAITS, make_child("prepare"), False),
        (WAITS, make_child(owner="another"), False),
        (WAITS, make_child(**GOING), False),
        (make_object(("train", ""), observed=0), make_child(), False),
        (make_object(("train", ""), **GOING), make_child(), False),
        (make_object(("a1", ""), ("train", "")), make_child(), False),
        (make_object(("train", "Succeeded")), make_child(), False),
        (NEW, make_child(), False),
    ],
    ids=[
        "new",
        "new with the default status",
        "new and changed",
        "new and deleted",
        "triggered by time",
        "the awaited Job is complete",
        "runs",
        "failed",
        "judged already",
        "child of another object",
        "child being deleted",
        "changed since",
        "being deleted",
        "two open attempts",
        "no open attempt",
        "complete before status has it",
    ],
)
def test_only_an_undisturbed_job_needs_no_live_reads(
    job: dict[str, Any], child: dict[str, Any] | None, is_enough: bool
) -> None:
    found = cached_view_of(job, child)
    assert (found is not None) is is_enough
    if found is not None:
        assert found.job == job
        assert found.children == (() if child is None else (child,))


@pytest.mark.parametrize(
    ("pod", "is_enough"),
    [
        (make_pod(), True),
        (None, False),
        (make_pod("uid-prepare"), False),
        (make_pod(state="running"), False),
        ({**make_pod(), "status": {}}, False),
    ],
    ids=["its rank 0", "not seen yet", "of the previous stage", "no message", "empty message"],
)
def test_pods_are_read_unless_the_final_message_was_seen(pod: dict[str, Any] | None, is_enough: bool) -> None:
    found = cached_view_of(WAITS, make_child(), pod)
    assert found is not None
    assert found.pods == ((pod,) if is_enough else None)


def test_a_cached_view_is_used_once() -> None:
    table = JobCache()
    table.record(KEY, NEW)
    assert table.cached_view(KEY) is not None
    assert table.cached_view(KEY) is None


def test_a_version_that_we_wrote_is_newer_than_earlier_and_delayed_events() -> None:
    table = JobCache()
    table.record(KEY, NEW)
    table.record_write(KEY, make_object(("train", ""), version="6"))
    table.record_child(KEY, make_child())
    found = table.cached_view(KEY)
    assert found is not None
    assert found.job["metadata"]["resourceVersion"] == "6"

    table.record_write(KEY, make_object(("train", ""), version="7"))
    table.record(KEY, make_object(("train", ""), version="6"))
    table.record_child(KEY, make_child())
    assert table.cached_view(KEY) is None, "older than our own or newer: only a live read can tell"


def test_nothing_is_kept_of_deleted_objects() -> None:
    table = JobCache()
    table.record(KEY, WAITS)
    table.record_child(KEY, make_child())
    table.record_pod(KEY, make_pod())
    table.remove(KEY)
    table.record(KEY, WAITS)
    assert table.cached_view(KEY) is None
