"""The operator's clock may be wrong or change: it uses the API server's time, which times in objects come from."""

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from factories import make_job
from fault_proxy import FaultProxy
from faults import ClockSkew
from objects import Objects
from operator_process import OperatorProcess
from process_support import until
from testcluster.access import condition
from testcluster.control_plane import ControlPlane

HOUR = timedelta(hours=1)


@pytest.mark.usefixtures("kubelet")
@pytest.mark.parametrize("ahead", [timedelta(), HOUR, -HOUR], ids=["right", "behind the server", "ahead of it"])
def test_times_in_status_are_those_of_the_server(
    control_plane: ControlPlane, objects: Objects, tmp_path: Path, ahead: timedelta
) -> None:
    operator = OperatorProcess(control_plane, tmp_path, f"--namespace={objects.namespace}", "--progress-seconds=0.5")
    with FaultProxy(operator.kubeconfig) as proxy, ExitStack() as stack:
        stack.enter_context(proxy.fault(ClockSkew(ahead), "list", "get", "write"))
        operator.start(server=proxy.server)
        stack.push(operator.__exit__)
        operator.ready()
        objects.create("finetunejobs", make_job("timely", namespace=objects.namespace))

        def complete() -> dict[str, object] | None:
            job = objects.get("finetunejobs", "timely")
            return job if job and condition(job, "Complete") == "True" else None

        job = until(complete, within=120, what="the job is complete")
        ended = datetime.fromisoformat(job["status"]["run"]["completionTime"])
        assert abs(ended - (datetime.now(UTC) + ahead)) < timedelta(minutes=5)
