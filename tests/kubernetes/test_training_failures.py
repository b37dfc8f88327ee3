"""A worker fails on a real node: the cause is on the object soon, and remains when the pods are deleted."""

from datetime import datetime

from finetune_api.exit_codes import ExitCode
from operator_process import events_of
from training_setup import TrainingSetup, attempts_at

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
rank = child_of(child_of(1, b"finetune_trainer.supervisor.forkserver"))
"""
KILL_RANK = f"{FIND_RANK}os.kill(rank, signal.SIGKILL)"
USE_UP_MEMORY = f"""{FIND_RANK}
with open("/dev/shm/hoard", "wb") as hoard:
    while rank in processes():
        hoard.write(bytes(8 << 20))
"""
"""Like data loading or NCCL could: shared memory counts as memory of the pod. Runs until the kernel kills the rank."""
SOON_SECONDS = 60
"""Takes seconds on an idle machine; this one may be busy."""


def inside(setup: TrainingSetup, pod: str, code: str) -> None:
    """Run Python in a trainer's container, as its user. It may be killed together with its target."""
    setup.kubectl.run("exec", pod, "--container=trainer", "--", "python", "-c", code)


def seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def test_a_dead_worker_is_reported_soon_and_permanently(setup: TrainingSetup) -> None:
    setup.kubectl.apply(setup.long_job("killable", restart={"maxRestarts": 0}, ttlSecondsAfterFinished=1))
    setup.until_saved("killable")
    victim = setup.pods_of("killable-r1-train-a1")["1"]
    inside(setup, victim["metadata"]["name"], KILL_RANK)
    job = setup.until("killable", "Failed")
    failure = job["status"]["run"]["failure"]
    place = (victim["metadata"]["name"], victim["spec"]["nodeName"])
    assert (failure["class"], failure["stage"], failure["attempt"]) == ("Signal9", "train", 1)
    assert (failure["rank"], failure["pod"], failure["node"], failure["exitCode"]) == (1, *place, 137)
    error = failure["message"].splitlines()[0]
    assert error == "rank 1 was terminated by signal 9 (SIGKILL)"
    (reported,) = [event for event in events_of(setup.kubectl, "killable") if event["reason"] == "AttemptFailed"]
    assert reported["message"].startswith(f"train attempt 1 failed: Signal9 in {place[0]} on {place[1]}: {error}")
    (attempt,) = attempts_at(job, "train")
    assert seconds_between(attempt["endTime"], reported["firstTimestamp"]) < SOON_SECONDS

    setup.until_no_children("killable")
    assert setup.kubectl.json("get", "ftj/killable")["status"]["run"]["failure"] == failure
    assert setup.events("killable")["AttemptFailed"] == reported["message"]


def test_a_worker_that_fails_by_itself_reports_what_is_missing(setup: TrainingSetup) -> None:
    """The prepared dataset is deleted before the workers read it."""
    setup.kubectl.apply(setup.job("robbed"))
    setup.when("robbed", lambda job: attempts_at(job, "train"), "the data is prepared")
    for found in list(setup.store.list(f"s3://{setup.bucket}/robbed/datasets/")):
        setup.store.delete(found.uri)
    job = setup.until("robbed", "Failed")
    failure = job["status"]["run"]["failure"]
    assert (failure["class"], failure["stage"], failure["exitCode"]) == ("BadConfig", "train", ExitCode.BAD_CONFIG)
    assert failure["pod"].startswith(f"robbed-r1-train-a1-{failure['rank']}-")
    error, *last_lines = failure["message"].splitlines()
    assert f"s3://{setup.bucket}/robbed/datasets/" in error
    assert last_lines, "the last lines of the log of the rank"
    assert [attempt["outcome"] for attempt in attempts_at(job, "train")] == ["Permanent"]


def test_exhausted_memory_is_reported_as_such(setup: TrainingSetup) -> None:
    memory = {"resources": {"limits": {"memory": "1400Mi"}}, "sharedMemory": "2Gi"}
    setup.kubectl.apply(setup.long_job("greedy", workers=memory, restart={"maxRestarts": 0}))
    setup.until_saved("greedy")
    victim = setup.pods_of("greedy-r1-train-a1")["1"]["metadata"]["name"]
    inside(setup, victim, USE_UP_MEMORY)
    job = setup.until("greedy", "Failed")
    failure = job["status"]["run"]["failure"]
    assert (failure["class"], failure["rank"], failure["pod"]) == ("OutOfMemory", 1, victim)
    error = "rank 1 was killed by the kernel because the pod reached its memory limit"
    assert failure["message"].splitlines()[0] == error
    assert "spec.workers.resources.limits.memory" in failure["advice"]
    assert error in setup.events("greedy")["AttemptFailed"]
