"""Measure the start of an operator with many finished FineTuneJobs and their Jobs.

Their status is a copy of that of a completed FineTuneJob. The Jobs are not handled by the Job controller (`managedBy`),
so that they can be written in their final state: complete and without pods.
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
"""The last name in a sorted list."""
_IDLE_CPU_SHARE = 0.02


@dataclass(frozen=True)
class Start:
    """Measurements of a start and of an idle period."""

    seconds: float
    """Time from the start of the process until all jobs are counted and a new job has its first Job."""
    settled_seconds: float
    """Time until the operator is idle."""
    cpu_seconds: float
    """CPU time until the operator is idle."""
    rss_mib: float
    idle_cpu_percent: float
    idle_writes: float
    calls: float
    """Requests to the API server until the operator is idle, except those of Kopf."""


@dataclass(frozen=True)
class Sample:
    """A completed FineTuneJob and its Jobs in order of stages."""

    job: Manifest
    children: tuple[Manifest, ...]


async def fill(client: PlainClient, namespace: str, count: int, sample: Sample, ttl: int | None = None) -> None:
    """Create the finished jobs. `ttl` is their ttlSecondsAfterFinished."""
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
        await client.update_status(await client.create(manifest), served["status"])
    await client.update_status(job, sample.job["status"])


async def start_among(
    client: PlainClient, operator: OperatorProcess, namespace: str, count: int, idle_seconds: float
) -> Start:
    """Start the operator, wait until it is ready and then idle, and measure the idle period."""
    fresh = make_job(_FRESH, namespace=namespace)
    await client.create(fresh)
    start_time = time.monotonic()
    pid = operator.start().pid
    await asyncio.gather(_wait_until_all_counted(operator, count + 1), _wait_for_first_job(client, namespace))
    seconds = time.monotonic() - start_time
    await _wait_until_complete(client, namespace)
    await _wait_until_idle(pid)
    settled, used = time.monotonic() - start_time, cpu_seconds(pid)
    calls = await calls_of(operator)

    before = await _written(client, operator)
    await asyncio.sleep(idle_seconds)
    after = await _written(client, operator)
    idle = 100 * (cpu_seconds(pid) - used) / idle_seconds
    return Start(seconds, settled, used, peak_mib(pid), idle, after - before, calls)


async def calls_of(operator: OperatorProcess) -> float:
    """Return the number of requests of the operator from its metrics."""
    _, text = await asyncio.to_thread(operator.get, "/metrics")
    return sum(totals(text, "rest_client_requests_total", "method").values())


async def _wait_until_all_counted(operator: OperatorProcess, count: int) -> None:
    while True:
        _, text = await asyncio.to_thread(operator.get, "/metrics")
        if sum(value for _, value in samples(text, "finetune_jobs")) >= count:  # sum over all phases
            return
        assert operator.is_running, operator.log_text()
        await asyncio.sleep(0.1)


async def _wait_for_first_job(client: PlainClient, namespace: str) -> None:
    # Select the Jobs of the new job: a list of all Jobs would dominate the measurement.
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs?labelSelector=finetune.dev/job={_FRESH}"
    while not (await client.send("GET", path))["items"]:
        await asyncio.sleep(0.1)


async def _wait_until_complete(client: PlainClient, namespace: str) -> None:
    path = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs/{_FRESH}"
    while not has_condition(await client.send("GET", path), "Complete"):
        await asyncio.sleep(0.5)


async def _wait_until_idle(pid: int) -> None:
    """Wait until the process has used almost no CPU time for some seconds, for at most a minute."""
    for _ in range(20):
        before = cpu_seconds(pid)
        await asyncio.sleep(3)
        if cpu_seconds(pid) - before < 3 * _IDLE_CPU_SHARE:
            return


async def _written(client: PlainClient, operator: OperatorProcess) -> float:
    """Return writes of our objects counted by the API server, plus all writes counted by the operator.

    Either count may miss some.
    """
    _, text = await asyncio.to_thread(operator.get, "/metrics")
    operator_requests = totals(text, "rest_client_requests_total", "method")
    served = written(await client.text("/metrics"), group="finetune.dev")
    return served + sum(value for method, value in operator_requests.items() if method in WRITES)
