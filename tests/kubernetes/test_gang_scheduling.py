"""The workers of an attempt are placed on nodes together, by the scheduler's gang scheduling."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api import constants
from finetune_api.constants import Phase, Stage
from job_namespace import JobNamespace, in_phase, is_training, run_scenario, training_ends
from simulated_kubelet import FOREVER
from testcluster.access import Kubectl, condition
from testcluster.control_plane import ControlPlane
from testcluster.existing import ExistingCluster
from testcluster.pods import PodsCluster
from training_setup import Job, TrainingSetup, attempts_at

GROUPS = f"/apis/{constants.POD_GROUP_API}/namespaces/{{namespace}}/podgroups"
LABEL = "finetune.test/gang"
"""On the nodes that a test lets workers run on."""


@pytest.fixture(autouse=True)
def gangs(control_plane: ControlPlane | ExistingCluster) -> None:
    """Skip without the API, which another cluster may not serve."""
    if isinstance(control_plane, ExistingCluster):
        found = control_plane.kubectl.run("get", "--raw", f"/apis/{constants.POD_GROUP_API}")
        if found.returncode != 0:
            pytest.skip(f"the cluster of FINETUNE_TEST_KUBECONFIG does not serve {constants.POD_GROUP_API}")


async def pod_groups(world: JobNamespace) -> dict[str, Any]:
    """Name -> PodGroup."""
    found = await world.server.request("GET", GROUPS.format(namespace=world.namespace))
    return {group["metadata"]["name"]: group for group in found["items"]}


async def until_removed(world: JobNamespace, name: str) -> None:
    """Wait for the controller that keeps a PodGroup as long as its pods are running.

    The garbage collector reads every 30 s which kinds exist, and FineTuneJob may be new.
    """
    async with asyncio.timeout(90):
        while name in await pod_groups(world):
            await asyncio.sleep(0.1)


def group_of(spec: dict[str, Any]) -> Any:
    """The PodGroup of a Job's pods."""
    return spec["template"]["spec"].get("schedulingGroup", {}).get("podGroupName")


