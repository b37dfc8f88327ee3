"""Why pods are not running, in the words of scheduler and kubelet."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from finetune_operator.observed import ObservedAttempt, ObservedPod
from finetune_operator.policy.waiting import (
    START_GRACE,
    explanation,
    idle_pods,
    next_check_seconds,
    queue_message,
    unexplained,
)
from observations import STAMP, make_pod, make_stage

LATE = datetime.fromisoformat(STAMP) + START_GRACE


def pod(index: int = 0, phase: str = "Pending", waiting: str = "") -> ObservedPod:
    return make_pod(index, phase=phase, waiting=waiting)


def stage(*pods: ObservedPod, expected: int = 2, **fields: Any) -> ObservedAttempt:
    return make_stage(job_name="job", pods=pods, expected_pods=expected, **fields)


@pytest.mark.parametrize(
    ("found", "now", "idle"),
    [
        (stage(pod(0), pod(1)), LATE - timedelta(seconds=1), None),
        (stage(pod(0), pod(1)), LATE, ["pod-0", "pod-1"]),
        (stage(pod(0, "Running"), pod(1)), LATE, ["pod-1"]),
        (stage(pod(0, "Running"), pod(1, "Running")), LATE, None),
        (stage(pod(0, "Running"), pod(1, "Succeeded")), LATE, None),
        (stage(), LATE, []),
        (stage(deleting=True), LATE, None),
        (stage(failed=True), LATE, None),
        (stage(suspended=True, queue="team"), LATE, None),
        (stage(pod(0), pod(1), started_at="2026-01-01T12:00:01Z"), LATE, None),
    ],
    ids=["early", "both", "one", "none", "ended", "not created", "being deleted", "over", "queued", "admitted later"],
)
def test_pods_that_are_late_are_found(found: ObservedAttempt, now: datetime, idle: list[str] | None) -> None:
    late = idle_pods(found, now)
    assert (None if late is None else [one.name for one in late]) == idle


@pytest.mark.parametrize(
    ("queue", "reported", "message"),
    [
        ("team", "LocalQueue team doesn't exist", "job waits in the queue team: LocalQueue team doesn't exist"),
        ("team", "", "job waits in the queue team: Kueue has not reported a reason; check that it is installed"),
        ("", "", "job is suspended, but not by this operator: whoever suspended it must resume it"),
    ],
)
def test_a_suspended_job_is_reported_with_the_reason_of_its_queue(queue: str, reported: str, message: str) -> None:
    assert queue_message(stage(suspended=True, queue=queue), reported).startswith(message)


def warning(name: str, message: str) -> dict[str, Any]:
    return {"involvedObject": {"name": name}, "message": message}


@pytest.mark.parametrize(
    ("pods", "warnings", "line"),
    [
        (
            [pod(0, waiting="Unschedulable: 0/2 nodes are available")],
            [],
            "pod-0: Unschedulable: 0/2 nodes are available",
        ),
        (
            [pod(0, waiting="ImagePullBackOff: not found")],
            [warning("pod-0", "x")],
            "pod-0: ImagePullBackOff: not found",
        ),
        (
            [pod(0, waiting="ContainerCreating")],
            [warning("pod-0", "secret s not found")],
            "pod-0: secret s not found",
        ),
        ([pod(0)], [], "pod-0: not started yet"),
        ([], [warning("job", "exceeded quota")], "exceeded quota"),
        ([], [], "the Job controller has not created the other pods yet"),
    ],
)
def test_the_reason_is_reported_from_the_component_that_knows_it(
    pods: list[ObservedPod], warnings: list[dict[str, Any]], line: str
) -> None:
    reported = explanation(stage(*pods), pods, warnings).splitlines()
    assert reported == ["0 of 2 pods of job are running", line]


@pytest.mark.parametrize(
    ("has_gang", "nodes", "says_so"),
    [(True, ("", ""), True), (True, ("node-a", ""), False), (False, ("", ""), False), (True, (), False)],
    ids=["none placed", "one placed", "no gang", "not created"],
)
def test_the_gang_is_named_while_none_of_its_pods_is_placed(
    has_gang: bool, nodes: tuple[str, ...], says_so: bool
) -> None:
    pods = [make_pod(index, phase="Pending", node=node) for index, node in enumerate(nodes)]
    first, *_ = explanation(stage(*pods, has_gang=has_gang), pods, []).splitlines()
    named = "; PodGroup job waits until enough of them can be placed on nodes together" if says_so else ""
    assert first == f"0 of 2 pods of job are running{named}"


@pytest.mark.parametrize(
    ("pods", "names"),
    [
        ([pod(0, waiting="Unschedulable: 0/2 nodes are available"), pod(1, waiting="ImagePullBackOff: no")], ()),
        ([pod(0, waiting="Unschedulable: no"), pod(1, waiting="ContainerCreating")], ("pod-1",)),
        ([pod(index) for index in range(5)], ("pod-0", "pod-1", "pod-2")),
        ([], ("job",)),
    ],
    ids=["all said", "one silent", "all silent", "not created"],
)
def test_events_are_read_only_for_pods_without_a_reason(pods: list[ObservedPod], names: tuple[str, ...]) -> None:
    """A pod that fits on no node may wait for days."""
    assert unexplained(stage(*pods), pods) == names


@pytest.mark.parametrize(("waited", "wait"), [(0, 0.0), (20, 5.0), (60, 15.0), (3600, 30.0)])
def test_pods_that_have_waited_long_are_checked_less_often(waited: float, wait: float) -> None:
    now = datetime.fromisoformat(STAMP) + timedelta(seconds=waited)
    assert next_check_seconds(stage(created_at=STAMP), now) == wait
