"""The two variants: a script that creates all children directly, and the operator."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from factories import make_job
from finetune_api.validation import parse_job
from finetune_operator.render import render_all
from finetune_operator.settings import OperatorSettings

from .client import Manifest, PlainClient, has_condition

_JOBS = "/apis/batch/v1/namespaces/{}/jobs"
_FINE_TUNE_JOBS = "/apis/finetune.dev/v1alpha1/namespaces/{}/finetunejobs"


@dataclass(frozen=True)
class LifeCycleTimes:
    """Times of all jobs, in seconds since the first request."""

    started: tuple[float, ...]
    """Creation of the first Job of each."""
    done: tuple[float, ...]
    """Completion of each."""

    @property
    def seconds(self) -> float:
        return max(self.done)


def jobs_of(namespace: str, count: int, nodes: int) -> list[Manifest]:
    """Return FineTuneJobs as users would apply them."""
    return [make_job(f"job-{number:04d}", namespace=namespace, workers={"nodes": nodes}) for number in range(count)]


def stages_of(job: Manifest) -> list[list[Manifest]]:
    """Return the children of each stage, with the Job last.

    They have no owner, because the garbage collector would delete children of an owner that does not exist.
    """
    uid = {"uid": f"uid-{job['metadata']['name']}"}
    rendered = render_all(parse_job({**job, "metadata": job["metadata"] | uid}), OperatorSettings())
    stages: list[list[Manifest]] = [[]]
    for manifest in rendered:
        del manifest["metadata"]["ownerReferences"]
        stages[-1].append(manifest)
        if manifest["kind"] == "Job":
            stages.append([])
    return stages[:-1]


async def run_bare(client: PlainClient, namespace: str, jobs: Sequence[Manifest], within: float) -> LifeCycleTimes:
    """Create the children of all jobs directly, each stage when the previous one has completed."""
    plans = [stages_of(job) for job in jobs]
    following = {
        stage[-1]["metadata"]["name"]: plan[index + 1] if index + 1 < len(plan) else None
        for plan in plans
        for index, stage in enumerate(plan)
    }
    start_time, started, done = time.monotonic(), [], []

    async def create(stage: list[Manifest]) -> None:
        for manifest in stage:
            await client.create(manifest)

    async def first(plan: list[list[Manifest]]) -> None:
        await create(plan[0])
        started.append(time.monotonic() - start_time)

    async def follow(group: asyncio.TaskGroup) -> None:
        async for _, job in client.watch(_JOBS.format(namespace)):
            name = job["metadata"]["name"]
            if name not in following or not has_condition(job, "Complete"):
                continue
            stage = following.pop(name)
            if stage is not None:
                group.create_task(create(stage))
                continue
            done.append(time.monotonic() - start_time)
            if len(done) == len(plans):
                return

    async with asyncio.timeout(within), asyncio.TaskGroup() as group:
        group.create_task(follow(group))
        for plan in plans:
            group.create_task(first(plan))
    return LifeCycleTimes(tuple(started), tuple(done))


async def run_ours(client: PlainClient, namespace: str, jobs: Sequence[Manifest], within: float) -> LifeCycleTimes:
    """Create all FineTuneJobs at once, and take the times from their status, as a user would see them."""
    start_time = time.monotonic()
    started: dict[str, float] = {}
    done: dict[str, float] = {}

    async def follow() -> None:
        async for _, job in client.watch(_FINE_TUNE_JOBS.format(namespace)):
            now, name = time.monotonic() - start_time, job["metadata"]["name"]
            if ((job.get("status") or {}).get("run") or {}).get("stage"):
                started.setdefault(name, now)
            if has_condition(job, "Failed"):
                raise RuntimeError(f"{name} failed: {job['status']}")
            if has_condition(job, "Complete"):
                done.setdefault(name, now)
            if len(done) == len(jobs):
                return

    async with asyncio.timeout(within), asyncio.TaskGroup() as group:
        group.create_task(follow())
        for job in jobs:
            group.create_task(client.create(job))
    return LifeCycleTimes(tuple(started.values()), tuple(done.values()))


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of unsorted values."""
    ordered: list[Any] = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])
