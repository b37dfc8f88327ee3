"""Pods whose Job was deleted: they may still save, and nothing else of the run starts before they have ended."""

from datetime import UTC, datetime
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import Phase, Reason, Stage
from finetune_api.v1alpha1 import AttemptStatus, Outcome, Status
from finetune_api.validation import parse_job
from finetune_operator.observed import Observed
from finetune_operator.policy import history, runs, steps
from finetune_operator.policy import status as status_policy
from statuses import make_status

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
STAMP = "2026-01-01T12:00:00Z"
JOB = "job-r1-train-a1"


def make_manifest(name: str, uid: str, owner: str, **status: Any) -> dict[str, Any]:
    labels = {"finetune.dev/stage": "train", "finetune.dev/run": "1", "finetune.dev/attempt": "1"}
    metadata = {"name": name, "uid": uid, "labels": labels | {"batch.kubernetes.io/job-name": JOB}}
    owners = [{"uid": owner, "controller": True}] if owner else []
    return {"metadata": {**metadata, "ownerReferences": owners}, "status": status}


def make_pod(owner: str = "j1", phase: str = "Running", **metadata: Any) -> dict[str, Any]:
    pod = make_manifest(f"{JOB}-0", "p1", owner, phase=phase)
    pod["metadata"] |= metadata
    return pod


TRAINING = make_status(
    run=1,
    spec_hash="h",
    phase=Phase.TRAINING,
    stage="train",
    attempt=1,
    attempts=(AttemptStatus(stage="train", number=1, job_name=JOB, start_time=STAMP),),
)


@pytest.mark.parametrize(
    ("jobs", "pod", "orphans"),
    [
        ([], make_pod(), (JOB,)),
        ([], make_pod(owner=""), (JOB,)),
        ([make_manifest(JOB, "j1", "u1")], make_pod(), ()),
        ([make_manifest(JOB, "j2", "u1")], make_pod(), (JOB,)),
        ([], make_pod(phase="Failed"), ()),
        ([], make_pod(deletionTimestamp="2026-01-01T11:59:50Z"), (JOB,)),
        ([], make_pod(deletionTimestamp="2026-01-01T11:59:00Z"), ()),
    ],
    ids=["deleted", "deleted, pods orphaned", "exists", "created again", "ended", "within its grace", "lost"],
)
def test_pods_that_outlive_their_job_are_detected(
    jobs: list[dict[str, Any]], pod: dict[str, Any], orphans: tuple[str, ...]
) -> None:
    assert Observed.from_manifests("u1", jobs, [pod], now=NOW).orphans == orphans


def test_pods_of_an_earlier_job_of_the_same_name_are_not_those_of_the_current_one() -> None:
    (stage,) = Observed.from_manifests("u1", [make_manifest(JOB, "j2", "u1")], [make_pod()], now=NOW).attempts
    assert stage.pods == ()


@pytest.mark.parametrize("suspend", [False, True])
def test_nothing_starts_before_they_have_ended(suspend: bool) -> None:
    spec = parse_job(make_job(suspend=suspend)).spec
    run = runs.Run(1, "h", is_new=False)

    def look(observed: Observed, before: Status) -> tuple[Status, steps.Step]:
        status = history.apply_observation(before, run, observed, None, STAMP)
        return status, steps.decide(spec, run, status, observed, now=NOW, max_backoff_seconds=300)

    status, decision = look(Observed((), (JOB,)), TRAINING)
    assert decision == steps.WaitForOrphanPods((JOB,))
    assert status.run.attempts[-1].outcome is None
    reported = status_policy.status_after(status, decision, generation=1, now=STAMP)
    ready = next(entry for entry in reported.conditions if entry.type == "Ready")
    assert (reported.phase, ready.reason) == (Phase.TRAINING, Reason.TRAINING)
    assert ready.message == f"{JOB} was deleted; the next attempt waits until its pods have ended"

    status, decision = look(Observed(()), reported)
    assert status.run.attempts[-1].outcome is Outcome.STOPPED
    assert decision == (steps.StaySuspended() if suspend else steps.Start(Stage.TRAIN, 2))


def test_a_new_object_waits_for_the_pods_of_an_old_one_of_its_name() -> None:
    run = runs.Run(1, "h", is_new=True)
    observed = Observed((), (JOB,))
    status = history.apply_observation(Status(), run, observed, None, STAMP)
    decision = steps.decide(parse_job(make_job()).spec, run, status, observed, now=NOW, max_backoff_seconds=300)
    assert decision == steps.WaitForOrphanPods((JOB,))
    reported = status_policy.status_after(status, decision, generation=1, now=STAMP)
    assert (reported.phase, reported.run.attempts) == (Phase.PENDING, ())