def test_an_attempt_has_a_pod_group_that_is_deleted_with_it(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("pair", training_ends(FOREVER))
        await job.until(is_training)
        spec, name = (await world.jobs())["pair-r1-train-a1"], "pair-r1-train-a1"
        assert (await world.jobs())["pair-r1-prepare-a1"]["template"]["spec"].get("schedulingGroup") is None
        assert group_of(spec) == name
        ((found, group),) = (await pod_groups(world)).items()
        assert (found, group["spec"]["schedulingPolicy"]) == (name, {"gang": {"minCount": 2}})
        assert [owner["name"] for owner in group["metadata"]["ownerReferences"]] == ["pair"]
        before = len(job.server.calls)
        await job.step()
        assert len(job.server.calls) == before, "a second pass on the same world writes nothing"

        await world.change("pair", suspend=True)
        await job.until(in_phase(Phase.SUSPENDED))
        await until_removed(world, name)
        await world.change("pair", suspend=False)
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert status.run.attempts[-1].stage is Stage.EVALUATE
        assert set(await pod_groups(world)) == {"pair-r1-train-a2"}
        await world.remove("pair")
        await until_removed(world, "pair-r1-train-a2")

    run_scenario(admin, namespace, scenario)


@pytest.mark.parametrize("workers", [{"nodes": 1}, {"nodes": 2, "minNodes": 1}], ids=["one", "one of two"])
def test_a_worker_that_needs_no_other_is_not_in_a_gang(admin: Path, namespace: str, workers: dict[str, int]) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("alone", training_ends(FOREVER), workers=workers)
        await job.until(is_training)
        assert (group_of((await world.jobs())["alone-r1-train-a1"]), await pod_groups(world)) == (None, {})

    run_scenario(admin, namespace, scenario)


@pytest.mark.parametrize("without", ["the API", "the setting"])
def test_nothing_changes_without_the_api_or_the_setting(
    admin: Path, namespace: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without == "the API":  # the API server does not serve this version, as an older one does not serve the other
        monkeypatch.setattr(constants, "POD_GROUP_API", "scheduling.k8s.io/v1alpha1")

    async def scenario(world: JobNamespace) -> None:
        job = await world.create("older")
        job.settings = replace(job.settings, gang_scheduling=without == "the API")
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert (status.run.restarts, group_of((await world.jobs())["older-r1-train-a1"])) == (0, None)
        assert await pod_groups(world) == {}

    run_scenario(admin, namespace, scenario)


def test_the_pod_group_of_a_refused_job_is_replaced_after_a_change(
    admin: Path, namespace: str, kubectl: Kubectl
) -> None:
    """With the old one, which needs four pods, the two pods of the Job would wait forever."""
    hard = {"count/jobs.batch": "1"}
    kubectl.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "one"}, "spec": {"hard": hard}})
    kubectl.until("resourcequota/one", lambda quota: "hard" in quota.get("status", {}), within=60)

    async def scenario(world: JobNamespace) -> None:
        training = {"globalBatchSize": 8, "microBatchSize": 1}
        job = await world.create("corrected", training_ends(FOREVER), workers={"nodes": 4}, training=training)
        await job.until(lambda status: any(one.reason == "CannotCreate" for one in status.conditions))
        (group,) = (await pod_groups(world)).values()
        assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": 4}}
        await world.change("corrected", workers={"nodes": 2})
        kubectl("delete", "resourcequota", "one")
        await job.until(is_training)
        (changed,) = (await pod_groups(world)).values()
        assert changed["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}
        assert changed["metadata"]["uid"] != group["metadata"]["uid"]

    run_scenario(admin, namespace, scenario)


# ---- on nodes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_node(pods_cluster: PodsCluster) -> Iterator[Kubectl]:
    """Only node-a has the label."""
    kubectl = pods_cluster.control.kubectl
    kubectl("label", "node/node-a", f"{LABEL}=yes")
    yield kubectl
    kubectl("label", "nodes", "--all", f"{LABEL}-")


def one_per_node(name: str, **workers: Any) -> dict[str, Any]:
    """Workers on nodes with the label, each on its own node."""
    pods = {constants.LABEL_JOB: name, constants.LABEL_STAGE: Stage.TRAIN}
    apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": pods}}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    return {"nodeSelector": {LABEL: "yes"}, "affinity": affinity, **workers}


def waiting_message(job: Job) -> str:
    """The message of a job whose pods wait; empty: they do not, or not long enough."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((str(one["message"]) for one in conditions if one["reason"] == "WaitingForPods"), "")


def nodes_of(setup: TrainingSetup, attempt: str) -> list[str | None]:
    return [pod["spec"].get("nodeName") for pod in setup.pods_of(attempt).values()]


def test_no_worker_is_placed_until_there_is_room_for_all(setup: TrainingSetup, one_node: Kubectl) -> None:
    setup.kubectl.apply(setup.job("together", workers=one_per_node("together")))
    job = setup.when("together", waiting_message, "waits for pods")
    message = waiting_message(job)
    assert message.startswith("0 of 2 pods of together-r1-train-a1 are running; PodGroup together-r1-train-a1 waits")
    assert nodes_of(setup, "together-r1-train-a1") == [None, None], "the worker that fits is not placed either"
    group = setup.kubectl.json("get", "podgroup/together-r1-train-a1")
    assert condition(group, "PodGroupInitiallyScheduled") == "False"

    one_node("label", "node/node-b", f"{LABEL}=yes")
    job = setup.until("together", "Complete")
    assert sorted(map(str, nodes_of(setup, "together-r1-train-a1"))) == ["node-a", "node-b"]
    (attempt,) = attempts_at(job, "train")
    assert attempt["outcome"] == "Succeeded"


def test_a_job_with_fewer_nodes_than_requested_needs_room_for_the_fewest(
    setup: TrainingSetup, one_node: Kubectl
) -> None:
    workers = one_per_node("fewest", nodes=4, minNodes=2, startTimeout="30s")
    setup.kubectl.apply(setup.job("fewest", workers=workers))
    setup.when("fewest", waiting_message, "waits for pods")
    assert nodes_of(setup, "fewest-r1-train-a1") == [None] * 4
    one_node("label", "node/node-b", f"{LABEL}=yes")
    job = setup.until("fewest", "Complete")
    first, second = attempts_at(job, "train")
    assert (first["plan"]["nodes"], first["outcome"]) == (4, "Stopped")
    assert (second["plan"]["nodes"], second["outcome"]) == (2, "Succeeded")
