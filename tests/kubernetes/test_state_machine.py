"""Random actions of users, cluster and clocks in any order; the invariants of a job hold after every step.

API server, Job controller and scheduler are real, pods are simulated, and the test runs the operator's reconciles.
FINETUNE_TEST_EXAMPLES sets the number of examples; by default a few, always the same ones.
"""

import asyncio
import os
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from finetune_operator.clusters.api_server import ApiServer
from finetune_operator.errors import ApiError
from job_namespace import JobNamespace
from modeled_jobs import ModeledJob, Snapshot
from reconciled_job import Fault, ReconciledJob
from simulated_kubelet import PodEnd

EXAMPLES = int(os.environ.get("FINETUNE_TEST_EXAMPLES", "0"))
SUBJECTS = 3
PASSES = 4
"""After every step."""
QUIET_PASSES = 3
STOP_SECONDS = 1.0
"""A terminating pod saves first, long enough to detect an operator that does not wait."""

Result = TypeVar("Result")
WHICH = st.integers(0, SUBJECTS - 1)
CODES = st.sampled_from([0, 0, 0, 0, 65, 70, 75, 137, 83, 1])
FAULTS = st.sampled_from(["crash before", "crash after", "timeout before", "timeout after", "409", "500"])
SPECS = st.fixed_dictionaries(
    {
        "workers": st.fixed_dictionaries({"nodes": st.integers(1, 2)}),
        "restart": st.fixed_dictionaries({"maxRestarts": st.integers(0, 2), "maxDisruptions": st.integers(1, 3)}),
        "ttlSecondsAfterFinished": st.sampled_from([None, None, 600]),
        "suspend": st.sampled_from([False, False, False, True]),
    }
)


