"""Faults between operator and API server: whatever is lost, late or wrong, every job reaches the same end.

The operator is the real process, behind a proxy that fails like networks and servers do. It may keep running, or exit
with an error and be restarted like by a kubelet; it must not run, report that it is healthy, and ignore a job.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factories import make_job
from fault_proxy import Fault, FaultProxy
from faults import (
    DuplicatedEvents,
    ErrorResponse,
    ExpiredVersion,
    InvalidResponse,
    ReorderedEvents,
    SilentConnection,
    SlowResponse,
    StaleList,
    TruncatedEvent,
)
from job_namespace import training_ends
from objects import Objects
from operator_process import OperatorProcess
from process_support import until
from simulated_kubelet import FOREVER, SimulatedKubelet, succeed
from supervised import SupervisedOperator
from testcluster.access import condition
from testcluster.control_plane import ControlPlane

STAGES = ("prepare-a1", "train-a1", "evaluate-a1")
PLAIN_EVENTS = ["Evaluating", "Preparing", "Succeeded", "Training"]
JOBS = {
    "early": STAGES,
    "ends": STAGES,
    "loses": ("prepare-a1", "train-a2", "evaluate-a1"),
    "new": STAGES,
}
"""Name of a FineTuneJob -> its remaining Jobs; nothing remains of `gone`."""

Meanwhile = Callable[[], None]
Disturbance = Callable[[FaultProxy, Meanwhile], None]


CALLS = ("watch", "list", "get", "write")


def during(fault: Callable[[], Fault], *kinds: str) -> Disturbance:
    """The fault is active during the actions, and inactive afterwards."""

    def disturb(proxy: FaultProxy, meanwhile: Meanwhile) -> None:
        with proxy.fault(fault(), *kinds):
            meanwhile()

    return disturb


def no_fault(_proxy: FaultProxy, meanwhile: Meanwhile) -> None:
    meanwhile()


def versions_expire_in_the_stream(proxy: FaultProxy, meanwhile: Meanwhile) -> None:
    with proxy.fault(SilentConnection(), "watch"):
        meanwhile()
    expire_once(proxy, ExpiredVersion())


def watches_end_with_an_error(proxy: FaultProxy, meanwhile: Meanwhile) -> None:
    with proxy.fault(SilentConnection(), "watch"):
        meanwhile()
    expire_once(proxy, ExpiredVersion(code=500))


def versions_expire_by_status(proxy: FaultProxy, meanwhile: Meanwhile) -> None:
    with proxy.fault(SilentConnection(), "watch"):
        meanwhile()
    refusal = ErrorResponse(410, "Expired", times=2)
    with proxy.fault(refusal, "watch"):
        until(lambda: refusal.times < 2, within=60, what="a watch is rejected")


def expire_once(proxy: FaultProxy, expired: ExpiredVersion) -> None:
    with proxy.fault(expired, "watch"):
        until(lambda: expired.reported, within=60, what="the event was sent")


def lists_are_old(proxy: FaultProxy, meanwhile: Meanwhile) -> None:
    lists = StaleList()
    with proxy.fault(lists, "list"):
        proxy.cut_watches()
        since = time.monotonic()
        until(lambda: proxy.count("list", "finetunejobs", since=since) > 0, within=60, what="a first list")
        lists.is_replaying = True
        meanwhile()
        expire_once(proxy, ExpiredVersion())
        since = time.monotonic()
        until(lambda: proxy.count("list", "finetunejobs", since=since) > 1, within=60, what="the old list is read")


def server_unreachable(proxy: FaultProxy, meanwhile: Meanwhile) -> None:
    with proxy.unreachable():
        meanwhile()


DISTURBANCES: dict[str, Disturbance] = {
    "none": no_fault,
    "cut in the middle": during(TruncatedEvent, "watch"),
    "silent": during(SilentConnection, "watch"),
    "bookmarks only": during(lambda: SilentConnection(bookmarks=True), "watch"),
    "410 in the stream": versions_expire_in_the_stream,
    "410 as status": versions_expire_by_status,
    "500 in the stream": watches_end_with_an_error,
    "old lists": lists_are_old,
    "429": during(lambda: ErrorResponse(429, "TooManyRequests", retry_after=1), *CALLS),
    "500": during(lambda: ErrorResponse(500), *CALLS),
    "503": during(lambda: ErrorResponse(503), *CALLS),
    "refused": server_unreachable,
    "slow": during(lambda: SlowResponse(1.0), *CALLS),
    "garbled": during(InvalidResponse, "list", "get", "write"),
    "twice": during(DuplicatedEvents, "watch"),
    "swapped": during(ReorderedEvents, "watch"),
}


@pytest.fixture
def supervised(
    control_plane: ControlPlane, admin: Path, namespace: str, tmp_path: Path
) -> Iterator[tuple[SupervisedOperator, FaultProxy]]:
    arguments = (f"--namespace={namespace}", "--progress-seconds=0.5", "--resync-seconds=2", "--log-level=debug")
    operator = OperatorProcess(control_plane, tmp_path, *arguments)
    with FaultProxy(operator.kubeconfig) as proxy, contextlib.ExitStack() as stack:
        operator.start(server=proxy.server)
        stack.push(operator.__exit__)
        operator.ready()
        yield SupervisedOperator(operator, proxy.server), proxy


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_every_job_reaches_its_end_whatever_is_lost(
    disturb: str, supervised: tuple[SupervisedOperator, FaultProxy], kubelet: SimulatedKubelet, objects: Objects
) -> None:
    supervisor, proxy = supervised
    supervisor.shown = lambda: [(job["metadata"]["name"], job.get("status")) for job in objects.items("finetunejobs")]
    running = ("ends", "loses", "gone")
    kubelet.scripts |= dict.fromkeys(running, training_ends(FOREVER))
    objects.create("finetunejobs", *(make_job(name, namespace=objects.namespace) for name in ("early", *running)))
    # The disturbance must not begin between the Job of a stage and its Event: the stage may end before the next try.
    supervisor.until(
        lambda: holds(objects, "finetunejobs", "early") and all(is_training(objects, name) for name in running),
        within=120,
        what="one is complete and the others train",
    )

    def meanwhile() -> None:
        kubelet.scripts["ends"] = succeed
        objects.delete("finetunejobs", "gone")
        objects.delete("jobs", "loses-r1-train-a1")
        objects.create("finetunejobs", make_job("new", namespace=objects.namespace))
        until(lambda: holds(objects, "jobs", "ends-r1-train-a1"), within=60, what="an end")
        until(lambda: not objects.names("jobs", "gone", "loses-r1-train-a1"), within=60, what="the deletions")

    DISTURBANCES[disturb](proxy, meanwhile)
    supervisor.until(
        lambda: all(holds(objects, "finetunejobs", name) for name in JOBS), within=240, what="all jobs are complete"
    )
    left = sorted(f"{name}-r1-{rest}" for name, rests in JOBS.items() for rest in rests)
    assert objects.names("jobs") == left
    # The objects of the deleted Job remain until its FineTuneJob is deleted.
    assert objects.names("configmaps", *JOBS, "gone") == sorted([*left, "loses-r1-train-a1"])
    reported = {name: objects.event_reasons(name) for name in JOBS}
    assert reported == dict.fromkeys(JOBS, PLAIN_EVENTS) | {"loses": sorted([*PLAIN_EVENTS, "Restarting", "Resumed"])}
    supervisor.until(
        lambda: supervisor.operator.get("/healthz") == (200, "ok"), within=60, what="the probe succeeds again"
    )
    print(disturb, "ended", supervisor.ended, "failed probes", supervisor.failed_probes)


def is_training(objects: Objects, name: str) -> bool:
    """Whether its pod runs and status has the attempt."""
    job = objects.get("finetunejobs", name) or {}
    listed = {entry["jobName"] for entry in job.get("status", {}).get("run", {}).get("attempts", ())}
    running = (pod["metadata"]["name"] for pod in objects.items("pods") if pod["status"].get("phase") == "Running")
    start = f"{name}-r1-train-a1"
    return start in listed and any(pod.startswith(start) for pod in running)


def holds(objects: Objects, plural: str, name: str) -> bool:
    """Whether the object exists and is Complete."""
    found = objects.get(plural, name)
    return found is not None and condition(found, "Complete") == "True"
