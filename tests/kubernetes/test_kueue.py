"""Queues of the real Kueue. API server, scheduler and Kueue are real; only the pods are simulated."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.constants import ConditionType, Phase, Reason, Stage
from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1 import Status
from finetune_operator.clusters.api_server import ApiServer
from finetune_operator.manifests import JobKey
from job_namespace import JobNamespace, in_phase, is_training, run_scenario, training_ends
from operator_process import ACCOUNTS, NAME, install
from process_support import ROOT
from reconciled_job import FaultyServer, ReconciledJob
from required import is_required, unavailable
from simulated_kubelet import FOREVER, LABEL, PodEnd, Script, succeed
from testcluster import binaries
from testcluster.access import Kubectl, condition
from testcluster.control_plane import ControlPlane
from testcluster.kueue import running_kueue
from testcluster.missing import MissingError
from testcluster.run_folder import run_folder
from training_setup import fresh_namespace

pytestmark = [
    pytest.mark.skipif(not is_required("kueue"), reason="building Kueue takes minutes; `make test-kueue` does"),
    pytest.mark.usefixtures("recorded_statuses_are_understood"),
]

KUEUE = "kueue.x-k8s.io/v1beta2"
WORKLOAD = "workloads.kueue.x-k8s.io"
"""Kubernetes has another kind of this name."""
FLAVOR = "simulated"
URGENT = "urgent"
"""PriorityClass of jobs that preempt others."""


@dataclass(frozen=True)
class KueueCluster:
    """A control plane with Kueue and the operator's installation."""

    control: ControlPlane
    operator: Path
    """Kubeconfig with the permissions of the installed operator."""


@pytest.fixture(scope="module")
def kueue(pytestconfig: pytest.Config, say: Callable[[str], None]) -> Iterator[KueueCluster]:
    """A cluster of its own, because all Jobs and pods of a cluster with Kueue pass its webhooks."""
    with run_folder() as folder:
        control = ControlPlane(folder, say)
        try:
            program = binaries.built(binaries.KUEUE, say) / "kueue"
            control.start()
            with running_kueue(control, folder, program):
                install(control)
                control.kubectl.apply(
                    # As of a group of nodes: Kueue adds the labels and tolerations to the pods that it admits.
                    made(KUEUE, "ResourceFlavor", FLAVOR, spec={"nodeLabels": {LABEL: "true"}}),
                    made("scheduling.k8s.io/v1", "PriorityClass", URGENT, value=1000),
                )
                yield KueueCluster(control, control.service_account_kubeconfig(ACCOUNTS, NAME))
        except MissingError as error:
            unavailable(pytestconfig, "kueue", error)
        finally:
            control.stop()


def made(version: str, kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **fields}


@dataclass(frozen=True)
class Team:
    """A namespace with a ClusterQueue of the same name."""

    cluster: KueueCluster
    kubectl: Kubectl

    @property
    def namespace(self) -> str:
        return self.kubectl.namespace

    def create_queue(self, *, cpus: int, **others: str) -> None:
        """Create the LocalQueue `team` with a quota, also for `others` than CPUs, or for the disk of the pods."""
        quotas = {"cpu": cpus, **(others or {"ephemeral-storage": "1Ti"})}
        resources = [{"name": name, "nominalQuota": quota} for name, quota in quotas.items()]
        flavors = [{"name": FLAVOR, "resources": resources}]
        spec = {
            "namespaceSelector": {},
            "resourceGroups": [{"coveredResources": list(quotas), "flavors": flavors}],
            "preemption": {"withinClusterQueue": "LowerPriority"},
        }
        self.kubectl.apply(
            made(KUEUE, "ClusterQueue", self.namespace, spec=spec),
            made(KUEUE, "LocalQueue", "team", spec={"clusterQueue": self.namespace}),
        )

    def change_queue(self, *changes: tuple[str, Any]) -> None:
        """Replace fields of the ClusterQueue: path and value."""
        patch = json.dumps([{"op": "add", "path": f"/spec/{path}", "value": value} for path, value in changes])
        self.kubectl("patch", f"clusterqueue/{self.namespace}", "--type=json", f"--patch={patch}")

    def set_quota(self, cpus: int) -> None:
        self.change_queue(("resourceGroups/0/flavors/0/resources/0/nominalQuota", cpus))

    def workloads(self) -> dict[str, Any]:
        """Name of the owner -> Workload."""
        found = self.kubectl.json("get", WORKLOAD)["items"]
        return {one["metadata"]["ownerReferences"][0]["name"]: one for one in found}

    def until_finished(self, job: str) -> None:
        name = self.workloads()[job]["metadata"]["name"]
        self.kubectl.until(f"{WORKLOAD}/{name}", lambda found: condition(found, "Finished") == "True", within=30)

    def change_workload(self, job: str, **spec: Any) -> None:
        name = self.workloads()[job]["metadata"]["name"]
        self.kubectl("patch", f"{WORKLOAD}/{name}", "--type=merge", f"--patch={json.dumps({'spec': spec})}")


