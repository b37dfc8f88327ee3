"""A node goes while its pods train: the job goes on elsewhere, and the node brings nothing back."""

from typing import Any

from testcluster.daemons import until
from testcluster.nodes import Node
from training_site import PATIENCE, Site, attempts_at

NAME = "survivor"
LOST, NEXT = f"{NAME}-r1-train-a1", f"{NAME}-r1-train-a2"


def lose_a_node(site: Site, name: str, **spec: Any) -> str:
    """Kill the node of worker 1 of a job that trains, once it has saved; the node's name."""
    site.kubectl.apply(site.long_job(name, **spec))
    site.until_saved(name)
    node = str(site.pods_of(f"{name}-r1-train-a1")["1"]["spec"]["nodeName"])
    site.cluster.kill_node(node)
    return node


def has_next_attempt(job: dict[str, Any]) -> bool:
    return any(attempt["jobName"] == NEXT for attempt in job["status"]["run"]["attempts"])


def until_idle(node: Node) -> None:
    """No container runs there any more."""
    listing = ("ctr", "--namespace=k8s.io", "tasks", "list", "--quiet")
    until(lambda: not node.inside(*listing).split(), within=60, what=f"no container runs on {node.name}")


def test_a_lost_node_costs_an_attempt_and_nothing_else(site: Site) -> None:
    lost_node = lose_a_node(site, NAME)
    try:
        job = site.when(NAME, has_next_attempt, "the next attempt")
        assert job["status"]["run"]["failure"]["class"] == "NodeLost"
        assert job["status"]["run"]["failure"]["node"] == lost_node
        job = site.until(NAME, "Complete")
        places = {pod["spec"]["nodeName"] for pod in site.pods_of(NEXT).values()}
        assert places == set(site.cluster.nodes) - {lost_node}
    finally:
        site.cluster.restart_node(lost_node)

    # What it cost: the steps since the last checkpoint, and no restart.
    first, second = attempts_at(job, "train")
    assert (first["outcome"], first["reason"], second["outcome"]) == ("Disruption", "NodeLost", "Succeeded")
    assert 10 <= second["resumedFromStep"] <= first["lastStep"]
    assert (job["status"]["run"]["restarts"], job["status"]["run"]["disruptions"]) == (0, 1)
    told = site.events(NAME)["AttemptFailed"]
    assert told.startswith(f"train attempt 1 failed: NodeLost in {LOST}-1")
    assert f" on {lost_node}: " in told
    assert site.events(NAME)["Resumed"].startswith(f"train attempt 2 resumes at step {second['resumedFromStep']}, ")
    claims = site.store.list(f"{job['status']['run']['artifact']['uri'].rpartition('/')[0]}/attempts/")
    assert [claim.uri.rpartition("/")[2] for claim in claims] == ["1.json", "2.json"]

    # The node is back: what was left of the attempt there goes, and changes nothing.
    site.kubectl("wait", "--for=delete", f"job/{LOST}", f"--timeout={PATIENCE:.0f}s", within=PATIENCE + 10)
    selected = f"--selector=batch.kubernetes.io/job-name={LOST}"
    site.kubectl("wait", "--for=delete", "pods", selected, f"--timeout={PATIENCE:.0f}s", within=PATIENCE + 10)
    until_idle(site.cluster.nodes[lost_node])
    assert not [name for name in site.children(NAME) if name.rpartition("/")[2].startswith(LOST)]
    assert site.kubectl.json("get", f"ftj/{NAME}")["status"] == job["status"]


def test_a_job_shrinks_when_a_node_is_lost_and_grows_at_the_restart_after_it_is_back(site: Site) -> None:
    """Each of the two nodes has room for one of its pods."""
    name = "elastic"
    workers = {"minNodes": 1, "startTimeout": "20s", "resources": {"requests": {"cpu": "1100m"}}}
    lost_node = lose_a_node(site, name, workers=workers, training={"epochs": 40})
    try:
        site.when(name, lambda job: len(attempts_at(job, "train")) == 3, "an attempt with what is left")
    finally:
        site.cluster.restart_node(lost_node)
    resumed = attempts_at(site.when(name, trains_alone, "a step with one worker"), "train")[2]["resumedFromStep"]
    site.until_saved(name, resumed + 10)
    (alone,) = site.pods_of(f"{name}-r1-train-a3").values()
    assert alone["spec"]["nodeName"] != lost_node
    site.kubectl("delete", "pod", alone["metadata"]["name"], "--wait=false")

    job = site.until(name, "Complete")
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
    assert site.events(name)["FewerWorkers"].endswith("startTimeout of 20s; the next attempt starts with 1")
    assert {pod["spec"]["nodeName"] for pod in site.pods_of(f"{name}-r1-train-a4").values()} == set(site.cluster.nodes)


def trains_alone(job: dict[str, Any]) -> bool:
    attempts = attempts_at(job, "train")
    return len(attempts) == 3 and attempts[2]["plan"]["nodes"] == 1 and "resumedFromStep" in attempts[2]
