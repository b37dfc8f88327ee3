"""Leader election: of several operators only the leader reconciles, however the leadership changes.

The operators are real processes with the permissions of an installation, whose requests are recorded by a proxy in
front of the real API server. Other tests let an election compete with Leases that the test writes.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from factories import make_job
from fault_proxy import FaultProxy
from faults import ErrorResponse, SlowResponse
from finetune_operator.clusters.api_server import ApiServer
from finetune_operator.controller.leader import LeaderElection
from finetune_operator.errors import ApiError
from finetune_operator.service_options import LeaseOptions
from job_namespace import training_ends
from loop_thread import LoopThread
from objects import Objects
from operator_process import ACCOUNTS, LEASE, NAME, OperatorProcess
from process_support import base_environment, until
from simulated_kubelet import PodEnd, SimulatedKubelet
from testcluster.access import Kubectl, condition
from testcluster.control_plane import ControlPlane

SECONDS = 6
"""Duration of the Lease. With less, a busy machine would delay renewals for too long."""
MARGIN = 3.0
"""A standby reads the Lease every second; the rest is for a busy machine."""


class Replica:
    """An operator with leader election, behind a proxy of its own."""

    def __init__(self, operator: OperatorProcess, proxy: FaultProxy) -> None:
        self.operator, self.proxy = operator, proxy

    @property
    def is_leader(self) -> bool:
        return 'leader_election_master_status{name="finetunejob"} 1.0' in self.operator.get("/metrics")[1]

    def writes(self, since: float = 0.0) -> list[str]:
        """Its write requests, also those of the Lease."""
        calls = list(self.proxy.calls)
        return [f"{call.method} {call.path}" for call in calls if call.kind == "write" and call.at >= since]


Start = Callable[..., Replica]


@pytest.fixture
def start(control_plane: ControlPlane, admin: Path, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """Start replicas. The first one is the leader when it is ready."""
    control_plane.kubectl.within(ACCOUNTS)("delete", "lease", NAME, "--ignore-not-found")
    with ExitStack() as stack:
        count = 0

        def started(*arguments: str) -> Replica:
            nonlocal count
            count += 1
            options = (f"--namespace={namespace}", "--progress-seconds=0.5", f"--lease-seconds={SECONDS}", LEASE)
            operator = OperatorProcess(control_plane, tmp_path / str(count), *options, *arguments)
            proxy = stack.enter_context(FaultProxy(operator.kubeconfig))
            operator.start(server=proxy.server)
            stack.callback(end, operator)
            replica = Replica(operator, proxy)
            operator.ready()
            if count == 1:
                until(lambda: replica.is_leader, within=30, what="the first replica leads")
            return replica

        yield started


def end(operator: OperatorProcess) -> None:
    if operator.is_running:
        operator.send(signal.SIGKILL)  # also a stopped process
        operator.kill()


def create(objects: Objects, name: str) -> None:
    """Create a suspended job: it needs one reconcile."""
    objects.create("finetunejobs", make_job(name, namespace=objects.namespace, suspend=True))


def is_served(objects: Objects, name: str) -> bool:
    return condition(objects.get("finetunejobs", name) or {}, "Suspended") == "True"


def seconds_until_served(objects: Objects, name: str, since: float, within: float) -> float:
    until(lambda: is_served(objects, name), within=within, what=f"{name} is reconciled")
    return time.monotonic() - since


@contextmanager
def created_jobs(kubectl: Kubectl, folder: Path) -> Iterator[Callable[[], Counter[str]]]:
    """How often each Job of the namespace has been created so far, also if it was deleted since."""
    events = folder / "events"
    output = '--output=jsonpath={.type}/{.object.metadata.name}{"\\n"}'
    command = kubectl.command("get", "jobs", "--watch", "--output-watch-events", output)
    with events.open("wb") as file, subprocess.Popen(command, env=kubectl.environment, stdout=file) as process:
        try:
            yield lambda: Counter(re.findall("^ADDED/(.+)$", events.read_text(), re.MULTILINE))
        finally:
            process.kill()


@pytest.mark.usefixtures("kubelet")
def test_a_standby_watches_and_is_ready_but_writes_nothing(start: Start, objects: Objects) -> None:
    leader, standby = start(), start()
    for number in range(3):
        objects.create("finetunejobs", make_job(f"job-{number}", namespace=objects.namespace))
    until(lambda: all(phase(objects, f"job-{number}") == "Succeeded" for number in range(3)), within=90, what="done")
    assert leader.is_leader
    assert not standby.is_leader
    assert standby.writes() == []
    assert standby.proxy.count("watch", "finetunejobs") >= 1, "its cache is warm"
    assert standby.proxy.count("get", "finetunejobs") == 0
    for replica in (leader, standby):
        assert replica.operator.get("/readyz") == (200, "ok")
        assert replica.operator.get("/healthz") == (200, "ok")
    assert 'finetune_jobs{phase="Succeeded"} 3.0' in leader.operator.get("/metrics")[1]
    assert "finetune_jobs{" not in standby.operator.get("/metrics")[1], "a sum over replicas counts each job once"
    assert standby.operator.stop() == 0
    assert leader.is_leader


def phase(objects: Objects, name: str) -> str:
    return str(((objects.get("finetunejobs", name) or {}).get("status") or {}).get("phase"))


def test_a_leader_that_is_terminated_hands_over_within_three_seconds(start: Start, objects: Objects) -> None:
    leader, standby = start(), start()
    create(objects, "early")
    seconds_until_served(objects, "early", time.monotonic(), within=30)
    stopped_at = time.monotonic()
    leader.operator.send(signal.SIGTERM)
    create(objects, "late")
    assert seconds_until_served(objects, "late", stopped_at, within=30) < 3
    assert leader.operator.stop() == 0
    assert standby.is_leader


@pytest.mark.usefixtures("kubelet")
def test_a_leader_that_is_terminated_completes_the_reconcile_in_progress(start: Start, objects: Objects) -> None:
    """Otherwise its Events would be lost: the next leader finds the attempt that it has started and reports nothing."""
    leader = start()
    with leader.proxy.fault(SlowResponse(1), "write", plurals=("jobs",)):
        objects.create("finetunejobs", make_job("slow", namespace=objects.namespace))
        until(lambda: leader.proxy.count("write", "jobs"), within=30, what="the leader creates the first Job")
        assert leader.operator.stop() == 0
    assert objects.event_reasons("slow") == ["Preparing"]
    assert objects.names("jobs") == ["slow-r1-prepare-a1"]


def test_a_standby_takes_over_from_a_leader_that_was_killed_when_the_lease_has_expired(
    start: Start, objects: Objects
) -> None:
    leader, standby = start(), start()
    killed_at = time.monotonic()
    leader.operator.kill()
    create(objects, "orphan")
    took = seconds_until_served(objects, "orphan", killed_at, within=60)
    assert took < SECONDS + MARGIN
    assert took > SECONDS * (1 - 1 / 7.5) - 0.5, "the last renewal was at most an interval before the kill"
    assert standby.is_leader


def test_a_leader_that_was_stopped_writes_nothing_when_it_continues_after_a_takeover(
    start: Start, objects: Objects, kubelet: SimulatedKubelet
) -> None:
    leader, standby = start(), start()
    kubelet.scripts["busy"] = training_ends(PodEnd(after=3600))
    objects.create("finetunejobs", make_job("busy", namespace=objects.namespace))
    until(lambda: phase(objects, "busy") == "Training", within=60, what="a job is reconciled by time")
    leader.operator.send(signal.SIGSTOP)
    create(objects, "unseen")  # an event that waits for the leader
    seconds_until_served(objects, "unseen", time.monotonic(), within=60)
    assert standby.is_leader
    continued_at = time.monotonic()
    leader.operator.send(signal.SIGCONT)
    until(lambda: leader.operator.exit_status is not None, within=10, what="the process ends")
    assert leader.operator.exit_status == 1
    assert leader.writes(since=continued_at) == []
    assert "the Lease was not renewed within 4 of 6 seconds" in leader.operator.log_text()


FAULTS = {"errors": lambda: ErrorResponse(503), "no responses": lambda: SlowResponse(3600)}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_leader_that_cannot_renew_ends_before_another_one_acts(start: Start, objects: Objects, fault: str) -> None:
    leader, standby = start(), start()
    with leader.proxy.fault(FAULTS[fault](), "get", "write", plurals=("leases",)):
        until(lambda: leader.operator.exit_status is not None, within=SECONDS + 5, what="the process ends")
        ended_at = time.monotonic()
    assert leader.operator.exit_status == 1
    assert not standby.is_leader
    create(objects, "orphan")
    seconds_until_served(objects, "orphan", ended_at, within=60)
    first = min(call.at for call in standby.proxy.calls if call.kind == "write")
    assert first > ended_at


def test_a_leader_ends_when_somebody_gives_the_lease_to_another(start: Start, control_plane: ControlPlane) -> None:
    leader = start()
    stolen = '--patch={"spec": {"holderIdentity": "thief"}}'
    control_plane.kubectl.within(ACCOUNTS)("patch", "lease", NAME, "--type=merge", stolen)
    until(lambda: leader.operator.exit_status is not None, within=SECONDS, what="the process ends")
    assert leader.operator.exit_status == 1
    assert "is held by thief" in leader.operator.log_text()


def test_a_leader_keeps_leading_when_the_lease_is_deleted(start: Start, control_plane: ControlPlane) -> None:
    leader, standby = start(), start()
    kubectl = control_plane.kubectl.within(ACCOUNTS)
    kubectl("delete", "lease", NAME)
    kubectl.until(f"lease/{NAME}", lambda lease: lease["spec"]["holderIdentity"], within=SECONDS)
    time.sleep(SECONDS)
    assert leader.is_leader
    assert not standby.is_leader
    assert standby.writes() == []


@pytest.mark.usefixtures("admin")
def test_an_operator_that_may_not_use_the_lease_is_not_ready_and_says_why(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    arguments = (f"--namespace={namespace}", f"--lease={ACCOUNTS}/other")
    operator = OperatorProcess(control_plane, tmp_path, *arguments).start()
    try:
        until(lambda: "forbidden" in operator.get("/readyz")[1], within=60, what="it names the reason")
        status, text = operator.get("/readyz")
        assert status == 503
        assert text.startswith(f'the Lease {ACCOUNTS}/other cannot be used: leases.coordination.k8s.io "other" is')
        assert "forbidden" in operator.log_text()
        assert operator.stop() == 0
    finally:
        end(operator)


@pytest.mark.usefixtures("kubelet")
def test_no_attempt_starts_twice_while_the_leader_changes(
    start: Start, objects: Objects, kubectl: Kubectl, tmp_path: Path
) -> None:
    replicas = [start(), start()]
    names = [f"job-{number}" for number in range(12)]
    endings = iter((signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP))
    with created_jobs(kubectl, tmp_path) as created:
        for number, name in enumerate(names):
            objects.create("finetunejobs", make_job(name, namespace=objects.namespace))
            if number % 4 == 2:
                replace_leader(replicas, next(endings))
                replicas.append(start())
        until(lambda: all(phase(objects, name) == "Succeeded" for name in names), within=120, what="all jobs are done")
        expected = {f"{name}-r1-{stage}-a1" for name in names for stage in ("prepare", "train", "evaluate")}
        until(lambda: set(created()) == expected, within=30, what="the watch has shown all Jobs")
        assert created() == Counter(expected)
    for name in names:
        # A leader that is killed before it reports what it has done leaves this Event out.
        reasons = objects.event_reasons(name)
        assert len(reasons) == len(set(reasons))
        assert set(reasons) <= {"Preparing", "Training", "Evaluating", "Succeeded"}


def replace_leader(replicas: list[Replica], number: signal.Signals) -> None:
    """Send the leader a signal and remove it; another replica leads afterwards. A stopped leader continues then."""
    leader = next(replica for replica in replicas if replica.is_leader)
    leader.operator.send(number)
    replicas.remove(leader)
    until(lambda: any(replica.is_leader for replica in replicas), within=30, what="another one leads")
    if leader.operator.is_running:
        leader.operator.send(signal.SIGCONT)


# ---- the election ----------------------------------------------------------------------------------------------------


class Elections:
    """Elections for one Lease of the test's namespace, and the Lease as others write it."""

    def __init__(self, background: LoopThread, admin: Path, namespace: str) -> None:
        self._loop, self.namespace = background, namespace
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self.server = background.run(ApiServer.connect(admin))
        self.lost: list[str] = []
        self.timers: list[float] = []

    def new(self, seconds: int = 2) -> LeaderElection:
        options = LeaseOptions(self.namespace, "leader", seconds)
        return LeaderElection(self.server, options, self.lost.append, self.timers.append)

    def acquires(self, election: LeaderElection, within: float) -> bool:
        """Whether it becomes the leader in this time."""
        running = self._loop.start(election.acquire())
        with suppress(TimeoutError):
            running.result(within)
        running.cancel()
        return election.is_leader

    def release(self, election: LeaderElection) -> None:
        self._loop.run(election.release())

    def spec(self) -> dict[str, Any]:
        found: dict[str, Any] = self._loop.run(self.server.request("GET", f"{self._path}/leader"))["spec"]
        return found

    def write(self, **spec: Any) -> None:
        """Write the Lease like another client."""
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "leader"}, "spec": spec}
        with suppress(ApiError):
            self._loop.run(self.server.request("DELETE", f"{self._path}/leader"))
        self._loop.run(self.server.request("POST", self._path, lease))


