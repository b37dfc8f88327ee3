"""Why pods do not run, in the words of who knows."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api.constants import Stage
from finetune_operator.manifests import rfc3339
from finetune_operator.observed import ObservedPod, ObservedStage
from finetune_operator.policy.waiting import PATIENCE, explanation, idle_pods

CREATED = datetime(2026, 1, 1, tzinfo=UTC)
LATE = CREATED + PATIENCE


def pod(index: int = 0, phase: str = "Pending", waiting: str = "") -> ObservedPod:
    return ObservedPod(
        name=f"pod-{index}",
        index=index,
        phase=phase,
        exit_code=None,
        finished_at="",
        message=None,
        raw_message="",
        disrupted=False,
        waiting=waiting,
        created_at=rfc3339(CREATED),
    )


def stage(*pods: ObservedPod, expected: int = 2, **fields: Any) -> ObservedStage:
    known = {"succeeded": False, "failed": False, "deleting": False, "ended_at": "", **fields}
    return ObservedStage(Stage.TRAIN, 1, 1, "job", "uid", rfc3339(CREATED), pods=pods, expected_pods=expected, **known)


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
    ],
    ids=["early", "both", "one", "none", "ended", "not created", "being deleted", "over"],
)
def test_pods_that_are_late_are_found(found: ObservedStage, now: datetime, idle: list[str] | None) -> None:
    late = idle_pods(found, now)
    assert (None if late is None else [one.name for one in late]) == idle


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
        ([], [], "the Job controller has not created the others yet"),
    ],
)
def test_the_reason_is_told_by_who_knows_it(pods: list[ObservedPod], warnings: list[dict[str, Any]], line: str) -> None:
    told = explanation(stage(*pods), pods, warnings).splitlines()
    assert told == ["0 of 2 pods of job run", line]
