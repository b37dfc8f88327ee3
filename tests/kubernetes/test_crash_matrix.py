"""An operator that crashes, or whose request fails, at every single write of every scenario: the end is the same.

API server, Job controller and scheduler are real. For each scenario, the writes of an undisturbed job are counted.
Then each of them fails in each way, in a separate job, and the remaining objects in the cluster are compared.
"""

import asyncio
from collections import Counter
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

CRASHES = ("crash before", "crash after")
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
    world.kubelet.scripts[name] = succeed
    await world.change(name, training={"learningRate": 1e-5})
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


@pytest.mark.parametrize("scenario_name", SCENARIOS)
def test_the_end_is_the_same_whatever_write_fails(admin: Path, namespace: str, scenario_name: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        lead = SCENARIOS[scenario_name]
        undisturbed = await lead(world, scenario_name, None)
        expected = await final_state(world, undisturbed, scenario_name)
        writes = len(undisturbed.server.calls)
        turn = asyncio.Semaphore(AT_ONCE)
        differing: list[Any] = []

        async def try_with(fault: Fault) -> None:
            name = f"{scenario_name}-{fault.kind.replace(' ', '-')}-{fault.at}"
            async with turn:
                job = await lead(world, name, fault)
                found = await final_state(world, job, name)
                await world.remove(name)
            differences = {
                field.name: (getattr(expected, field.name), getattr(found, field.name))
                for field in fields(FinalState)
                if getattr(expected, field.name) != getattr(found, field.name)
            }
            # Whether the last write is needed can depend on timing: a job may not need it.
            has_met_it = len(job.server.calls) > fault.at or fault.at < writes - 1
            if differences or job.crashes != (has_met_it and fault.kind.startswith("crash")):
                differing.append((fault.kind, job.server.calls[fault.at : fault.at + 1], job.crashes, differences))

        kinds = (*CRASHES, *FAULTS) if scenario_name == "completes" else CRASHES
        await asyncio.gather(*(try_with(Fault(at, kind)) for kind in kinds for at in range(writes)))
        assert not differing, "\n".join(map(str, differing))

    run_scenario(admin, namespace, scenario)