class ClusterFixture:
    """One loop, one connection and one kubelet for all examples; names are used once."""

    def __init__(self, admin: Path, namespace: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.world = JobNamespace(self.run(ApiServer.connect(admin)), namespace)
        self.world.kubelet.stop_seconds = STOP_SECONDS
        self.kubelet = self.loop.create_task(self.world.kubelet.run())
        self.examples = 0

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.world.kubelet.stopping = True
        try:
            self.run(self._ended())
        finally:
            self.run(self.world.server.close())
            self.loop.close()

    async def _ended(self) -> None:
        await self.kubelet

    async def snapshot(self) -> Snapshot:
        paths = ("/apis/finetune.dev/v1alpha1", "/apis/batch/v1", "/api/v1")
        plurals = ("finetunejobs", "jobs", "pods")
        listed = [
            self.world.server.request("GET", f"{path}/namespaces/{self.world.namespace}/{plural}")
            for path, plural in zip(paths, plurals, strict=True)
        ]
        return Snapshot(*[answer["items"] for answer in await asyncio.gather(*listed)])


class JobStateMachine(RuleBasedStateMachine):
    """A few concurrent jobs."""

    cluster_fixture: ClusterFixture

    def __init__(self) -> None:
        super().__init__()
        self.world = self.cluster_fixture.world
        self.cluster_fixture.examples += 1
        self.trail: list[str] = []
        self.modeled_jobs: list[ModeledJob] = []

    @initialize(specs=st.lists(SPECS, min_size=SUBJECTS, max_size=SUBJECTS))
    def begin(self, specs: list[dict[str, Any]]) -> None:
        for number, spec in enumerate(specs):
            name = f"example-{self.cluster_fixture.examples}-{number}"
            reconciled = self.cluster_fixture.run(self.world.create(name, **spec))
            modeled = ModeledJob(name, reconciled)
            reconciled.clock = modeled.now
            self.world.kubelet.scripts[name] = modeled.script
            self.modeled_jobs.append(modeled)
        self._step(f"begin {specs}")

    # ---- users -----------------------------------------------------------------------------------------------------

    @rule(which=WHICH, suspend=st.booleans())
    def suspend_or_resume(self, which: int, suspend: bool) -> None:
        self._change(which, suspend=suspend)

    @rule(which=WHICH, rate=st.integers(1, 3))
    def change_the_run_scope(self, which: int, rate: int) -> None:
        self.modeled_jobs[which].ends.clear()
        self._change(which, training={"learningRate": rate * 1e-5})

    @rule(which=WHICH, nodes=st.sampled_from([1, 2, 4]))
    def change_the_nodes(self, which: int, nodes: int) -> None:
        self._change(which, workers={"nodes": nodes})

    @rule(which=WHICH)
    def delete(self, which: int) -> None:
        if self.modeled_jobs[which].uid:
            self.cluster_fixture.run(self.world.remove(self.modeled_jobs[which].name))
            self._step(f"delete {which}")

    @rule(which=WHICH, spec=SPECS, in_use=st.booleans())
    def create_again(self, which: int, spec: dict[str, Any], in_use: bool) -> None:
        """With the same name, possibly while children of the old object still exist."""
        modeled = self.modeled_jobs[which]
        if modeled.uid and in_use:
            self.cluster_fixture.run(self.world.remove(modeled.name))
        elif modeled.uid:
            return
        modeled.ends.clear()
        self.cluster_fixture.run(self.world.create(modeled.name, modeled.script, **spec))
        self._step(f"create again {which} {spec}")

    # ---- the cluster -----------------------------------------------------------------------------------------------

    @rule(which=WHICH, code=CODES, index=st.integers(0, 1))
    def a_pod_ends(self, which: int, code: int, index: int) -> None:
        self._end(which, index, PodEnd(code))

    @rule(which=WHICH)
    def a_stage_succeeds(self, which: int) -> None:
        self._end(which, 0, PodEnd())

    @rule(which=WHICH)
    def a_pod_is_evicted(self, which: int) -> None:
        self._end(which, 0, PodEnd(137, disrupted=True))

    @rule(which=WHICH)
    def a_pod_is_deleted(self, which: int) -> None:
        snapshot = self.cluster_fixture.run(self.cluster_fixture.snapshot())
        for job in self.modeled_jobs[which].active_jobs(snapshot)[-1:]:
            for pod in self.modeled_jobs[which].pods_of(job, snapshot)[:1]:
                self._remove(f"/api/v1/namespaces/{self.world.namespace}/pods/{pod['metadata']['name']}")
                self._step(f"delete pod {pod['metadata']['name']}")

    @rule(which=WHICH, policy=st.sampled_from(["Background", "Foreground"]))
    def the_job_is_deleted(self, which: int, policy: str) -> None:
        snapshot = self.cluster_fixture.run(self.cluster_fixture.snapshot())
        for job in self.modeled_jobs[which].active_jobs(snapshot)[-1:]:
            name = job["metadata"]["name"]
            self._remove(f"/apis/batch/v1/namespaces/{self.world.namespace}/jobs/{name}", policy)
            self._step(f"delete job {name} {policy}")

    @rule(is_dead=st.booleans())
    def the_node_stops_or_returns(self, is_dead: bool) -> None:
        self.world.kubelet.dead = is_dead
        self._step(f"node dead: {is_dead}")

    # ---- the operator ----------------------------------------------------------------------------------------------

    @rule(which=WHICH, kind=FAULTS)
    def its_next_write_fails(self, which: int, kind: str) -> None:
        server = self.modeled_jobs[which].reconciled.server
        server.fault = Fault(kind, at=len(server.calls))
        self.trail.append(f"{kind} at the next write of {which}")

    @rule(which=WHICH, minutes=st.sampled_from([-60, -1, 1, 60]))
    def its_clock_changes(self, which: int, minutes: int) -> None:
        self.modeled_jobs[which].offset += timedelta(minutes=minutes)
        self._step(f"clock of {which} jumps by {minutes} minutes")

    @rule(which=WHICH)
    def two_operators_run(self, which: int) -> None:
        reconciled = self.modeled_jobs[which].reconciled
        twin = ReconciledJob(reconciled.server, reconciled.key, clock=reconciled.clock)
        for _ in range(2):
            self.cluster_fixture.run(asyncio.wait_for(_concurrently(reconciled, twin), 60))
        self._step(f"two operators on {which}")

    # ---- what comes of it ------------------------------------------------------------------------------------------

    def _change(self, which: int, **spec: Any) -> None:
        if self.modeled_jobs[which].uid:
            self.cluster_fixture.run(self.world.change(self.modeled_jobs[which].name, **spec))
            self._step(f"change {which} {spec}")

    def _end(self, which: int, index: int, end: PodEnd) -> None:
        modeled = self.modeled_jobs[which]
        for job in modeled.active_jobs(self.cluster_fixture.run(self.cluster_fixture.snapshot()))[-1:]:
            labels = job["metadata"]["labels"]
            culprit = min(index, job["spec"]["completions"] - 1)
            modeled.ends[labels["finetune.dev/stage"], int(labels["finetune.dev/attempt"])] = (culprit, end)
            self._step(f"{job['metadata']['name']}-{culprit} ends {end}")

    def _remove(self, path: str, policy: str = "Background") -> None:
        try:
            self.cluster_fixture.run(self.world.server.request("DELETE", path, {"propagationPolicy": policy}))
        except ApiError as error:
            if not error.is_missing:
                raise

    def _step(self, what: str) -> None:
        self.trail.append(what)
        for _ in range(PASSES):
            self.cluster_fixture.run(self._reconcile_all())

    async def _reconcile_all(self) -> None:
        await asyncio.gather(*(modeled.reconciled.step() for modeled in self.modeled_jobs))
        await asyncio.sleep(0.1)
        snapshot = await self.cluster_fixture.snapshot()
        for modeled in self.modeled_jobs:
            try:
                modeled.check(snapshot)
            except AssertionError as error:
                raise AssertionError("\n".join([str(error), f"of {modeled.name}", *self.trail])) from error

    def teardown(self) -> None:
        """Without further actions, nothing is written; after deletion, nothing remains."""
        self.world.kubelet.dead = False
        self.cluster_fixture.run(self._until_quiet())
        for modeled in self.modeled_jobs:
            if modeled.uid:
                self.cluster_fixture.run(self.world.remove(modeled.name))
        self.cluster_fixture.run(self._until_everything_is_deleted())

    async def _until_quiet(self) -> None:
        quiet = 0
        for _ in range(150):
            before = [len(modeled.reconciled.server.calls) for modeled in self.modeled_jobs]
            await self._reconcile_all()
            quiet = (
                quiet + 1 if before == [len(modeled.reconciled.server.calls) for modeled in self.modeled_jobs] else 0
            )
            if quiet >= QUIET_PASSES and await self._is_stable():
                return
        calls = {modeled.name: modeled.reconciled.server.calls[-10:] for modeled in self.modeled_jobs}
        raise AssertionError("\n".join([f"writes do not end: {calls}", *self.trail]))

    async def _is_stable(self) -> bool:
        """Whether no pod is about to start or to end."""
        return all(
            "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") != "Pending"
            for pod in (await self.cluster_fixture.snapshot()).pods
        )

    async def _until_everything_is_deleted(self) -> None:
        async with asyncio.timeout(90):
            while left := [child for modeled in self.modeled_jobs for child in await modeled.reconciled.children()]:
                await asyncio.sleep(0.2)
                for modeled in self.modeled_jobs:
                    await modeled.reconciled.step()
        assert left == []


async def _concurrently(*operators: ReconciledJob) -> None:
    await asyncio.gather(*(operator.step() for operator in operators))


def test_the_invariants_hold_in_any_order_of_actions(admin: Path, namespace: str) -> None:
    cluster_fixture = ClusterFixture(admin, namespace)
    machine = type("JobStateMachineInThisCluster", (JobStateMachine,), {"cluster_fixture": cluster_fixture})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES or 4,
                stateful_step_count=25,
                derandomize=not EXAMPLES,
                # A real cluster depends on timing, so a second try need not fail the same way.
                phases=[Phase.generate],
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        cluster_fixture.close()
