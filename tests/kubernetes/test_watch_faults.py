"""Faults on the way to the API server: whatever is lost, late or wrong, every job reaches the same end.

The operator is the real process, behind a proxy that fails as networks and servers do. It may stay up, or end with an
error and be started again, as a kubelet does; it may not be up, call itself healthy, and leave a job where it is.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factories import make_job
from fault_proxy import Fault, FaultProxy
from faults import CutInTheMiddle, Doubled, Expired, Garbled, Refusal, Silence, Slow, StaleList, Swapped
from life_cycle_world import train_ends
from objects import Objects
from operator_process import OperatorProcess
from process_support import until
from simulated_kubelet import FOREVER, SimulatedKubelet, done
from supervised import Supervised
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
"""Name of a FineTuneJob -> Jobs that are left of it; nothing is left of `gone`."""

Meanwhile = Callable[[], None]
Trouble = Callable[[FaultProxy, Meanwhile], None]


CALLS = ("watch", "list", "get", "write")


def during(fault: Callable[[], Fault], *kinds: str) -> Trouble:
    """The fault is there while things happen, and gone afterwards."""

    def trouble(proxy: FaultProxy, meanwhile: Meanwhile) -> None:
        with proxy.fault(fault(), *kinds):
            meanwhile()

    return trouble


def none(_proxy: FaultProxy, meanwhile: Meanwhile) -> None:
    meanwhile()


def versions_expire_in_the_stream(proxy: FaultProxy, meanwhile: Meanwhile) -> None:
    with proxy.fault(Silence(), "watch"):
        meanwhile()
    say_once(proxy, Expired())


def watches_end_with_an_error(proxy: FaultProxy, meanwhile: Meanwhile) -> None:
    with proxy.fault(Silence(), "watch"):
        meanwhile()
    say_once(proxy, Expired(code=500))


def versions_expire_by_status(proxy: FaultProxy, meanwhile: Meanwhile) -> None:
    with proxy.fault(Silence(), "watch"):
        meanwhile()
    refusal = Refusal(410, "Expired", times=2)
    with proxy.fault(refusal, "watch"):
        until(lambda: refusal.times < 2, within=60, what="a watch is refused")


def say_once(proxy: FaultProxy, expired: Expired) -> None:
    with proxy.fault(expired, "watch"):
        until(lambda: expired.told, within=60, what="it is said")


def lists_are_old(proxy: FaultProxy, meanwhile: Meanwhile) -> None:
    lists = StaleList()
    with proxy.fault(lists, "list"):
        proxy.cut_watches()
        since = time.monotonic()
        until(lambda: proxy.count("list", "finetunejobs", since=since) > 0, within=60, what="a list to be kept")
        lists.is_replaying = True
        meanwhile()
        say_once(proxy, Expired())
        since = time.monotonic()
        until(lambda: proxy.count("list", "finetunejobs", since=since) > 1, within=60, what="the old list is read")


def nobody_listens(proxy: FaultProxy, meanwhile: Meanwhile) -> None:
    with proxy.unreachable():
        meanwhile()


TROUBLES: dict[str, Trouble] = {
    "none": none,
    "cut in the middle": during(CutInTheMiddle, "watch"),
    "silent": during(Silence, "watch"),
    "bookmarks only": during(lambda: Silence(bookmarks=True), "watch"),
    "410 in the stream": versions_expire_in_the_stream,
    "410 as status": versions_expire_by_status,
    "500 in the stream": watches_end_with_an_error,
    "old lists": lists_are_old,
    "429": during(lambda: Refusal(429, "TooManyRequests", retry_after=1), *CALLS),
    "500": during(lambda: Refusal(500), *CALLS),
    "503": during(lambda: Refusal(503), *CALLS),
    "refused": nobody_listens,
    "slow": during(lambda: Slow(1.0), *CALLS),
    "garbled": during(Garbled, "list", "get", "write"),
    "twice": during(Doubled, "watch"),
    "swapped": during(Swapped, "watch"),
}


@pytest.fixture
def supervised(
    control_plane: ControlPlane, admin: Path, namespace: str, tmp_path: Path
) -> Iterator[tuple[Supervised, FaultProxy]]:
    arguments = (f"--namespace={namespace}", "--progress-seconds=0.5", "--resync-seconds=2", "--log-level=debug")
    operator = OperatorProcess(control_plane, tmp_path, *arguments)
    with FaultProxy(operator.kubeconfig) as proxy, contextlib.ExitStack() as stack:
        operator.start(server=proxy.server)
        stack.push(operator.__exit__)
        operator.ready()
        yield Supervised(operator, proxy.server), proxy


@pytest.mark.parametrize("trouble", TROUBLES)
def test_whatever_is_lost_every_job_reaches_its_end(
    trouble: str, supervised: tuple[Supervised, FaultProxy], kubelet: SimulatedKubelet, objects: Objects
) -> None:
    keeper, proxy = supervised
    keeper.shown = lambda: [(job["metadata"]["name"], job.get("status")) for job in objects.items("finetunejobs")]
    running = ("ends", "loses", "gone")
    kubelet.scripts |= dict.fromkeys(running, train_ends(FOREVER))
    objects.create("finetunejobs", *(make_job(name, namespace=objects.namespace) for name in ("early", *running)))
    keeper.until(lambda: all(trains(objects, name) for name in running), within=120, what="they train")

    def meanwhile() -> None:
        kubelet.scripts["ends"] = done
        objects.delete("finetunejobs", "gone")
        objects.delete("jobs", "loses-r1-train-a1")
        objects.create("finetunejobs", make_job("new", namespace=objects.namespace))
        until(lambda: holds(objects, "jobs", "ends-r1-train-a1"), within=60, what="an end")
        until(lambda: not objects.names("jobs", "gone", "loses-r1-train-a1"), within=60, what="the deletions")

    TROUBLES[trouble](proxy, meanwhile)
    keeper.until(
        lambda: all(holds(objects, "finetunejobs", name) for name in JOBS), within=240, what="all are complete"
    )
    left = sorted(f"{name}-r1-{rest}" for name, rests in JOBS.items() for rest in rests)
    assert objects.names("jobs") == left
    # What belongs to the Job that somebody deleted stays until its FineTuneJob goes.
    assert objects.names("configmaps", *JOBS, "gone") == sorted([*left, "loses-r1-train-a1"])
    told = {name: objects.told(name) for name in JOBS}
    assert told == dict.fromkeys(JOBS, PLAIN_EVENTS) | {"loses": sorted([*PLAIN_EVENTS, "Restarting", "Resumed"])}
    keeper.until(lambda: keeper.operator.get("/healthz") == (200, "ok"), within=60, what="it is well again")
    print(trouble, "ended", keeper.ended, "found ill", keeper.found_ill)


def trains(objects: Objects, name: str) -> bool:
    """Its pod runs, and status knows of the attempt."""
    job = objects.get("finetunejobs", name) or {}
    listed = {entry["jobName"] for entry in job.get("status", {}).get("run", {}).get("attempts", ())}
    running = (pod["metadata"]["name"] for pod in objects.items("pods") if pod["status"].get("phase") == "Running")
    start = f"{name}-r1-train-a1"
    return start in listed and any(pod.startswith(start) for pod in running)


def holds(objects: Objects, plural: str, name: str) -> bool:
    """It is there and Complete."""
    found = objects.get(plural, name)
    return found is not None and condition(found, "Complete") == "True"
