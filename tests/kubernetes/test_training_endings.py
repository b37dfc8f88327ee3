"""A user ends a job whose pods train: deletes it, creates it again, suspends it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_api.exit_codes import ExitCode
from training_setup import GRACE_SECONDS, Job, Pod, TrainingSetup, attempts_at, is_in_phase

FINALIZER = "finetune.test/seen"


@contextmanager
def kept_with_finalizers(setup: TrainingSetup, attempt: str) -> Iterator[None]:
    """Keep the pods of an attempt as objects after their end and deletion, until the block ends."""
    names = [pod["metadata"]["name"] for pod in setup.pods_of(attempt).values()]
    held = json.dumps({"metadata": {"finalizers": ["batch.kubernetes.io/job-tracking", FINALIZER]}})
    for name in names:
        setup.kubectl("patch", f"pod/{name}", "--type=merge", f"--patch={held}")
    try:
        yield
    finally:
        for name in names:
            setup.kubectl("patch", f"pod/{name}", "--type=merge", '--patch={"metadata": {"finalizers": null}}')


def uid_of(job: Job | Pod) -> str:
    return str(job["metadata"]["uid"])


def test_a_deleted_job_ends_its_pods_in_their_grace_period_and_its_successor_starts_from_the_beginning(
    setup: TrainingSetup,
) -> None:
    """The pod objects of the first job still exist, like slowly terminating pods, while the second one trains."""
    setup.kubectl.apply(setup.long_job("twice", training={"epochs": 1000}))  # never completes before it is deleted
    old = setup.until_saved("twice")
    old_pods = setup.pods_of("twice-r1-train-a1")
    with kept_with_finalizers(setup, "twice-r1-train-a1"):
        setup.kubectl("delete", "ftj/twice", f"--timeout={GRACE_SECONDS}s")
        setup.kubectl.apply(setup.job("twice"))
        new = setup.until("twice", "Complete")
        assert exit_codes_of(old_pods, setup) == [ExitCode.STOPPED] * 2, "they saved and exited after SIGTERM"

    assert uid_of(new) != uid_of(old)
    assert [(entry["stage"], entry["number"], entry["outcome"]) for entry in new["status"]["run"]["attempts"]] == [
        ("prepare", 1, "Succeeded"),
        ("train", 1, "Succeeded"),
        ("evaluate", 1, "Succeeded"),
    ]
    assert "resumedFromStep" not in attempts_at(new, "train")[0]
    assert (new["status"]["run"]["disruptions"], new["status"]["run"]["progress"]["percent"]) == (0, 100)
    owners = setup.kubectl.json("get", "jobs", "--selector=finetune.dev/job=twice")["items"]
    assert {job["metadata"]["ownerReferences"][0]["uid"] for job in owners} == {uid_of(new)}

    setup.kubectl("delete", "ftj/twice")
    setup.until_no_children("twice")


def exit_codes_of(pods: dict[str, Pod], setup: TrainingSetup) -> list[int]:
    """Current exit codes of these pods."""
    names = {pod["metadata"]["name"] for pod in pods.values()}
    listed = setup.kubectl.json("get", "pods", "--selector=finetune.dev/job=twice")["items"]
    found = [pod["status"]["containerStatuses"][0]["state"] for pod in listed if pod["metadata"]["name"] in names]
    return [state["terminated"]["exitCode"] for state in found]


def test_a_suspended_job_saves_first_and_resumes_from_there(setup: TrainingSetup) -> None:
    setup.kubectl.apply(setup.long_job("resting"))
    setup.until_saved("resting")
    setup.kubectl("patch", "ftj/resting", "--type=merge", '--patch={"spec": {"suspend": true}}')
    job = setup.when("resting", is_in_phase("Suspended"), "suspended")
    saved = job["status"]["run"]["lastCheckpoint"]["step"]
    (stopped,) = attempts_at(job, "train")
    assert (stopped["outcome"], stopped["lastStep"]) == ("Stopped", saved)
    assert (job["status"]["run"]["restarts"], job["status"]["run"]["disruptions"]) == (0, 0)
    assert not [name for name in setup.children("resting") if "-train-" in name]

    setup.kubectl("patch", "ftj/resting", "--type=merge", '--patch={"spec": {"suspend": false}}')
    job = setup.until("resting", "Complete")
    assert [entry.get("resumedFromStep") for entry in attempts_at(job, "train")] == [None, saved]
    assert {"Suspending", "Suspended", "Restarting", "Succeeded"} <= set(setup.events("resting"))
