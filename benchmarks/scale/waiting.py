"""Measure the operator while the pods of many FineTuneJobs cannot be scheduled."""

import asyncio
import time
from dataclasses import dataclass

from factories import make_job
from operator_process import OperatorProcess

from .client import PlainClient
from .finished import calls_of
from .usage import cpu_seconds

_PATH = "/apis/finetune.dev/v1alpha1/namespaces/{}/finetunejobs"
_NOWHERE = {"finetune.dev/benchmark": "no-such-node"}


@dataclass(frozen=True)
class Waiting:
    """Measurements while all jobs wait."""

    calls_per_second: float
    """Requests to the API server."""
    cpu_percent: float


async def wait_for_room(
    client: PlainClient, operator: OperatorProcess, namespace: str, count: int, seconds: float, within: float
) -> Waiting:
    """Create the jobs, wait until the status of each is WaitingForPods, then measure."""
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            job = make_job(f"waits-{number:04d}", namespace=namespace, workers={"nodes": 2, "nodeSelector": _NOWHERE})
            group.create_task(client.create(job))
    async with asyncio.timeout(within):
        while await _waiting(client, namespace) < count:
            await asyncio.sleep(2)
    before, used, start_time = await calls_of(operator), cpu_seconds(operator.pid), time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - start_time
    calls, cpu = await calls_of(operator) - before, cpu_seconds(operator.pid) - used
    return Waiting(calls / took, 100 * cpu / took)


async def _waiting(client: PlainClient, namespace: str) -> int:
    items = (await client.send("GET", _PATH.format(namespace)))["items"]
    conditions = [entry for item in items for entry in (item.get("status") or {}).get("conditions", ())]
    return sum(entry["type"] == "Ready" and entry["reason"] == "WaitingForPods" for entry in conditions)
