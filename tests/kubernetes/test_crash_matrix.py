"""An operator that crashes, or whose request fails, at every single write of every scenario: the end is the same.

API server, Job controller and scheduler are real. For each scenario, the writes of an undisturbed job are listed. Then
the operator crashes after each of them, in a separate job, and the remaining objects in the cluster are compared. All
scenarios begin with the writes of the job that completes, and are tried from the first write that differs.

The writes for a job follow one another, and the operator keeps nothing between them, so a crash before a write leaves
the same cluster as one after the write before it. Only the one before the first write is tried as well.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from finetune_api.constants import Phase
from finetune_api.v1alpha1 import Status
from job_namespace import JobNamespace, in_phase, is_training, run_scenario, training_ends
from reconciled_job import Fault, ReconciledJob
from simulated_kubelet import FOREVER, PodEnd, succeed

CRASHES = BEFORE, AFTER = "crash before", "crash after"
FAULTS = ("timeout before", "timeout after", "409", "422", "429", "500", "503")
AT_ONCE = 12
"""Number of concurrent jobs; more do not help with two cores."""

Life = Callable[[JobNamespace, str, Fault | None], Awaitable[ReconciledJob]]


async def completes(world: JobNamespace, name: str, fault: Fault | None) -> ReconciledJob:
    job = await world.create(name, succeed, fault)
    await job.until(in_phase(Phase.SUCCEEDED), within=240)
    return job


async def fails_once(world: JobNamespace, name: str, fault: Fault | None) -> ReconciledJob:
    job = await world.create(name, training_ends(PodEnd(70)), fault)
    await job.until(in_phase(Phase.SUCCEEDED), within=240)
    return job


async def fails_and_is_corrected(world: JobNamespace, name: str, fault: Fault | None) -> ReconciledJob:
    job = await world.create(name, training_ends(PodEnd(65)), fault)
    await job.until(in_phase(Phase.FAILED), within=240)
    await world.change(name, deepspeed={"zeroStage": 3})
    await job.until(in_phase(Phase.SUCCEEDED), within=240)
    return job


async def is_evicted(world: JobNamespace, name: str, fault: Fault | None) -> ReconciledJob:
    job = await world.create(name, training_ends(PodEnd(137, disrupted=True)), fault)
    await job.until(in_phase(Phase.SUCCEEDED), within=240)
    return job


async def is_suspended_and_resumed(world: JobNamespace, name: str, fault: Fault | None) -> ReconciledJob:
    job = await world.create(name, training_ends(FOREVER), fault)
    await job.until(is_training, within=240)
    await world.change(name, suspend=True)
    await job.until(in_phase(Phase.SUSPENDED), within=240)
    await world.change(name, suspend=False)
    await job.until(in_phase(Phase.SUCCEEDED), within=240)
    return job


async def is_changed_while_it_runs(world: JobNamespace, name: str, fault: Fault | None) -> ReconciledJob:
    job = await world.create(name, training_ends(FOREVER), fault)
    await job.until(is_training, within=240)
    await world.change(name, training={"learningRate": 1e-5})
    # Until its pods are deleted: a Job that completes while the operator is down is not deleted.
    await job.until(lambda status: status.run.number == 2 and bool(status.run.attempts), within=240)
    world.kubelet.scripts[name] = succeed
    await job.until(lambda status: status.run.number == 2 and status.phase is Phase.SUCCEEDED, within=240)
    return job


async def takes_fewer(world: JobNamespace, name: str, fault: Fault | None) -> ReconciledJob:
    """Three workers cannot share its batch, so it gets two, however many of the three run at the timeout."""
    world.kubelet.capacity[name] = lambda _stage, _attempt, index: index < 3
    workers = {"nodes": 4, "minNodes": 2, "startTimeout": "2s"}
    job = await world.create(name, training_ends(FOREVER), fault, workers=workers)
    await job.until(in_phase(Phase.SUCCEEDED), within=240)
    return job


SCENARIOS: dict[str, Life] = {
    "completes": completes,
    "falls": fails_once,
    "fails": fails_and_is_corrected,
    "evicted": is_evicted,
    "rests": is_suspended_and_resumed,
    "changed": is_changed_while_it_runs,
    "fewer": takes_fewer,
}


_OBSTACLES = {"CannotCreate", "WaitingForPods"}


@dataclass(frozen=True)
class FinalState:
    """Remaining objects of a job, without the job's name."""

    phase: str
    attempts: tuple[tuple[str, int, str], ...]
    charged: tuple[int, int, int]
    children: tuple[str, ...]
    events: tuple[tuple[str, int], ...]