@pytest.fixture
def team(kueue: KueueCluster) -> Iterator[Team]:
    with fresh_namespace(kueue.control) as name:
        yield Team(kueue, kueue.control.kubectl.within(name))


class QueuedJobs:
    """FineTuneJobs of a namespace, under an operator with the permissions of the installation."""

    def __init__(self, world: JobNamespace, operator: ApiServer) -> None:
        self.world, self._operator = world, operator

    async def create(self, name: str, script: Script = succeed, **workers: Any) -> ReconciledJob:
        """Create a job with two workers of one CPU each, in the queue of the team."""
        settings = {"nodes": 2, "queue": "team", "resources": {"requests": {"cpu": "1"}}, **workers}
        await self.world.create(name, script, workers=settings, budget={"deadline": "1h"})
        return ReconciledJob(FaultyServer(self._operator), JobKey(self.world.namespace, name))


def run(team: Team, scenario: Callable[[QueuedJobs], Awaitable[None]]) -> None:
    """Run a scenario together with the simulated kubelet."""

    async def with_operator(world: JobNamespace) -> None:
        operator = await ApiServer.connect(team.cluster.operator)
        try:
            await scenario(QueuedJobs(world, operator))
        finally:
            await operator.close()

    run_scenario(team.cluster.control.kubectl.kubeconfig, team.namespace, with_operator)


def waits_because(*words: str) -> Callable[[Status], bool]:
    """Whether a job waits in its queue, with these words in the message."""

    def holds(status: Status) -> bool:
        (ready,) = (one for one in status.conditions if one.type is ConditionType.READY)
        return ready.reason is Reason.QUEUED and all(word in ready.message for word in words)

    return holds


def trainings(status: Status) -> list[tuple[int, str | None]]:
    """Number and outcome of the training attempts."""
    return [(one.number, one.outcome) for one in status.run.attempts if one.stage is Stage.TRAIN]


def assert_nothing_is_charged(status: Status) -> None:
    assert (status.run.restarts, status.run.disruptions, status.run.failure) == (0, 0, None)


async def until_training(job: ReconciledJob) -> Status:
    """Wait until a training attempt has a running pod according to status."""
    return await job.until(lambda status: is_training(status) and status.run.attempts[-1].running_time is not None)


def test_a_job_waits_for_quota_and_trains_after_its_admission(team: Team) -> None:
    team.create_queue(cpus=1)

    async def scenario(jobs: QueuedJobs) -> None:
        job = await jobs.create("waits", training_ends(FOREVER))
        reason = "insufficient quota for cpu in flavor simulated"
        status = await job.until(waits_because("waits-r1-train-a1 waits in the queue team: ", reason))
        assert (status.phase, status.run.attempts[-1].queue) == (Phase.PENDING, "team")
        assert status.run.attempts[-1].admitted_time is None
        assert (await jobs.world.jobs())["waits-r1-train-a1"]["suspend"] is True
        # The deadline of one hour passes.
        job.clock = lambda: datetime.now(UTC) + timedelta(hours=2)
        await job.step()
        await job.step()
        assert job.last is not None
        assert job.last.status.phase is Phase.PENDING

        team.set_quota(2)
        status = await until_training(job)
        assert status.run.attempts[-1].admitted_time is not None
        pods = team.kubectl.json("get", "pods", "--selector=finetune.dev/stage=train")["items"]
        assert [pod["spec"]["nodeSelector"] for pod in pods] == [{LABEL: "true"}] * 2
        assert [pod["spec"]["schedulingGroup"]["podGroupName"] for pod in pods] == ["waits-r1-train-a1"] * 2

        team.set_quota(0)
        jobs.world.kubelet.scripts["waits"] = succeed
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert [one.stage for one in status.run.attempts] == [Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE]
        assert status.run.suspended_seconds is not None
        assert 7200 <= status.run.suspended_seconds < 7260
        await asyncio.to_thread(team.until_finished, "waits-r1-train-a1")
        assert set(team.workloads()) == {"waits-r1-train-a1"}, "only the training has waited"

    run(team, scenario)


def test_a_preempted_job_saves_and_continues_after_its_next_admission(team: Team) -> None:
    team.create_queue(cpus=2)

    async def scenario(jobs: QueuedJobs) -> None:
        kubelet = jobs.world.kubelet
        patient = await jobs.create("patient", training_ends(FOREVER))
        await until_training(patient)
        urgent = await jobs.create("urgent", training_ends(FOREVER), priorityClassName=URGENT)
        training = asyncio.create_task(until_training(urgent))
        reason = "insufficient unused quota for cpu in flavor simulated"
        status = await patient.until(waits_because("patient-r1-train-a2 waits in the queue team: ", reason))
        await training
        assert trainings(status) == [(1, "Stopped"), (2, None)]
        assert_nothing_is_charged(status)
        assert len(kubelet.reported) == 2, "both pods have received SIGTERM"
        assert "Requeued" in await jobs.world.event_reasons("patient")

        kubelet.scripts |= {"patient": succeed, "urgent": succeed}
        await urgent.until(in_phase(Phase.SUCCEEDED))
        status = await patient.until(in_phase(Phase.SUCCEEDED))
        assert trainings(status) == [(1, "Stopped"), (2, "Succeeded")]
        assert_nothing_is_charged(status)

    run(team, scenario)