@pytest.fixture
def elections(background: LoopThread, admin: Path, namespace: str) -> Iterator[Elections]:
    found = Elections(background, admin, namespace)
    yield found
    background.run(found.server.close())


LONG_AGO, FAR_AHEAD = "2001-01-01T00:00:00.000000Z", "2101-01-01T00:00:00.000000Z"


def test_a_free_lease_is_acquired_at_once_and_records_its_holders(elections: Elections) -> None:
    first, second = elections.new(15), elections.new(15)
    assert elections.acquires(first, within=5)
    created = elections.spec()
    assert (created["holderIdentity"], created["leaseDurationSeconds"]) == (first.identity, 15)
    assert created["leaseTransitions"] == 0
    assert not elections.acquires(second, within=3)
    elections.release(first)
    assert elections.acquires(second, within=5)
    taken = elections.spec()
    assert (taken["holderIdentity"], taken["leaseTransitions"]) == (second.identity, 1)
    assert taken["acquireTime"] > created["acquireTime"]


def test_only_one_of_many_acquires_a_free_lease(elections: Elections, background: LoopThread) -> None:
    every = [elections.new(15) for _ in range(10)]
    running = [background.start(election.acquire()) for election in every]
    until(lambda: any(one.done() for one in running), within=10, what="one leads")
    time.sleep(2)  # the others have read the Lease again
    assert [election.is_leader for election in every].count(True) == 1
    for one in running:
        one.cancel()


