"""What a job costs the API server. A write is about 4 ms of CPU over all components of a cluster: they are counted."""

import asyncio
import re
from collections import Counter
from pathlib import Path

from factories import make_job
from life_cycle_world import JOBS, World, play
from operator_process import OperatorProcess
from testcluster.access import condition
from testcluster.control_plane import ControlPlane

CHILDREN = 3 * 2 + 1
"""A Job and a ConfigMap for each stage, a Service for training."""
TRANSITIONS = 4
"""Preparing, Training, Evaluating, Succeeded: a pass each, which writes an Event and status."""
OPENED = 2 * 2
"""Our own watches, of Jobs and of pods: a list of one object for where to begin, and the watch."""
STAGES = 3
"""Object, Job and last word are as watches have shown them; where a Job is faster than its pod, that is asked for."""
SPARE_PASSES = 2
"""Our own writes are known by their version, unless the watch is faster than the answer."""
READS = 3
"""Of a pass that looks live: the object, its Jobs, their pods."""


def test_an_undisturbed_life_costs_a_known_number_of_calls(
    control_plane: ControlPlane, admin: Path, namespace: str, tmp_path: Path
) -> None:
    # Nothing is looked at by time: how many calls there are follows from what happens, not from how fast.
    operator = OperatorProcess(control_plane, tmp_path, f"--namespace={namespace}", "--progress-seconds=3600")

    async def scenario(world: World) -> None:
        jobs = JOBS.format(namespace=namespace)
        await world.server.request("POST", jobs, make_job("frugal", namespace=namespace, workers={"nodes": 2}))
        async with asyncio.timeout(120):
            while condition(await world.server.request("GET", f"{jobs}/frugal"), "Complete") != "True":
                await asyncio.sleep(0.1)

    with operator:
        play(admin, namespace, scenario)
        calls = calls_by_method(operator)
    assert set(calls) == {"GET", "POST", "PUT"}
    assert calls["POST"] == CHILDREN + TRANSITIONS
    assert calls["PUT"] == TRANSITIONS
    assert calls["GET"] <= OPENED + STAGES + READS * SPARE_PASSES


def calls_by_method(operator: OperatorProcess) -> Counter[str]:
    """The operator's own count, without Kopf's watch."""
    found: Counter[str] = Counter()
    text = operator.get("/metrics")[1]
    for method, count in re.findall(r'^rest_client_requests_total{.*method="(\w+)".*} (\S+)$', text, re.MULTILINE):
        found[method] += int(float(count))
    return found