def test_a_drained_queue_evicts_a_job_until_it_admits_again(team: Team) -> None:
    team.create_queue(cpus=2)

    async def scenario(jobs: QueuedJobs) -> None:
        job = await jobs.create("drained", training_ends(FOREVER))
        await until_training(job)
        team.change_queue(("stopPolicy", "HoldAndDrain"))
        status = await job.until(waits_because("drained-r1-train-a2 waits in the queue team: ", "is inactive"))
        assert trainings(status) == [(1, "Stopped"), (2, None)]
        team.change_queue(("stopPolicy", "None"))
        jobs.world.kubelet.scripts["drained"] = succeed
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert trainings(status) == [(1, "Stopped"), (2, "Succeeded")]
        assert_nothing_is_charged(status)

    run(team, scenario)


def test_a_deactivated_workload_waits_and_a_new_attempt_has_a_new_one(team: Team) -> None:
    team.create_queue(cpus=1)

    async def scenario(jobs: QueuedJobs) -> None:
        job = await jobs.create("paused", training_ends(FOREVER))
        await job.until(waits_because("insufficient quota"))
        team.change_workload("paused-r1-train-a1", active=False)
        team.set_quota(2)
        await job.until(waits_because("paused-r1-train-a1 waits in the queue team: ", "deactivated"))
        team.change_workload("paused-r1-train-a1", active=True)
        await until_training(job)
        team.change_workload("paused-r1-train-a1", active=False)
        await job.until(lambda status: trainings(status) == [(1, "Stopped"), (2, None)])
        jobs.world.kubelet.scripts["paused"] = succeed
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert trainings(status) == [(1, "Stopped"), (2, "Succeeded")]
        assert_nothing_is_charged(status)

    run(team, scenario)


def test_an_eviction_while_no_operator_is_running_is_charged_nothing(team: Team) -> None:
    team.create_queue(cpus=2)

    def until_suspended(suspended: bool) -> None:
        team.kubectl.until("job/missed-r1-train-a1", lambda found: found["spec"]["suspend"] is suspended, within=30)

    async def scenario(jobs: QueuedJobs) -> None:
        job = await jobs.create("missed", training_ends(FOREVER))
        status = await until_training(job)
        # The next admission is in another second: the Job has no finer times.
        admitted = datetime.fromisoformat(status.run.attempts[-1].admitted_time or "")
        async with asyncio.timeout(10):
            while datetime.now(UTC) < admitted + timedelta(seconds=1):
                await asyncio.sleep(0.1)
        team.change_workload("missed-r1-train-a1", active=False)
        await asyncio.to_thread(until_suspended, True)
        # The trainers that start again find that the attempt is claimed.
        jobs.world.kubelet.scripts["missed"] = training_ends(PodEnd(ExitCode.FENCED))
        team.change_workload("missed-r1-train-a1", active=True)
        await asyncio.to_thread(until_suspended, False)
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert trainings(status) == [(1, "Stopped"), (2, "Succeeded")]
        assert_nothing_is_charged(status)

    run(team, scenario)


def test_a_job_waits_for_a_queue_that_exists_and_covers_its_resources(team: Team) -> None:
    async def scenario(jobs: QueuedJobs) -> None:
        job = await jobs.create("early")
        status = await job.until(waits_because("waits in the queue team: ", "LocalQueue team doesn't exist"))
        assert status.phase is Phase.PENDING
        team.create_queue(cpus=2, memory="1Ti")
        await job.until(waits_because("resource ephemeral-storage unavailable in ClusterQueue"))
        team.create_queue(cpus=2)
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert trainings(status) == [(1, "Succeeded")]

    run(team, scenario)


def test_kueue_accepts_the_cluster_queue_of_the_guide(team: Team) -> None:
    guide = (ROOT / "docs/operating.md").read_text()
    (text,) = (block for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL) if "kind: ClusterQueue" in block)
    documented = yaml.safe_load(text)
    assert team.kubectl.refusal(documented) is None
    (group,) = documented["spec"]["resourceGroups"]
    group["coveredResources"].remove("ephemeral-storage")
    assert "coveredResources" in (team.kubectl.refusal(documented) or "")


def test_a_job_that_is_suspended_releases_its_quota(team: Team) -> None:
    team.create_queue(cpus=2)

    async def scenario(jobs: QueuedJobs) -> None:
        first = await jobs.create("first", training_ends(FOREVER))
        await until_training(first)
        second = await jobs.create("second", training_ends(FOREVER))
        await second.until(waits_because("insufficient unused quota"))
        await jobs.world.change("first", suspend=True)
        await first.until(in_phase(Phase.SUSPENDED))
        await until_training(second)
        await jobs.world.change("first", suspend=False)
        status = await first.until(waits_because("first-r1-train-a2 waits in the queue team: "))
        assert_nothing_is_charged(status)

    run(team, scenario)
