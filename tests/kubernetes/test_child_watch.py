"""The watch of Jobs: a start among jobs that are over reads none of theirs, and whatever breaks, no end is missed.

Nothing is looked at by time here, and no list of all FineTuneJobs comes to help.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from factories import make_job
from fault_proxy import Fault, FaultProxy
from faults import CutInTheMiddle, Expired, Refusal, Silence
from life_cycle_world import train_ends
from objects import Objects
from operator_process import OperatorProcess
from process_support import until
from simulated_kubelet import FOREVER, SimulatedKubelet, done
from testcluster.access import condition
from testcluster.control_plane import ControlPlane


@pytest.fixture
def operator(control_plane: ControlPlane, admin: Path, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """Not started yet."""
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


def test_a_start_among_jobs_that_are_over_reads_none_of_theirs(
    operator: OperatorProcess, proxy: FaultProxy, kubelet: SimulatedKubelet, objects: Objects
) -> None:
    operator.start(server=proxy.server).ready()
    objects.create("finetunejobs", make_job("over", namespace=objects.namespace))
    until(lambda: holds(objects, "finetunejobs", "over"), within=60, what="it is complete")
    assert operator.stop() == 0
    begun = len(proxy.calls)
    operator.start(server=proxy.server).ready()
    objects.create("finetunejobs", make_job("next", namespace=objects.namespace, suspend=True))
    until(lambda: holds(objects, "finetunejobs", "next", "Suspended"), within=60, what="the next one is served")
    asked = [call for call in proxy.calls[begun:] if call.plural == "jobs" and call.kind in ("list", "get")]
    assert all("over" not in call.path and "over" not in call.query for call in asked)
    of_all = [parse_qs(call.query) for call in asked if "finetune.dev" not in call.query]
    assert [query["limit"] for query in of_all] == [["1"]]


TROUBLES: dict[str, Fault] = {
    "silent": Silence(),
    "cut": CutInTheMiddle(),
    "too old": Expired(),
    "refused": Refusal(503, times=2),
    "too many requests": Refusal(429, retry_after=1, times=2),
    "too old, as status": Refusal(410, "Expired", times=2),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_no_end_of_a_job_is_missed_by_its_watch_alone(
    trouble: str, operator: OperatorProcess, proxy: FaultProxy, kubelet: SimulatedKubelet, objects: Objects
) -> None:
    operator.start(server=proxy.server).ready()
    kubelet.scripts["ends"] = train_ends(FOREVER)
    objects.create("finetunejobs", make_job("ends", namespace=objects.namespace))
    until(lambda: objects.get("jobs", "ends-r1-train-a1") is not None, within=60, what="it trains")
    with proxy.fault(TROUBLES[trouble], "watch", plurals=("jobs",)):
        kubelet.scripts["ends"] = done
        until(lambda: holds(objects, "jobs", "ends-r1-train-a1"), within=60, what="the Job's end")
    until(lambda: holds(objects, "finetunejobs", "ends"), within=60, what="the end of all")


def test_without_the_right_to_watch_pods_jobs_end_all_the_same_and_the_log_says_what_is_missing(
    operator: OperatorProcess, proxy: FaultProxy, kubelet: SimulatedKubelet, objects: Objects
) -> None:
    """As where a new operator meets the rights of an old installation."""
    with proxy.fault(Refusal(403, "Forbidden"), "watch", plurals=("pods",)):
        operator.start(server=proxy.server).ready()
        objects.create("finetunejobs", make_job("poor", namespace=objects.namespace))
        until(lambda: holds(objects, "finetunejobs", "poor"), within=60, what="the end of all")
    assert f"watch of /api/v1/namespaces/{objects.namespace}/pods failed: " in operator.said()
