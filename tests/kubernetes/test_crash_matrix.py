"""An operator that dies, or whose call fails, at every single write of every scenario: the end is the same.

The API server, the Job controller and the scheduler are real. For each scenario the writes of an undisturbed life are
counted; then each of them fails in each way, in a life of its own, and what is left in the cluster is compared.
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
from life_cycle_world import World, in_phase, play, train_ends, trains
from reconciled_job import Fault, ReconciledJob
from simulated_kubelet import FOREVER, End, done

CRASHES = ("crash before", "crash after")
FAULTS = ("timeout before", "timeout after", "409", "422", "429", "500", "503")
AT_ONCE = 12
"""Lives that are led at the same time; two cores have no use for more."""

Life = Callable[[World, str, Fault | None], Awaitable[ReconciledJob]]


async def completes(world: World, name: str, fault: Fault | None) -> ReconciledJob:
    job = await world.create(name, done, fault)
    await job.until(in_phase(Phase.SUCCEEDED), within=240)
    return job


async def falls_once(world: World, name: str, fault: Fault | None) -> ReconciledJob:
    job = await world.create(name, train_ends(End(70)), fault)
    await job.until(in_phase(Phase.SUCCEEDED), within=240)
    return job


async def fails_and_is_mended(world: World, name: str, fault: Fault | None) -> ReconciledJob:
    job = await world.create(name, train_ends(End(65)), fault)
    await job.until(in_phase(Phase.FAILED), within=240)
    await world.change(name, deepspeed={"zeroStage": 3})
    await job.until(in_phase(Phase.SUCCEEDED), within=240)
    return job


async def is_evicted(world: World, name: str, fault: Fault | None) -> ReconciledJob:
    job = await world.create(name, train_ends(End(137, disrupted=True)), fault)
    await job.until(in_phase(Phase.SUCCEEDED), within=240)
    return job


async def rests_and_goes_on(world: World, name: str, fault: Fault | None) -> ReconciledJob:
    job = await world.create(name, train_ends(FOREVER), fault)
    await job.until(trains, within=240)
    await world.change(name, suspend=True)
    await job.until(in_phase(Phase.SUSPENDED), within=240)
    await world.change(name, suspend=False)
    await job.until(in_phase(Phase.SUCCEEDED), within=240)
    return job


async def is_changed_while_it_runs(world: World, name: str, fault: Fault | None) -> ReconciledJob:
    job = await world.create(name, train_ends(FOREVER), fault)
    await job.until(trains, within=240)
    world.kubelet.scripts[name] = done
    await world.change(name, training={"learningRate": 1e-5})
    await job.until(lambda status: status.run.number == 2 and status.phase is Phase.SUCCEEDED, within=240)
    return job


async def takes_fewer(world: World, name: str, fault: Fault | None) -> ReconciledJob:
    """Three workers cannot share its batch, so two it is, however many of the three run when the time is over."""
    world.kubelet.rooms[name] = lambda _stage, _attempt, index: index < 3
    workers = {"nodes": 4, "minNodes": 2, "startTimeout": "2s"}
    job = await world.create(name, train_ends(FOREVER), fault, workers=workers)
    await job.until(in_phase(Phase.SUCCEEDED), within=240)
    return job


LIVES: dict[str, Life] = {
    "completes": completes,
    "falls": falls_once,
    "fails": fails_and_is_mended,
    "evicted": is_evicted,
    "rests": rests_and_goes_on,
    "changed": is_changed_while_it_runs,
    "fewer": takes_fewer,
}


_OBSTACLES = {"CannotCreate", "WaitingForPods"}


@dataclass(frozen=True)
class Remains:
    """What a life has left, without the job's name."""

    phase: str
    attempts: tuple[tuple[str, int, str], ...]
    charged: tuple[int, int, int]
    children: tuple[str, ...]
    events: tuple[tuple[str, int], ...]


async def remains(world: World, job: ReconciledJob, name: str) -> Remains:
    assert job.last is not None
    status: Status = job.last.status
    told = Counter(await world.event_reasons(name))
    return Remains(
        str(status.phase),
        tuple((str(entry.stage), entry.number, str(entry.outcome)) for entry in status.run.attempts),
        (status.run.number, status.run.restarts, status.run.disruptions),
        tuple(child.replace(name, "*") for child in await job.children()),
        # Events about an obstacle, or about pods that a busy machine starts late, are no part of the life.
        tuple(sorted((reason, count) for reason, count in told.items() if reason not in _OBSTACLES)),
    )


@pytest.mark.parametrize("life", LIVES)
def test_whatever_write_fails_the_end_is_the_same(admin: Path, namespace: str, life: str) -> None:
    async def scenario(world: World) -> None:
        lead = LIVES[life]
        undisturbed = await lead(world, life, None)
        expected = await remains(world, undisturbed, life)
        writes = len(undisturbed.server.calls)
        turn = asyncio.Semaphore(AT_ONCE)
        differing: list[Any] = []

        async def try_with(fault: Fault) -> None:
            name = f"{life}-{fault.kind.replace(' ', '-')}-{fault.at}"
            async with turn:
                job = await lead(world, name, fault)
                found = await remains(world, job, name)
                await world.remove(name)
            differences = {
                field.name: (getattr(expected, field.name), getattr(found, field.name))
                for field in fields(Remains)
                if getattr(expected, field.name) != getattr(found, field.name)
            }
            # Whether the last write is needed may be a matter of when somebody looked: a life may do without it.
            has_met_it = len(job.server.calls) > fault.at or fault.at < writes - 1
            if differences or job.crashes != (has_met_it and fault.kind.startswith("crash")):
                differing.append((fault.kind, job.server.calls[fault.at : fault.at + 1], job.crashes, differences))

        kinds = (*CRASHES, *FAULTS) if life == "completes" else CRASHES
        await asyncio.gather(*(try_with(Fault(at, kind)) for kind in kinds for at in range(writes)))
        assert not differing, "\n".join(map(str, differing))

    play(admin, namespace, scenario)
