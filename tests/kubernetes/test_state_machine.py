"""Users, clusters and clocks do what they like, in any order; what has to hold of a job holds after every step.

API server, Job controller and scheduler are real, pods are simulated, and the operator's passes are run by the test.
FINETUNE_TEST_EXAMPLES sets how many lives are led; by default a few, always the same ones.
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
from life_cycle_world import World
from modelled_jobs import Look, ModelledJob
from reconciled_job import Fault, ReconciledJob
from simulated_kubelet import End

EXAMPLES = int(os.environ.get("FINETUNE_TEST_EXAMPLES", "0"))
SUBJECTS = 3
PASSES = 4
"""After every step."""
QUIET_PASSES = 3
STOP_SECONDS = 1.0
"""A pod that is told to end saves first: long enough for an operator that does not wait to be caught."""

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
    """One loop, one connection and one kubelet for all lives; names are used once."""

    def __init__(self, admin: Path, namespace: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.world = World(self.run(ApiServer.connect(admin)), namespace)
        self.world.kubelet.stop_seconds = STOP_SECONDS
        self.kubelet = self.loop.create_task(self.world.kubelet.run())
        self.lives = 0

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

    async def look(self) -> Look:
        paths = ("/apis/finetune.dev/v1alpha1", "/apis/batch/v1", "/api/v1")
        plurals = ("finetunejobs", "jobs", "pods")
        listed = [
            self.world.server.request("GET", f"{path}/namespaces/{self.world.namespace}/{plural}")
            for path, plural in zip(paths, plurals, strict=True)
        ]
        return Look(*[answer["items"] for answer in await asyncio.gather(*listed)])


class JobStateMachine(RuleBasedStateMachine):
    """A few jobs, side by side."""

    cluster_fixture: ClusterFixture

    def __init__(self) -> None:
        super().__init__()
        self.world = self.cluster_fixture.world
        self.cluster_fixture.lives += 1
        self.trail: list[str] = []
        self.modelled_jobs: list[ModelledJob] = []

    @initialize(specs=st.lists(SPECS, min_size=SUBJECTS, max_size=SUBJECTS))
    def begin(self, specs: list[dict[str, Any]]) -> None:
        for number, spec in enumerate(specs):
            name = f"life-{self.cluster_fixture.lives}-{number}"
            reconciled = self.cluster_fixture.run(self.world.create(name, **spec))
            modelled = ModelledJob(name, reconciled)
            reconciled.clock = modelled.now
            self.world.kubelet.scripts[name] = modelled.script
            self.modelled_jobs.append(modelled)
        self._go_on(f"begin {specs}")

    # ---- users -----------------------------------------------------------------------------------------------------

    @rule(which=WHICH, suspend=st.booleans())
    def suspend_or_resume(self, which: int, suspend: bool) -> None:
        self._change(which, suspend=suspend)

    @rule(which=WHICH, rate=st.integers(1, 3))
    def change_the_meaning(self, which: int, rate: int) -> None:
        self.modelled_jobs[which].ends.clear()
        self._change(which, training={"learningRate": rate * 1e-5})

    @rule(which=WHICH, nodes=st.sampled_from([1, 2, 4]))
    def change_the_nodes(self, which: int, nodes: int) -> None:
        self._change(which, workers={"nodes": nodes})

    @rule(which=WHICH)
    def delete(self, which: int) -> None:
        if self.modelled_jobs[which].uid:
            self.cluster_fixture.run(self.world.remove(self.modelled_jobs[which].name))
            self._go_on(f"delete {which}")

    @rule(which=WHICH, spec=SPECS, in_use=st.booleans())
    def create_again(self, which: int, spec: dict[str, Any], in_use: bool) -> None:
        """Under the same name, also while the old one's children are still there."""
        modelled = self.modelled_jobs[which]
        if modelled.uid and in_use:
            self.cluster_fixture.run(self.world.remove(modelled.name))
        elif modelled.uid:
            return
        modelled.ends.clear()
        self.cluster_fixture.run(self.world.create(modelled.name, modelled.script, **spec))
        self._go_on(f"create again {which} {spec}")

    # ---- the cluster -----------------------------------------------------------------------------------------------

    @rule(which=WHICH, code=CODES, index=st.integers(0, 1))
    def a_pod_ends(self, which: int, code: int, index: int) -> None:
        self._end(which, index, End(code))

    @rule(which=WHICH)
    def all_goes_well(self, which: int) -> None:
        self._end(which, 0, End())

    @rule(which=WHICH)
    def a_pod_is_evicted(self, which: int) -> None:
        self._end(which, 0, End(137, disrupted=True))

    @rule(which=WHICH)
    def somebody_deletes_a_pod(self, which: int) -> None:
        look = self.cluster_fixture.run(self.cluster_fixture.look())
        for job in self.modelled_jobs[which].active_jobs(look)[-1:]:
            for pod in self.modelled_jobs[which].pods_of(job, look)[:1]:
                self._remove(f"/api/v1/namespaces/{self.world.namespace}/pods/{pod['metadata']['name']}")
                self._go_on(f"delete pod {pod['metadata']['name']}")

    @rule(which=WHICH, policy=st.sampled_from(["Background", "Foreground"]))
    def somebody_deletes_the_job(self, which: int, policy: str) -> None:
        look = self.cluster_fixture.run(self.cluster_fixture.look())
        for job in self.modelled_jobs[which].active_jobs(look)[-1:]:
            name = job["metadata"]["name"]
            self._remove(f"/apis/batch/v1/namespaces/{self.world.namespace}/jobs/{name}", policy)
            self._go_on(f"delete job {name} {policy}")

    @rule(is_dead=st.booleans())
    def the_node_stops_or_returns(self, is_dead: bool) -> None:
        self.world.kubelet.dead = is_dead
        self._go_on(f"node dead: {is_dead}")

    # ---- the operator ----------------------------------------------------------------------------------------------

    @rule(which=WHICH, kind=FAULTS)
    def its_next_write_goes_wrong(self, which: int, kind: str) -> None:
        server = self.modelled_jobs[which].reconciled.server
        server.fault = Fault(len(server.calls), kind)
        self.trail.append(f"{kind} at the next write of {which}")

    @rule(which=WHICH, minutes=st.sampled_from([-60, -1, 1, 60]))
    def its_clock_jumps(self, which: int, minutes: int) -> None:
        self.modelled_jobs[which].offset += timedelta(minutes=minutes)
        self._go_on(f"clock of {which} jumps by {minutes} minutes")

    @rule(which=WHICH)
    def there_are_two_of_it(self, which: int) -> None:
        reconciled = self.modelled_jobs[which].reconciled
        twin = ReconciledJob(reconciled.server, reconciled.key, clock=reconciled.clock)
        for _ in range(2):
            self.cluster_fixture.run(asyncio.wait_for(_together(reconciled, twin), 60))
        self._go_on(f"two operators on {which}")

    # ---- what comes of it ------------------------------------------------------------------------------------------

    def _change(self, which: int, **spec: Any) -> None:
        if self.modelled_jobs[which].uid:
            self.cluster_fixture.run(self.world.change(self.modelled_jobs[which].name, **spec))
            self._go_on(f"change {which} {spec}")

    def _end(self, which: int, index: int, end: End) -> None:
        modelled = self.modelled_jobs[which]
        for job in modelled.active_jobs(self.cluster_fixture.run(self.cluster_fixture.look()))[-1:]:
            labels = job["metadata"]["labels"]
            culprit = min(index, job["spec"]["completions"] - 1)
            modelled.ends[labels["finetune.dev/stage"], int(labels["finetune.dev/attempt"])] = (culprit, end)
            self._go_on(f"{job['metadata']['name']}-{culprit} ends {end}")

    def _remove(self, path: str, policy: str = "Background") -> None:
        try:
            self.cluster_fixture.run(self.world.server.request("DELETE", path, {"propagationPolicy": policy}))
        except ApiError as error:
            if not error.is_missing:
                raise

    def _go_on(self, what: str) -> None:
        self.trail.append(what)
        for _ in range(PASSES):
            self.cluster_fixture.run(self._pass())

    async def _pass(self) -> None:
        await asyncio.gather(*(modelled.reconciled.step() for modelled in self.modelled_jobs))
        await asyncio.sleep(0.1)
        look = await self.cluster_fixture.look()
        for modelled in self.modelled_jobs:
            try:
                modelled.check(look)
            except AssertionError as error:
                raise AssertionError("\n".join([str(error), f"of {modelled.name}", *self.trail])) from error

    def teardown(self) -> None:
        """Left alone, nothing is written any more; deleted, nothing remains."""
        self.world.kubelet.dead = False
        self.cluster_fixture.run(self._until_quiet())
        for modelled in self.modelled_jobs:
            if modelled.uid:
                self.cluster_fixture.run(self.world.remove(modelled.name))
        self.cluster_fixture.run(self._until_nothing_is_left())

    async def _until_quiet(self) -> None:
        quiet = 0
        for _ in range(150):
            before = [len(modelled.reconciled.server.calls) for modelled in self.modelled_jobs]
            await self._pass()
            quiet = (
                quiet + 1 if before == [len(modelled.reconciled.server.calls) for modelled in self.modelled_jobs] else 0
            )
            if quiet >= QUIET_PASSES and await self._is_at_rest():
                return
        calls = {modelled.name: modelled.reconciled.server.calls[-10:] for modelled in self.modelled_jobs}
        raise AssertionError("\n".join([f"never quiet: {calls}", *self.trail]))

    async def _is_at_rest(self) -> bool:
        """No pod is about to begin or to end."""
        return all(
            "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") != "Pending"
            for pod in (await self.cluster_fixture.look()).pods
        )

    async def _until_nothing_is_left(self) -> None:
        async with asyncio.timeout(90):
            while left := [child for modelled in self.modelled_jobs for child in await modelled.reconciled.children()]:
                await asyncio.sleep(0.2)
                for modelled in self.modelled_jobs:
                    await modelled.reconciled.step()
        assert left == []


async def _together(*operators: ReconciledJob) -> None:
    await asyncio.gather(*(operator.step() for operator in operators))


def test_whatever_happens_in_whatever_order_the_invariants_hold(admin: Path, namespace: str) -> None:
    cluster_fixture = ClusterFixture(admin, namespace)
    machine = type("JobStateMachineInThisCluster", (JobStateMachine,), {"cluster_fixture": cluster_fixture})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES or 4,
                stateful_step_count=25,
                derandomize=not EXAMPLES,
                # What a real cluster does depends on its timing: a second try need not find the same.
                phases=[Phase.generate],
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        cluster_fixture.close()