async def final_state(world: JobNamespace, job: ReconciledJob, name: str) -> FinalState:
    assert job.last is not None
    status: Status = job.last.status
    reported = Counter(await world.event_reasons(name))
    return FinalState(
        str(status.phase),
        tuple((str(entry.stage), entry.number, str(entry.outcome)) for entry in status.run.attempts),
        (status.run.number, status.run.restarts, status.run.disruptions),
        tuple(child.replace(name, "*") for child in await job.children()),
        # Events about a failed request, or about pods that start late on a busy machine, are not compared.
        tuple(sorted((reason, count) for reason, count in reported.items() if reason not in _OBSTACLES)),
    )


def without_names(calls: list[str], name: str) -> list[str]:
    return [call.replace(name, "*") for call in calls]


async def lead_through(
    world: JobNamespace, scenario: str, name: str, fault: Fault | None
) -> tuple[FinalState, ReconciledJob]:
    job = await SCENARIOS[scenario](world, name, fault)
    return await final_state(world, job, name), job


async def try_all(
    world: JobNamespace, scenario: str, faults: list[Fault], expected: FinalState
) -> dict[str, list[str]]:
    """Lead one job through the scenario for each fault. Returns the requests that had a fault, by its kind."""
    turn = asyncio.Semaphore(AT_ONCE)
    differing: list[Any] = []
    failed: defaultdict[str, list[str]] = defaultdict(list)

    async def try_with(number: int, fault: Fault) -> None:
        name = f"{scenario}-{fault.kind.replace(' ', '-')}-{number}"
        async with turn:
            found, job = await lead_through(world, scenario, name, fault)
            await world.remove(name)
        failed[fault.kind] += without_names(job.server.failed, name)
        differences = {
            field.name: (getattr(expected, field.name), getattr(found, field.name))
            for field in fields(FinalState)
            if getattr(expected, field.name) != getattr(found, field.name)
        }
        crashes = len(job.server.failed) if fault.kind in CRASHES else 0
        if differences or job.crashes != crashes:
            differing.append((fault, job.server.failed, job.crashes, differences))

    await asyncio.gather(*(try_with(number, fault) for number, fault in enumerate(faults)))
    assert not differing, "\n".join(map(str, differing))
    return failed


@pytest.mark.parametrize("scenario_name", SCENARIOS)
def test_the_end_is_the_same_wherever_the_operator_crashes(admin: Path, namespace: str, scenario_name: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        expected, undisturbed = await lead_through(world, scenario_name, scenario_name, None)
        writes = without_names(undisturbed.server.calls, scenario_name)
        first = 0
        if scenario_name != "completes":
            _, other = await lead_through(world, "completes", "other", None)
            tried = without_names(other.server.calls, "other")
            first = next(index for index, (a, b) in enumerate(zip(writes, tried, strict=False)) if a != b)
        faults = [Fault(BEFORE, first), *(Fault(AFTER, at) for at in range(first, len(writes)))]
        failed = await try_all(world, scenario_name, faults, expected)
        # Whether the last write is needed can depend on timing: a job may not need it.
        assert len(failed[BEFORE]) == 1
        assert len(failed[AFTER]) >= len(writes) - first - 1

    run_scenario(admin, namespace, scenario)


def test_the_end_is_the_same_although_every_write_fails_once(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        expected, undisturbed = await lead_through(world, "completes", "undisturbed", None)
        writes = without_names(undisturbed.server.calls, "undisturbed")
        # Of the requests for an object, one job has the fault at the first, third, ..., another one at the others.
        faults = [Fault(kind, first=first) for kind in FAULTS for first in (0, 1)]
        failed = await try_all(world, "completes", faults, expected)
        for kind in FAULTS:
            assert set(writes) <= set(failed[kind]), kind
            assert len(failed[kind]) >= len(writes), kind

    run_scenario(admin, namespace, scenario)
