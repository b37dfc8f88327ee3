"""A worker fails on a real node: what is known of it is on the object, soon, and stays when the pods are gone."""

from datetime import datetime

from finetune_api.exit_codes import ExitCode
from operator_process import events_of
from training_site import Site, attempts_at

FIND_RANK = """
import os, pathlib, signal
def processes():
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = (parent, (folder / "cmdline").read_bytes())
        except OSError:
            continue
    return found
def child_of(parent, word=b""):
    (pid,) = [pid for pid, (above, command) in processes().items() if above == parent and word in command]
    return pid
rank = child_of(child_of(1, b"finetune_trainer.forkserver"))
"""
KILL_RANK = f"{FIND_RANK}os.kill(rank, signal.SIGKILL)"
USE_UP_MEMORY = f"""{FIND_RANK}
with open("/dev/shm/hoard", "wb") as hoard:
    while rank in processes():
        hoard.write(bytes(8 << 20))
"""
"""As data loading or NCCL could: shared memory is memory of the pod. Until the kernel has killed the rank."""
SOON_SECONDS = 60
"""Seconds on an idle machine; this one may be busy."""


def inside(site: Site, pod: str, code: str) -> None:
    """Run Python in a trainer's container, as its user. It may die with what it kills."""
    site.kubectl.run("exec", pod, "--container=trainer", "--", "python", "-c", code)


def seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def test_a_dead_worker_is_told_soon_and_for_good(site: Site) -> None:
    site.kubectl.apply(site.long_job("killable", restart={"maxRestarts": 0}, ttlSecondsAfterFinished=1))
    site.until_saved("killable")
    victim = site.pods_of("killable-r1-train-a1")["1"]
    inside(site, victim["metadata"]["name"], KILL_RANK)
    job = site.until("killable", "Failed")
    failure = job["status"]["run"]["failure"]
    place = (victim["metadata"]["name"], victim["spec"]["nodeName"])
    assert (failure["class"], failure["stage"], failure["attempt"]) == ("Signal9", "train", 1)
    assert (failure["rank"], failure["pod"], failure["node"], failure["exitCode"]) == (1, *place, 137)
    error = failure["message"].splitlines()[0]
    assert error == "rank 1 was terminated by signal 9 (SIGKILL)"
    (told,) = [event for event in events_of(site.kubectl, "killable") if event["reason"] == "AttemptFailed"]
    assert told["message"].startswith(f"train attempt 1 failed: Signal9 in {place[0]} on {place[1]}: {error}")
    (attempt,) = attempts_at(job, "train")
    assert seconds_between(attempt["endTime"], told["firstTimestamp"]) < SOON_SECONDS

    site.until_no_children("killable")
    assert site.kubectl.json("get", "ftj/killable")["status"]["run"]["failure"] == failure
    assert site.events("killable")["AttemptFailed"] == told["message"]


def test_a_worker_that_fails_by_itself_says_what_it_lacked(site: Site) -> None:
    """The prepared data set is removed before the workers read it."""
    site.kubectl.apply(site.job("robbed"))
    site.when("robbed", lambda job: attempts_at(job, "train"), "the data is prepared")
    for found in list(site.store.list(f"s3://{site.bucket}/robbed/datasets/")):
        site.store.delete(found.uri)
    job = site.until("robbed", "Failed")
    failure = job["status"]["run"]["failure"]
    assert (failure["class"], failure["stage"], failure["exitCode"]) == ("BadConfig", "train", ExitCode.BAD_CONFIG)
    assert failure["pod"].startswith(f"robbed-r1-train-a1-{failure['rank']}-")
    error, *last_lines = failure["message"].splitlines()
    assert f"s3://{site.bucket}/robbed/datasets/" in error
    assert last_lines, "what the rank's log said last"
    assert [attempt["outcome"] for attempt in attempts_at(job, "train")] == ["Permanent"]


def test_memory_that_is_used_up_is_called_by_its_name(site: Site) -> None:
    memory = {"resources": {"limits": {"memory": "1400Mi"}}, "sharedMemory": "2Gi"}
    site.kubectl.apply(site.long_job("greedy", workers=memory, restart={"maxRestarts": 0}))
    site.until_saved("greedy")
    victim = site.pods_of("greedy-r1-train-a1")["1"]["metadata"]["name"]
    inside(site, victim, USE_UP_MEMORY)
    job = site.until("greedy", "Failed")
    failure = job["status"]["run"]["failure"]
    assert (failure["class"], failure["rank"], failure["pod"]) == ("OutOfMemory", 1, victim)
    error = "rank 1 was killed by the kernel because the pod's memory was used up"
    assert failure["message"].splitlines()[0] == error
    assert "spec.workers.resources.limits.memory" in failure["advice"]
    assert error in site.events("greedy")["AttemptFailed"]
