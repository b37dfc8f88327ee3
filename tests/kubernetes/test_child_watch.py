"""The watch of Jobs: a start with finished jobs reads none of theirs, and no end of a Job is missed after failures.

There are no reconciles by time here, and no list of all FineTuneJobs.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from factories import make_job
from fault_proxy import Fault, FaultProxy
from faults import ErrorResponse, ExpiredVersion, SilentConnection, TruncatedEvent
from job_namespace import training_ends
from objects import Objects
from operator_process import OperatorProcess
from process_support import until
from simulated_kubelet import FOREVER, SimulatedKubelet, succeed
from testcluster.access import condition
from testcluster.control_plane import ControlPlane


@pytest.fixture
def operator(control_plane: ControlPlane, admin: Path, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator that is not started yet."""
    arguments = ("--progress-seconds=1000", "--resync-seconds=1000", "--watch-silence-seconds=4")
    with ExitStack() as stack:
        process = OperatorProcess(control_plane, tmp_path, f"--namespace={namespace}", *arguments)
        stack.push(process.__exit__)
        yield process


@pytest.fixture
def proxy(operator: OperatorProcess) -> Iterator[FaultProxy]:
    with FaultProxy(operator.kubeconfig) as between:
        yield between


def holds(objects: Objects, plural: str, name: str, kind: str = "Complete") -> bool:
    return condition(objects.get(plural, name) or {}, kind) == "True"


def test_a_start_with_finished_jobs_reads_none_of_their_jobs(
    operator: OperatorProcess, proxy: FaultProxy, kubelet: SimulatedKubelet, objects: Objects
) -> None:
    operator.start(server=proxy.server).ready()
    objects.create("finetunejobs", make_job("over", namespace=objects.namespace))
    until(lambda: holds(objects, "finetunejobs", "over"), within=60, what="the job is complete")
    assert operator.stop() == 0
    begun = len(proxy.calls)
    operator.start(server=proxy.server).ready()
    objects.create("finetunejobs", make_job("next", namespace=objects.namespace, suspend=True))
    until(lambda: holds(objects, "finetunejobs", "next", "Suspended"), within=60, what="the next job is reconciled")
    asked = [call for call in proxy.calls[begun:] if call.plural == "jobs" and call.kind in ("list", "get")]
    assert all("over" not in call.path and "over" not in call.query for call in asked)
    of_all = [parse_qs(call.query) for call in asked if "finetune.dev" not in call.query]
    assert [query["limit"] for query in of_all] == [["1"]]


DISTURBANCES: dict[str, Fault] = {
    "silent": SilentConnection(),
    "cut": TruncatedEvent(),
    "too old": ExpiredVersion(),
    "refused": ErrorResponse(503, times=2),
    "too many requests": ErrorResponse(429, retry_after=1, times=2),
    "too old, as status": ErrorResponse(410, "Expired", times=2),
}


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_the_watch_alone_misses_no_end_of_a_job(
    disturb: str, operator: OperatorProcess, proxy: FaultProxy, kubelet: SimulatedKubelet, objects: Objects
) -> None:
    operator.start(server=proxy.server).ready()
    kubelet.scripts["ends"] = training_ends(FOREVER)
    objects.create("finetunejobs", make_job("ends", namespace=objects.namespace))
    until(lambda: objects.get("jobs", "ends-r1-train-a1") is not None, within=60, what="it trains")
    with proxy.fault(DISTURBANCES[disturb], "watch", plurals=("jobs",)):
        kubelet.scripts["ends"] = succeed
        until(lambda: holds(objects, "jobs", "ends-r1-train-a1"), within=60, what="the end of the Job")
    until(lambda: holds(objects, "finetunejobs", "ends"), within=60, what="the end of the FineTuneJob")


def test_without_permission_to_watch_pods_jobs_complete_and_the_log_names_the_permission(
    operator: OperatorProcess, proxy: FaultProxy, kubelet: SimulatedKubelet, objects: Objects
) -> None:
    """Like a new operator with the permissions of an old installation."""
    with proxy.fault(ErrorResponse(403, "Forbidden"), "watch", plurals=("pods",)):
        operator.start(server=proxy.server).ready()
        objects.create("finetunejobs", make_job("poor", namespace=objects.namespace))
        until(lambda: holds(objects, "finetunejobs", "poor"), within=60, what="the end of the FineTuneJob")
    assert f"watch of /api/v1/namespaces/{objects.namespace}/pods failed: " in operator.log_text()
