"""Benchmark the operator with many jobs, on a real control plane with simulated nodes.

    make bench-operator ARGS='--jobs 50 --waiting 50 --finished-ttl 50 --finished 50 --idle-seconds 10'

bare: a script creates the children of all jobs (Jobs, Services, ConfigMaps) directly, stage after stage. ours: the
same number of FineTuneJobs is created at once. Both alternate, each in its own namespace, which is deleted before the
next one starts. Then jobs wait for nodes that do not exist, and an operator starts with many finished jobs, with and
without a TTL. Pods succeed immediately, so that only the control plane is measured.
Prints a table and, as the last line, a JSON object.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from scale.client import Manifest, PlainClient
from scale.finished import Sample, Start, fill, start_among
from scale.usage import all_cpu_seconds, cpu_seconds, peak_mib, totals, written
from scale.variants import LifeCycleTimes, jobs_of, quantile, run_bare, run_ours
from scale.waiting import Waiting, wait_for_room

from operator_process import OperatorProcess, install
from testcluster.control_plane import ControlPlane
from testcluster.run_folder import run_folder
from testcluster.simulated import simulated_nodes

AT_ONCE = 20
"""Concurrent requests of the script."""
NODES = 100

_TTL_SECONDS = 86_400
"""ttlSecondsAfterFinished of the finished jobs."""


@dataclass(frozen=True)
class Round:
    """One round of a variant."""

    variant: str
    times: LifeCycleTimes
    cpu: Counter[str]
    """Seconds by program."""
    writes: float
    """Writes of all components."""
    rss_mib: float = 0.0
    """Peak memory of the operator."""
    calls: Counter[str] | None = None
    """Requests of the operator by method."""

    @property
    def count(self) -> int:
        return len(self.times.done)


class Bench:
    """The benchmark on one control plane."""

    def __init__(self, options: argparse.Namespace, control: ControlPlane, client: PlainClient) -> None:
        self.options, self.control, self.client = options, control, client

    async def bare(self, namespace: str) -> Round:
        before, wrote = all_cpu_seconds(), await self._written()
        times = await run_bare(self.client, namespace, self._jobs(namespace), self.options.within)
        return Round("bare", times, all_cpu_seconds() - before, await self._written() - wrote)

    async def ours(self, namespace: str) -> tuple[Round, Sample]:
        with OperatorProcess(self.control, self.control.folder / namespace, *self.options.operator_args) as operator:
            pid = operator.pid
            before, wrote, used = all_cpu_seconds(), await self._written(), cpu_seconds(pid)
            times = await run_ours(self.client, namespace, self._jobs(namespace), self.options.within)
            cpu = all_cpu_seconds() - before
            cpu["operator"] = cpu_seconds(pid) - used  # type: ignore[assignment]
            calls = totals(operator.get("/metrics")[1], "rest_client_requests_total", "method")
            done = Round("ours", times, cpu, await self._written() - wrote, peak_mib(pid), calls)
            operator.stop()
        return done, await self._sample(namespace)

    async def finished(self, namespace: str, sample: Sample, count: int, ttl: int | None = None) -> Start:
        start_time = time.monotonic()
        await fill(self.client, namespace, count, sample, ttl)
        log(f"{count} finished jobs written in {time.monotonic() - start_time:.0f} s")
        # The list of all objects, by default every five minutes, must be within the idle time.
        arguments = (f"--resync-seconds={self.options.idle_seconds}", *self.options.operator_args)
        operator = OperatorProcess(self.control, self.control.folder / namespace, *arguments)
        try:
            return await start_among(self.client, operator, namespace, count, self.options.idle_seconds)
        finally:
            if operator.is_running:
                operator.kill()

    async def waiting(self, namespace: str) -> Waiting:
        options = self.options
        with OperatorProcess(self.control, self.control.folder / namespace, *options.operator_args) as operator:
            found = await wait_for_room(
                self.client, operator, namespace, options.waiting, options.idle_seconds, options.within
            )
            operator.stop()
        return found

    def _jobs(self, namespace: str) -> list[Manifest]:
        return jobs_of(namespace, self.options.jobs, self.options.nodes)

    async def _written(self) -> float:
        return written(await self.client.text("/metrics"))

    async def _sample(self, namespace: str) -> Sample:
        name = self._jobs(namespace)[0]["metadata"]["name"]
        kubectl = self.control.kubectl.within(namespace)
        job = await asyncio.to_thread(kubectl.json, "get", f"ftj/{name}")
        jobs = await asyncio.to_thread(kubectl.json, "get", "jobs", f"--selector=finetune.dev/job={name}")
        return Sample(job, tuple(sorted(jobs["items"], key=lambda one: str(one["metadata"]["creationTimestamp"]))))

    @contextlib.asynccontextmanager
    async def namespace(self, name: str) -> AsyncIterator[str]:
        """Create a namespace, and delete it after the block, before the next measurement starts."""
        kubectl = self.control.kubectl
        kubectl("create", "namespace", name)
        kubectl.within(name).until("serviceaccount/default", lambda _: True, within=30)
        yield name
        start_time = time.monotonic()
        await asyncio.to_thread(kubectl, "delete", "namespace", name, within=self.options.within)
        log(f"namespace {name} was deleted in {time.monotonic() - start_time:.0f} s")


async def measure(options: argparse.Namespace, control: ControlPlane) -> dict[str, float]:
    """Run all measurements."""
    rounds: list[Round] = []
    async with PlainClient(control.kubectl.kubeconfig, AT_ONCE) as client:
        bench = Bench(options, control, client)
        for number in range(options.rounds):
            async with bench.namespace(f"bare-{number}") as namespace:
                rounds.append(await bench.bare(namespace))
                print(row(rounds[-1]), flush=True)
            async with bench.namespace(f"ours-{number}") as namespace:
                ours, sample = await bench.ours(namespace)
                rounds.append(ours)
                print(row(ours), flush=True)
        found: dict[str, float] = {}
        if options.waiting:
            async with bench.namespace("waiting") as namespace:
                found |= waiting_figures(await bench.waiting(namespace))
        if options.finished_ttl:
            async with bench.namespace("finished-ttl") as namespace:
                ttl = await bench.finished(namespace, _just_ended(sample), options.finished_ttl, _TTL_SECONDS)
                found |= {"startTtlSeconds": ttl.seconds, "startTtlCalls": ttl.calls, "startTtlRssMiB": ttl.rss_mib}
        start = None
        if options.finished:
            bench.control.kubectl("create", "namespace", "finished")
            start = await bench.finished("finished", sample, options.finished)
    print()
    print(table(rounds))
    return figures(rounds, start) | {name: round(value, 2) for name, value in found.items()}


def waiting_figures(waiting: Waiting) -> dict[str, float]:
    """Return the figures of jobs whose pods cannot be scheduled."""
    return {"waitingCallsPerSecond": waiting.calls_per_second, "waitingCpuPercent": waiting.cpu_percent}


def _just_ended(sample: Sample) -> Sample:
    """Return the same job with the current time as its end, so that its children are not due for removal."""
    now = datetime.now(UTC)
    run = {**sample.job["status"]["run"], "completionTime": now.isoformat(timespec="seconds")}
    due = now + timedelta(seconds=_TTL_SECONDS)
    status = {**sample.job["status"], "run": run, "dueTime": due.isoformat(timespec="seconds")}
    return Sample({**sample.job, "status": status}, sample.children)


HEADINGS = (
    "variant",
    "jobs",
    "first Job s",
    "complete s",
    "p50",
    "p95",
    "CPU s",
    "operator",
    "RSS MiB",
    "writes/job",
    "requests/job",
)


def row(found: Round) -> str:
    times, count = found.times, found.count
    calls = "-" if found.calls is None else f"{sum(found.calls.values()) / count:.1f}"
    cells = (
        *(found.variant, str(count), f"{max(times.started):.1f}", f"{times.seconds:.1f}"),
        *(f"{quantile(times.done, share):.1f}" for share in (0.5, 0.95)),
        *(f"{sum(found.cpu.values()):.1f}", f"{found.cpu['operator']:.1f}", f"{found.rss_mib:.0f}"),
        *(f"{found.writes / count:.1f}", calls),
    )
    return _aligned(cells)


def _aligned(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{max(6, len(heading)) + 2}}" for cell, heading in zip(cells, HEADINGS, strict=True))


def table(rounds: Sequence[Round]) -> str:
    lines = [_aligned(HEADINGS), *map(row, rounds), ""]
    programs = sorted({name for found in rounds for name in found.cpu if found.cpu[name] >= 0.05})
    for found in rounds:
        used = ", ".join(f"{name} {found.cpu[name]:.1f}" for name in programs if found.cpu[name])
        lines.append(f"CPU s, {found.variant}: {used}")
        if found.calls is not None:
            each = ", ".join(f"{method} {calls / found.count:.2f}" for method, calls in sorted(found.calls.items()))
            lines.append(f"requests of the operator per job: {each}")
    return "\n".join(lines)


def figures(rounds: Sequence[Round], start: Start | None) -> dict[str, float]:
    """Return medians over the rounds. Ratios compare consecutive rounds."""
    bare, ours = ([found for found in rounds if found.variant == variant] for variant in ("bare", "ours"))
    median = statistics.median
    pairs = list(zip(ours, bare, strict=True))
    found = {
        "jobs": ours[0].count,
        "seconds": median(one.times.seconds for one in ours),
        "bareSeconds": median(one.times.seconds for one in bare),
        "ratioToBareJobs": median(one.times.seconds / other.times.seconds for one, other in pairs),
        "cpuRatioToBareJobs": median(sum(one.cpu.values()) / sum(other.cpu.values()) for one, other in pairs),
        "firstJobSeconds": median(max(one.times.started) for one in ours),
        "cpuSeconds": median(one.cpu["operator"] for one in ours),
        "callsPerJob": median(sum((one.calls or {}).values()) / one.count for one in ours),
        "rssMiB": max(one.rss_mib for one in ours),
    }
    if start is not None:
        found |= {
            "startSeconds": start.seconds,
            "startSettledSeconds": start.settled_seconds,
            "startCpuSeconds": start.cpu_seconds,
            "startCalls": start.calls,
            "startRssMiB": start.rss_mib,
            "idleCpuPercent": start.idle_cpu_percent,
            "idleWrites": start.idle_writes,
        }
    return {name: round(value, 2) for name, value in found.items()}


def log(text: str) -> None:
    print(f"# {text}", flush=True)


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000, help="number of jobs per round")
    parser.add_argument("--rounds", type=int, default=2, help="bare, ours, bare, ours, ...")
    parser.add_argument("--nodes", type=int, default=2, help="train pods per job")
    parser.add_argument(
        "--finished", type=int, default=5000, help="finished jobs at the start of the operator; 0: skip"
    )
    parser.add_argument("--waiting", type=int, default=500, help="jobs whose pods cannot be scheduled; 0: skip")
    parser.add_argument("--finished-ttl", type=int, default=5000, help="finished jobs with a TTL; 0: skip")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="duration of the idle measurement")
    parser.add_argument("--within", type=float, default=1200.0, help="time-out of a variant in seconds")
    parser.add_argument("--operator-args", nargs="*", default=[], help="additional arguments of the operator")
    return parser.parse_args(arguments)


def main() -> None:
    options = options_of(sys.argv[1:])
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as in an installed operator, bytecode must be cached
    with run_folder() as folder:
        control = ControlPlane(folder, log)
        try:
            control.start()
            install(control)
            with simulated_nodes(control, NODES, removed=False):
                found = asyncio.run(measure(options, control))
        finally:
            control.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