@pytest.mark.parametrize("renewed", [LONG_AGO, FAR_AHEAD], ids=["slow clock", "fast clock"])
def test_clocks_may_differ_a_lease_expires_when_it_has_not_changed_for_its_duration(
    elections: Elections, renewed: str
) -> None:
    elections.write(holderIdentity="other", leaseDurationSeconds=4, acquireTime=LONG_AGO, renewTime=renewed)
    started, election = time.monotonic(), elections.new()
    assert elections.acquires(election, within=15)
    assert 4 < time.monotonic() - started < 4 + MARGIN, "the duration that the other holder has promised"


def test_a_lease_that_is_renewed_does_not_expire(elections: Elections) -> None:
    election = elections.new()
    for second in range(5):
        elections.write(holderIdentity="other", leaseDurationSeconds=2, renewTime=f"2026-01-01T00:00:0{second}.000000Z")
        assert not elections.acquires(election, within=1.2)


@pytest.mark.parametrize("spec", [{}, {"holderIdentity": ""}], ids=["empty", "released"])
def test_a_lease_without_a_holder_is_free(elections: Elections, spec: dict[str, Any]) -> None:
    elections.write(**spec)
    assert elections.acquires(elections.new(15), within=5)


def test_the_timer_starts_with_the_request_and_stops_after_the_release(elections: Elections) -> None:
    election = elections.new(15)
    assert elections.acquires(election, within=5)
    assert 10 - 5 < elections.timers[0] < 10, "two thirds of the duration, without the time of the request"
    elections.release(election)
    assert elections.timers[1:] == [0]
    assert elections.spec().get("holderIdentity", "") == ""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
@pytest.mark.parametrize("is_blocked", [False, True], ids=["waits", "busy"])
def test_the_timer_ends_the_first_process_of_a_container_which_ignores_other_signals(is_blocked: bool) -> None:
    program = "import time; from finetune_operator.controller.leader import make_timer; make_timer(15)(0.5);"
    program += "[None for _ in iter(int, 1)]" if is_blocked else "time.sleep(60)"
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", program]
    done = subprocess.run(command, env=base_environment(), capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, "the Lease was not renewed within 10 of 15 seconds" in done.stderr) == (1, True)
