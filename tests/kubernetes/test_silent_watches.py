"""A watch that has become silent: objects that it misses are still reconciled, and the probe reports it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from factories import make_job
from fault_proxy import FaultProxy
from faults import ErrorResponse, SilentConnection
from objects import Objects
from operator_process import OperatorProcess
from process_support import until
from testcluster.access import condition
from testcluster.control_plane import ControlPlane

Start = Callable[..., tuple[OperatorProcess, FaultProxy]]
RARELY = "--resync-seconds=1000"


@pytest.fixture
def start(control_plane: ControlPlane, admin: Path, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """An operator with these arguments, behind a proxy."""
    with ExitStack() as stack:

        def started(*arguments: str) -> tuple[OperatorProcess, FaultProxy]:
            operator = OperatorProcess(control_plane, tmp_path, f"--namespace={namespace}", *arguments)
            proxy = stack.enter_context(FaultProxy(operator.kubeconfig))
            operator.start(server=proxy.server)
            stack.push(operator.__exit__)
            return operator.ready(), proxy

        yield started


def create(objects: Objects, name: str) -> None:
    """Create a suspended job: it needs one reconcile."""
    objects.create("finetunejobs", make_job(name, namespace=objects.namespace, suspend=True))


def is_served(objects: Objects, name: str) -> bool:
    return condition(objects.get("finetunejobs", name) or {}, "Suspended") == "True"


def silence(proxy: FaultProxy) -> AbstractContextManager[None]:
    return proxy.fault(SilentConnection(), "watch")


def test_the_resync_finds_objects_that_a_silent_watch_misses(start: Start, objects: Objects) -> None:
    _, proxy = start("--resync-seconds=2", "--watch-silence-seconds=1000")
    with silence(proxy):
        create(objects, "unseen")
        until(lambda: is_served(objects, "unseen"), within=60, what="the job is reconciled")


def test_a_silent_watch_is_reopened_and_delivers_missed_events(start: Start, objects: Objects) -> None:
    operator, proxy = start(RARELY, "--watch-silence-seconds=4")
    with silence(proxy):
        create(objects, "unseen")
        assert not is_served(objects, "unseen")
    until(lambda: is_served(objects, "unseen"), within=60, what="the job is reconciled")
    assert operator.get("/healthz") == (200, "ok")


def test_the_probe_fails_while_the_watch_is_behind_until_a_restart(start: Start, objects: Objects) -> None:
    operator, proxy = start("--resync-seconds=1", "--watch-silence-seconds=1000")
    with silence(proxy):
        create(objects, "unseen")
        ill = (500, "watch and list have returned different objects three times")
        until(lambda: operator.get("/healthz") == ill, within=60, what="the probe fails")
    assert operator.stop() == 0
    operator.start(server=proxy.server).ready()
    watched_from = proxy.count("list", "finetunejobs")
    until(
        lambda: proxy.count("list", "finetunejobs") > watched_from + 4,
        within=60,
        what="the operator has listed several times",
    )
    assert operator.get("/healthz") == (200, "ok")


def test_the_probe_fails_while_objects_cannot_be_listed(start: Start) -> None:
    """There are no objects; the list is required anyway."""
    operator, proxy = start("--resync-seconds=1")
    with proxy.fault(ErrorResponse(503, "ServiceUnavailable"), "list"):
        until(lambda: operator.get("/healthz")[0] == 500, within=120, what="the probe fails")
    until(lambda: operator.get("/healthz") == (200, "ok"), within=60, what="the probe succeeds again")


def test_objects_that_change_constantly_do_not_count_as_missed(start: Start, objects: Objects) -> None:
    """The watch is always a little ahead of a list, which is normal."""
    operator, proxy = start("--resync-seconds=0.5")
    create(objects, "restless")
    until(lambda: is_served(objects, "restless"), within=60, what="the job is reconciled")
    before, deadline = proxy.count("list", "finetunejobs"), time.monotonic() + 60
    number = 0
    while proxy.count("list", "finetunejobs") < before + 6:
        assert time.monotonic() < deadline, "it is listed six times"
        number += 1
        objects.annotate("finetunejobs", "restless", number=str(number))
        assert operator.get("/healthz") == (200, "ok")
