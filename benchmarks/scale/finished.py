"""Many FineTuneJobs that are over, with their Jobs, and an operator that starts among them.

Their status is that of a job which the operator has served. The Jobs are given to no controller (`managedBy`), so that
they can be written as they are left: complete, their pods gone.
"""

import asyncio
import time
from dataclasses import dataclass

from factories import make_job
from finetune_api.validation import parse_job
from finetune_operator.render import render_all
from finetune_operator.settings import OperatorSettings
from operator_process import OperatorProcess

from .client import Manifest, PlainClient, has_condition
from .usage import WRITES, cpu_seconds, peak_mib, samples, totals, written

_FRESH = "zz-fresh"
"""Comes last in a list by name."""
_QUIET_CPU_SHARE = 0.02


@dataclass(frozen=True)
class Start:
    """An operator's start among them, and a while in which nothing changes."""

    seconds: float
    """From the start of the process until all are seen and a new job has its first Job."""
    settled_seconds: float
    """Until it does nothing any more."""
    cpu_seconds: float
    """Until then."""
    rss_mib: float
    idle_cpu_percent: float
    idle_writes: float
    calls: float
    """To the API server, until it did nothing any more; without Kopf's own."""


@dataclass(frozen=True)
class Sample:
    """A job that the operator has served, and its Jobs, stage after stage."""

    job: Manifest
    children: tuple[Manifest, ...]


async def fill(client: PlainClient, namespace: str, count: int, sample: Sample, ttl: int | None = None) -> None:
    """Write them all; `ttl`: seconds after which their children are to be removed."""
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(_write(client, namespace, f"done-{number:05d}", sample, ttl))


async def _write(client: PlainClient, namespace: str, name: str, sample: Sample, ttl: int | None) -> None:
    nodes = sample.job["spec"]["workers"]["nodes"]
    spec = {"workers": {"nodes": nodes}} | ({} if ttl is None else {"ttlSecondsAfterFinished": ttl})
    job = await client.create(make_job(name, namespace=namespace, **spec))
    rendered = render_all(parse_job(job), OperatorSettings())
    jobs = [manifest for manifest in rendered if manifest["kind"] == "Job"]
    for manifest, served in zip(jobs, sample.children, strict=True):
        manifest["spec"]["managedBy"] = "finetune.dev/benchmark"
        await client.write_status(await client.create(manifest), served["status"])
    await client.write_status(job, sample.job["status"])


async def start_among(
    client: PlainClient, operator: OperatorProcess, namespace: str, count: int, idle_seconds: float
) -> Start:
    """Start the operator, wait until it serves, until it rests, and then a while longer."""
    fresh = make_job(_FRESH, namespace=namespace)
    await client.create(fresh)
    begun = time.monotonic()
    pid = operator.start().pid
    await asyncio.gather(_all_seen(operator, count + 1), _first_job(client, namespace))
    seconds = time.monotonic() - begun
    await _is_complete(client, namespace)
    await _ignore_progress(pid)
    settled, used = time.monotonic() - begun, cpu_seconds(pid)
    calls = await calls_of(operator)

    before = await _written(client, operator)
    await asyncio.sleep(idle_seconds)
    after = await _written(client, operator)
    idle = 100 * (cpu_seconds(pid) - used) / idle_seconds
    return Start(seconds, settled, used, peak_mib(pid), idle, after - before, calls)


async def calls_of(operator: OperatorProcess) -> float:
    """All calls that the operator has made, as it counts them itself."""
    _, text = await asyncio.to_thread(operator.get, "/metrics")
    return sum(totals(text, "rest_client_requests_total", "method").values())


async def _all_seen(operator: OperatorProcess, count: int) -> None:
    while True:
        _, text = await asyncio.to_thread(operator.get, "/metrics")
        if sum(value for _, value in samples(text, "finetune_jobs")) >= count:  # over all phases
            return
        assert operator.is_running, operator.said()
        await asyncio.sleep(0.1)


async def _first_job(client: PlainClient, namespace: str) -> None:
    # The other Jobs are not listed: their creation would be the larger part of what is measured.
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs?labelSelector=finetune.dev/job={_FRESH}"
    while not (await client.send("GET", path))["items"]:
        await asyncio.sleep(0.1)


async def _is_complete(client: PlainClient, namespace: str) -> None:
    path = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs/{_FRESH}"
    while not has_condition(await client.send("GET", path), "Complete"):
        await asyncio.sleep(0.5)


async def _ignore_progress(pid: int) -> None:
    """Until it has used next to nothing for some seconds, or until it is clear that it never will."""
    for _ in range(20):
        before = cpu_seconds(pid)
        await asyncio.sleep(3)
        if cpu_seconds(pid) - before < 3 * _QUIET_CPU_SHARE:
            return


async def _written(client: PlainClient, operator: OperatorProcess) -> float:
    """Of our objects as the API server counts, and of all as the operator counts: either alone may miss some."""
    _, text = await asyncio.to_thread(operator.get, "/metrics")
    own = totals(text, "rest_client_requests_total", "method")
    served = written(await client.text("/metrics"), group="finetune.dev")
    return served + sum(value for method, value in own.items() if method in WRITES)
