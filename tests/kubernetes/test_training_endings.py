"""A user ends a job whose pods train: deletes it, makes it anew, suspends it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_api.exit_codes import ExitCode
from training_site import GRACE_SECONDS, Job, Pod, Site, attempts_at, is_in_phase

FINALIZER = "finetune.test/seen"


@contextmanager
def kept_in_sight(site: Site, attempt: str) -> Iterator[None]:
    """The pods of an attempt stay as objects when they are over and deleted, until the block ends."""
    names = [pod["metadata"]["name"] for pod in site.pods_of(attempt).values()]
    held = json.dumps({"metadata": {"finalizers": ["batch.kubernetes.io/job-tracking", FINALIZER]}})
    for name in names:
        site.kubectl("patch", f"pod/{name}", "--type=merge", f"--patch={held}")
    try:
        yield
    finally:
        for name in names:
            site.kubectl("patch", f"pod/{name}", "--type=merge", '--patch={"metadata": {"finalizers": null}}')


def uid_of(job: Job | Pod) -> str:
    return str(job["metadata"]["uid"])


def test_a_deleted_job_ends_its_pods_in_their_grace_and_its_successor_starts_anew(site: Site) -> None:
    """The pods of the first object are still there, as pods that take their time, while the second one trains."""
    site.kubectl.apply(site.long_job("twice"))
    old = site.until_saved("twice")
    old_pods = site.pods_of("twice-r1-train-a1")
    with kept_in_sight(site, "twice-r1-train-a1"):
        site.kubectl("delete", "ftj/twice", f"--timeout={GRACE_SECONDS}s")
        site.kubectl.apply(site.job("twice"))
        new = site.until("twice", "Complete")
        assert exit_codes_of(old_pods, site) == [ExitCode.STOPPED] * 2, (
            "told to end, they saved and ended by themselves"
        )

    assert uid_of(new) != uid_of(old)
    assert [(entry["stage"], entry["number"], entry["outcome"]) for entry in new["status"]["run"]["attempts"]] == [
        ("prepare", 1, "Succeeded"),
        ("train", 1, "Succeeded"),
        ("evaluate", 1, "Succeeded"),
    ]
    assert "resumedFromStep" not in attempts_at(new, "train")[0]
    assert (new["status"]["run"]["disruptions"], new["status"]["run"]["progress"]["percent"]) == (0, 100)
    owners = site.kubectl.json("get", "jobs", "--selector=finetune.dev/job=twice")["items"]
    assert {job["metadata"]["ownerReferences"][0]["uid"] for job in owners} == {uid_of(new)}

    site.kubectl("delete", "ftj/twice")
    site.until_no_children("twice")


def exit_codes_of(pods: dict[str, Pod], site: Site) -> list[int]:
    """How these pods have ended, now."""
    names = {pod["metadata"]["name"] for pod in pods.values()}
    listed = site.kubectl.json("get", "pods", "--selector=finetune.dev/job=twice")["items"]
    found = [pod["status"]["containerStatuses"][0]["state"] for pod in listed if pod["metadata"]["name"] in names]
    return [state["terminated"]["exitCode"] for state in found]


def test_a_suspended_job_saves_first_and_goes_on_from_there(site: Site) -> None:
    site.kubectl.apply(site.long_job("resting"))
    site.until_saved("resting")
    site.kubectl("patch", "ftj/resting", "--type=merge", '--patch={"spec": {"suspend": true}}')
    job = site.when("resting", is_in_phase("Suspended"), "suspended")
    saved = job["status"]["run"]["lastCheckpoint"]["step"]
    (stopped,) = attempts_at(job, "train")
    assert (stopped["outcome"], stopped["lastStep"]) == ("Stopped", saved)
    assert (job["status"]["run"]["restarts"], job["status"]["run"]["disruptions"]) == (0, 0)
    assert not [name for name in site.children("resting") if "-train-" in name]

    site.kubectl("patch", "ftj/resting", "--type=merge", '--patch={"spec": {"suspend": false}}')
    job = site.until("resting", "Complete")
    assert [entry.get("resumedFromStep") for entry in attempts_at(job, "train")] == [None, saved]
    assert {"Suspending", "Suspended", "Restarting", "Succeeded"} <= set(site.events("resting"))
