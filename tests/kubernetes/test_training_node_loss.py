"""A node is lost while its pods train: the job continues elsewhere, and the returning node changes nothing."""

from typing import Any

from testcluster.daemons import until
from testcluster.nodes import Node
from training_setup import TIMEOUT_SECONDS, TrainingSetup, attempts_at

NAME = "survivor"
LOST, NEXT = f"{NAME}-r1-train-a1", f"{NAME}-r1-train-a2"


def lose_a_node(setup: TrainingSetup, name: str, **spec: Any) -> str:
    """Kill the node of worker 1 of a training job after a save; returns the name of the node."""
    setup.kubectl.apply(setup.long_job(name, **spec))
    setup.until_saved(name)
    node = str(setup.pods_of(f"{name}-r1-train-a1")["1"]["spec"]["nodeName"])
    setup.cluster.kill_node(node)
    return node


def has_next_attempt(job: dict[str, Any]) -> bool:
    return any(attempt["jobName"] == NEXT for attempt in job["status"]["run"]["attempts"])


def until_idle(node: Node) -> None:
    """Wait until no container runs on the node."""
    listing = ("ctr", "--namespace=k8s.io", "tasks", "list", "--quiet")
    until(lambda: not node.inside(*listing).split(), within=60, what=f"no container runs on {node.name}")


def test_a_lost_node_costs_only_an_attempt(setup: TrainingSetup) -> None:
    lost_node = lose_a_node(setup, NAME)
    try:
        job = setup.when(NAME, has_next_attempt, "the next attempt")
        assert job["status"]["run"]["failure"]["class"] == "NodeLost"
        assert job["status"]["run"]["failure"]["node"] == lost_node
        job = setup.until(NAME, "Complete")
        places = {pod["spec"]["nodeName"] for pod in setup.pods_of(NEXT).values()}
        assert places == set(setup.cluster.nodes) - {lost_node}
    finally:
        setup.cluster.restart_node(lost_node)

    # The cost: the steps since the last checkpoint, and no restart.
    first, second = attempts_at(job, "train")
    assert (first["outcome"], first["reason"], second["outcome"]) == ("Disruption", "NodeLost", "Succeeded")
    assert 10 <= second["resumedFromStep"] <= first["lastStep"]
    assert (job["status"]["run"]["restarts"], job["status"]["run"]["disruptions"]) == (0, 1)
    reported = setup.events(NAME)["AttemptFailed"]
    assert reported.startswith(f"train attempt 1 failed: NodeLost in {LOST}-1")
    assert f" on {lost_node}: " in reported
    assert setup.events(NAME)["Resumed"].startswith(f"train attempt 2 resumes at step {second['resumedFromStep']}, ")
    claims = setup.store.list(f"{job['status']['run']['artifact']['uri'].rpartition('/')[0]}/attempts/")
    assert [claim.uri.rpartition("/")[2] for claim in claims] == ["1.json", "2.json"]

    # The node is back: the remains of the attempt on it are removed without effect.
    setup.kubectl(
        "wait", "--for=delete", f"job/{LOST}", f"--timeout={TIMEOUT_SECONDS:.0f}s", within=TIMEOUT_SECONDS + 10
    )
    selected = f"--selector=batch.kubernetes.io/job-name={LOST}"
    setup.kubectl(
        "wait", "--for=delete", "pods", selected, f"--timeout={TIMEOUT_SECONDS:.0f}s", within=TIMEOUT_SECONDS + 10
    )
    until_idle(setup.cluster.nodes[lost_node])
    assert not [name for name in setup.children(NAME) if name.rpartition("/")[2].startswith(LOST)]
    assert setup.kubectl.json("get", f"ftj/{NAME}")["status"] == job["status"]


def test_a_job_shrinks_after_a_lost_node_and_grows_at_the_restart_after_its_return(setup: TrainingSetup) -> None:
    """Each of the two nodes has capacity for one of its pods."""
    name = "elastic"
    workers = {"minNodes": 1, "startTimeout": "20s", "resources": {"requests": {"cpu": "1100m"}}}
    lost_node = lose_a_node(setup, name, workers=workers, training={"epochs": 40})
    try:
        setup.when(name, lambda job: len(attempts_at(job, "train")) == 3, "an attempt with the remaining node")
    finally:
        setup.cluster.restart_node(lost_node)
    resumed = attempts_at(setup.when(name, trains_alone, "a step with one worker"), "train")[2]["resumedFromStep"]
    setup.until_saved(name, resumed + 10)
    (alone,) = setup.pods_of(f"{name}-r1-train-a3").values()
    assert alone["spec"]["nodeName"] != lost_node
    setup.kubectl("delete", "pod", alone["metadata"]["name"], "--wait=false")

    job = setup.until(name, "Complete")
    attempts = attempts_at(job, "train")
    assert [(each["plan"]["nodes"], each["outcome"]) for each in attempts] == [
        (2, "Disruption"),
        (2, "Stopped"),
        (1, "Disruption"),
        (2, "Succeeded"),
    ]
    assert [each["plan"].get("reason", "") for each in attempts] == ["", "", "could start 1 of 2 workers", ""]
    assert attempts[3]["resumedFromStep"] >= resumed + 10
    assert (job["status"]["run"]["restarts"], job["status"]["run"]["disruptions"]) == (0, 2)
    assert setup.events(name)["FewerWorkers"].endswith("startTimeout of 20s; the next attempt starts with 1")
    assert {pod["spec"]["nodeName"] for pod in setup.pods_of(f"{name}-r1-train-a4").values()} == set(
        setup.cluster.nodes
    )


def trains_alone(job: dict[str, Any]) -> bool:
    attempts = attempts_at(job, "train")
    return len(attempts) == 3 and attempts[2]["plan"]["nodes"] == 1 and "resumedFromStep" in attempts[2]
