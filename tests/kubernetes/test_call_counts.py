"""API requests per job. A write takes about 4 ms of CPU time over all components of a cluster, so they are counted."""

import asyncio
import re
from collections import Counter
from pathlib import Path

from factories import make_job
from finetune_api.constants import POD_GROUP_API
from job_namespace import JOBS, JobNamespace, run_scenario
from operator_process import OperatorProcess
from testcluster.access import condition
from testcluster.control_plane import ControlPlane

CHILDREN = 3 * 2 + 1
"""A Job and a ConfigMap per stage, and a Service for training."""
DISCOVERY = 1
"""Whether the cluster serves PodGroups. If it does, training also has a PodGroup."""
TRANSITIONS = 4
"""Preparing, Training, Evaluating, Succeeded: one reconcile each, which writes an Event and status."""
OPENED = 2 * 2
"""Our own watches, of Jobs and of pods: a list with limit 1 for the start version, and the watch."""
STAGES = 3
"""Object, Job and final message come from watches; if a Job event precedes that of its pod, the pod is read."""
SPARE_PASSES = 2
"""Our own writes are recognized by their version, unless the watch is faster than the response."""
READS = 3
"""Requests of a reconcile with live reads: the object, its Jobs, their pods."""


def test_an_undisturbed_job_needs_a_known_number_of_requests(
    control_plane: ControlPlane, admin: Path, namespace: str, tmp_path: Path
) -> None:
    # There are no reconciles by time: the number of requests depends on events, not on speed.
    operator = OperatorProcess(control_plane, tmp_path, f"--namespace={namespace}", "--progress-seconds=3600")

    async def scenario(world: JobNamespace) -> None:
        jobs = JOBS.format(namespace=namespace)
        await world.server.request("POST", jobs, make_job("frugal", namespace=namespace, workers={"nodes": 2}))
        async with asyncio.timeout(120):
            while condition(await world.server.request("GET", f"{jobs}/frugal"), "Complete") != "True":
                await asyncio.sleep(0.1)

    with operator:
        run_scenario(admin, namespace, scenario)
        calls = calls_by_method(operator)
    assert set(calls) == {"GET", "POST", "PUT"}
    has_pod_groups = control_plane.kubectl.run("get", "--raw", f"/apis/{POD_GROUP_API}").returncode == 0
    assert calls["POST"] == CHILDREN + has_pod_groups + TRANSITIONS
    assert calls["PUT"] == TRANSITIONS
    assert calls["GET"] <= OPENED + STAGES + DISCOVERY + READS * SPARE_PASSES


def calls_by_method(operator: OperatorProcess) -> Counter[str]:
    """The operator's own count, without Kopf's watch."""
    found: Counter[str] = Counter()
    text = operator.get("/metrics")[1]
    for method, count in re.findall(r'^rest_client_requests_total{.*method="(\w+)".*} (\S+)$', text, re.MULTILINE):
        found[method] += int(float(count))
    return found
