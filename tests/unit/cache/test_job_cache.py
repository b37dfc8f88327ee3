"""Which objects need a reconcile, according to watch events."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api import constants
from finetune_operator.cache.job_cache import JobCache, has_news
from finetune_operator.controller.child_watches import Children
from finetune_operator.controller.handlers import schedule
from finetune_operator.controller.queue import KeyedQueue
from finetune_operator.manifests import JobKey

KEY, OTHER = JobKey("ml", "a"), JobKey("ml", "b")


def shown(version: str = "1", *, over: str = "", observed: int = 1, **spec: Any) -> dict[str, Any]:
    conditions = [{"type": over, "status": "True"}] if over else []
    status = {"conditions": conditions, "observedGeneration": observed}
    return {"metadata": {"resourceVersion": version, "generation": 1}, "spec": spec, "status": status}


def with_status(body: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {**body, "status": {**body["status"], **status}}


def with_condition(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return with_status(body, conditions=[*body["status"]["conditions"], {"type": kind, "status": "True"}])


@pytest.mark.parametrize(
    ("body", "needed"),
    [
        (shown(), True),
        (shown(over="Complete"), False),
        (shown(over="Failed"), False),
        (shown(over="Complete", observed=0), True),
        (shown(over="Complete", ttlSecondsAfterFinished=60), True),
        (with_status(shown(over="Complete"), phase="Invalid"), True),
        (with_condition(shown(over="Complete"), "Reconciling"), True),
        ({"metadata": {"resourceVersion": "1", "generation": 1}, "spec": {}}, True),
        ({"metadata": {"resourceVersion": "1", "generation": 1}, "spec": {}, "status": {"conditions": None}}, True),
    ],
    ids=[
        "runs",
        "complete",
        "failed",
        "changed since",
        "children to be deleted",
        "edit refused",
        "other run waits",
        "new",
        "no conditions yet",
    ],
)
def test_only_a_settled_job_needs_no_reconcile(body: dict[str, Any], needed: bool) -> None:
    table = JobCache()
    table.record(KEY, body)
    assert table.needs_reconcile(KEY) is needed
    assert table.is_settled(KEY) is not needed


def finished(due: str | None = "2026-01-01T12:01:00Z", **run: Any) -> dict[str, Any]:
    """A finished job whose children are to be deleted at a time."""
    body = shown(over="Complete", ttlSecondsAfterFinished=60)
    body["status"] |= {"run": run, "dueTime": due}
    return body


def test_a_finished_job_is_not_reconciled_until_its_children_are_due_nor_after_their_deletion() -> None:
    """Otherwise thousands of them would be read when an operator starts."""
    now = datetime(2026, 1, 1, 12, 0, 20, tzinfo=UTC)
    table = JobCache(lambda: now)
    table.record(KEY, finished())
    assert (table.needs_reconcile(KEY), table.seconds_until_due(KEY), table.unsettled()) == (False, 40.0, ())
    assert table.is_settled(KEY), "events of children do not matter until then"
    assert table.cached_view(KEY) is None, "no object is kept for it"
    now += timedelta(seconds=41)
    assert (table.needs_reconcile(KEY), table.seconds_until_due(KEY), table.unsettled()) == (True, None, (KEY,))
    assert not table.is_settled(KEY), "the end of a deleted child requires a reconcile"
    table.record(KEY, finished(childrenRemoved=True))
    assert (table.needs_reconcile(KEY), table.seconds_until_due(KEY), table.is_settled(KEY)) == (False, None, True)


@pytest.mark.parametrize("due", ["", "yesterday", None])
def test_a_finished_job_without_a_readable_due_time_is_reconciled(due: Any) -> None:
    table = JobCache()
    table.record(KEY, finished(due))
    assert table.needs_reconcile(KEY)


@pytest.mark.parametrize(
    ("phase", "stage", "ready", "is_news"),
    [
        ("Pending", "train", 1, True),
        ("Pending", "train", 0, False),
        ("Training", "train", 1, False),
        ("Pending", "", 1, False),
    ],
)
def test_a_running_pod_is_relevant_for_a_job_that_waits_for_its_pods(
    phase: str, stage: str, ready: int, is_news: bool
) -> None:
    async def scenario() -> int:
        table, queue = JobCache(), KeyedQueue[JobKey]()
        body = shown()
        body["status"] |= {"phase": phase, "run": {"stage": stage}}
        table.record(KEY, body)
        job = child(namespace=KEY.namespace) | {"status": {"ready": ready}}
        job["metadata"]["labels"] = {constants.LABEL_JOB: KEY.name}
        Children(queue, table, lambda _: None).job_shown("MODIFIED", job)
        return queue.later

    assert asyncio.run(scenario()) == int(is_news)


def child(*conditions: tuple[str, str], **metadata: str) -> dict[str, Any]:
    reported = [{"type": kind, "status": status} for kind, status in conditions]
    return {"metadata": metadata, "status": {"conditions": reported} if reported else {}}


@pytest.mark.parametrize(
    ("event", "job", "news"),
    [
        ("ADDED", child(), False),
        ("MODIFIED", child(("FailureTarget", "True")), True),
        ("MODIFIED", child(("FailureTarget", "False"), ("Complete", "False")), False),
        ("MODIFIED", child(("SuccessCriteriaMet", "True"), ("Complete", "True")), True),
        ("MODIFIED", child(("Failed", "True")), True),
        ("MODIFIED", child(deletionTimestamp="2026-01-01T00:00:00Z"), True),
        ("DELETED", child(), True),
        ("MODIFIED", {"metadata": {}}, False),
    ],
    ids=["created", "fails", "runs", "complete", "failed", "goes", "gone", "without status"],
)
def test_an_event_of_a_child_is_relevant_if_it_failed_or_ended(event: str, job: dict[str, Any], news: bool) -> None:
    assert has_news(event, job) is news


def test_children_wait_for_the_first_event_of_their_object() -> None:
    table = JobCache()
    assert table.is_settled(KEY)
    table.record(KEY, shown())
    assert not table.is_settled(KEY)


def test_our_own_last_write_needs_no_reconcile_but_any_other_write_does() -> None:
    table = JobCache()
    table.record_write(KEY, shown("7"))
    table.record(KEY, shown("7"))
    assert not table.needs_reconcile(KEY)
    table.record(KEY, shown("8"))
    assert table.needs_reconcile(KEY)


def test_a_list_reveals_missed_watch_events() -> None:
    table = JobCache()
    table.record(KEY, shown("1"))
    before = table.versions()
    assert table.missed(before, {KEY: "1"}) == ()
    assert table.missed(before, {KEY: "2"}) == (KEY,)
    assert table.missed(before, {KEY: "1", OTHER: "1"}) == (OTHER,)
    assert table.missed(before, {}) == (KEY,)
    table.remove(KEY)
    assert table.missed(table.versions(), {}) == ()


@pytest.mark.parametrize("listed", [{KEY: "1"}, {KEY: "2"}, {}], ids=["before it", "in between", "created since"])
def test_a_change_during_the_list_is_not_missed(listed: dict[JobKey, str]) -> None:
    table = JobCache()
    if listed:
        table.record(KEY, shown("1"))
    before = table.versions()
    table.record(KEY, shown("3"))
    assert table.missed(before, listed) == ()


def test_a_deletion_during_the_list_is_not_missed() -> None:
    table = JobCache()
    table.record(KEY, shown("1"))
    before = table.versions()
    table.remove(KEY)
    assert table.missed(before, {KEY: "1"}) == ()
    assert table.missed(before, {KEY: "2"}) == ()


def test_a_job_that_has_not_finished_is_unsettled() -> None:
    table = JobCache()
    table.record(KEY, shown())
    table.record(OTHER, shown(over="Complete"))
    assert table.unsettled() == (KEY,)


def test_a_standby_reconciles_nothing_keeps_no_objects_and_knows_all_jobs_when_it_takes_over() -> None:
    new = {"metadata": {"resourceVersion": "1", "generation": 1}, "spec": {}}

    async def scenario() -> KeyedQueue[JobKey]:
        queue = KeyedQueue[JobKey]()
        children = Children(queue, table, lambda _: None)
        table.record(KEY, new)
        table.record(OTHER, finished((datetime.now(UTC) + timedelta(hours=1)).isoformat()))
        ended = child(("Complete", "True"), namespace=KEY.namespace)
        ended["metadata"]["labels"] = {constants.LABEL_JOB: KEY.name}
        children.job_shown("MODIFIED", ended)
        children.pod_shown("MODIFIED", ended)
        children.add_unsettled()
        for key in table.versions():
            schedule(queue, table, key)
        return queue

    table = JobCache(is_standby=True)
    queue = asyncio.run(scenario())
    assert (len(queue), queue.later) == (0, 0)
    assert table.phases()["Pending"] == 2, "its cache is warm"
    table.is_standby = False
    assert table.cached_view(KEY) is None, "the first reconcile of a new leader reads live"
    queue = asyncio.run(scenario())
    assert (len(queue), queue.later) == (1, 1)
