"""Background saves: training continues whatever happens to the uploader and to storage."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.constants import Stage
from finetune_trainer.checkpoint import async_saver, save_interval
from finetune_trainer.checkpoint.async_saver import TrainingState
from finetune_trainer.checkpoint.save_interval import SavePolicy
from finetune_trainer.checkpoint.upload import client as uploader_client
from finetune_trainer.checkpoint.upload.client import Priority
from finetune_trainer.errors import AccessDeniedError, StorageUnreachableError
from finetune_trainer.progress import ProgressReporter
from killable_store import BUCKET, KillableStore
from process_support import drop_capability_to_raise_priorities
from tiny_engine import Case, claim_and_restore, make_engine, make_manager, seed_ranks, train

CASE = Case(2)
AN_HOUR = 3600.0


class Running:
    """A rank that has trained two steps and has a save of the second step in flight."""

    def __init__(
        self, rank: int, size: int, settings: Any, folder: str, *, spread: float = 0.0, **options: Any
    ) -> None:
        self.rank, self.size = rank, size
        self.engine, self.scheduler = make_engine(CASE, size, disturb=False)
        self.manager = make_manager(settings, folder, rank, size, **options)
        self.manager.claim()
        seed_ranks(rank)
        self.losses = train(CASE, self.engine, self.scheduler, rank, size, range(2))
        self.save(2, spread)

    def save(self, step: int, spread: float = 0.0) -> None:
        state = {"scheduler": self.scheduler.state_dict()}
        self.manager._saver.save(TrainingState(step=step, engine=self.engine, small_state=state), spread_seconds=spread)

    def train(self, start: int, end: int) -> None:
        self.losses += train(CASE, self.engine, self.scheduler, self.rank, self.size, range(start, end))

    def until_trouble(self) -> str:
        deadline = time.monotonic() + 60
        while not self.manager._saver.error:
            assert not self.manager._saver.poll(0.1)
            assert time.monotonic() < deadline
        return str(self.manager._saver.error)


def expedited(rank: int, size: int, settings: Any, folder: str) -> list[Any]:
    async_saver.UPLOAD_BYTES_PER_SECOND = 1.0  # otherwise the minimum rate limits the duration of uploads
    running = Running(rank, size, settings, folder, spread=AN_HOUR)
    running.train(2, 4)
    saver = running.manager._saver
    was_in_flight, ready = saver.in_flight, saver.poll(0.5)
    started = time.monotonic()
    saver.wait()
    return [was_in_flight, ready, time.monotonic() - started < 30, saver.last.step, saver.in_flight]


def test_a_save_spread_over_an_hour_is_committed_at_once_when_it_is_waited_for(
    storage_settings: Any, bucket: str, run_world: Any
) -> None:
    found = run_world(expedited, 2, settings=storage_settings, folder=bucket)
    assert found == [[True, False, True, 2, False]] * 2


def with_killed_uploader(rank: int, size: int, settings: Any, folder: str) -> dict[str, Any]:
    running = Running(rank, size, settings, folder, spread=AN_HOUR)
    client = running.manager._client
    first, saver = client.pid, running.manager._saver
    if rank == 1:
        os.kill(first, signal.SIGKILL)
        running.until_trouble()
    reported = [[saver.error_changed, saver.error]]
    saver.share_errors()
    reported.append([saver.error_changed, saver.error])
    running.train(2, 4)
    saver.wait()
    reported.append([saver.error_changed, saver.error])
    running.train(4, 6)
    return {
        "losses": running.losses,
        "replaced": client.pid != first,
        "errors": reported,
        "step": saver.last.step,
    }


def awaited(rank: int, size: int, settings: Any, folder: str) -> list[Any]:
    engine, scheduler = make_engine(CASE, size, disturb=False)
    manager = make_manager(settings, folder, rank, size)
    before = manager._client.pid
    manager._saver.prepare()
    ready = manager._client.pid
    manager.claim()
    manager.save(TrainingState(step=1, engine=engine, small_state={"scheduler": scheduler.state_dict()}))
    return [before, ready is not None and ready == manager._client.pid]


def test_an_uploader_that_was_started_early_stores_the_first_save(
    storage_settings: Any, bucket: str, run_world: Any
) -> None:
    assert run_world(awaited, 2, settings=storage_settings, folder=bucket) == [[None, True]] * 2


def resumed_losses(rank: int, size: int, settings: Any, folder: str) -> list[str]:
    engine, scheduler = make_engine(CASE, size, disturb=True)
    manager = make_manager(settings, folder, rank, size, attempt=2)
    manifest = claim_and_restore(manager, engine, scheduler)
    return train(CASE, engine, scheduler, rank, size, range(manifest.step, 6))


def test_an_uploader_that_dies_is_replaced_and_its_save_is_not_lost(
    storage_settings: Any, bucket: str, run_world: Any
) -> None:
    place = {"settings": storage_settings, "folder": bucket}
    found = run_world(with_killed_uploader, 2, **place)
    assert [rank["replaced"] for rank in found] == [False, True]
    trouble = "the uploader exited with status -9; a new process takes over its order"
    assert found[0]["errors"] == [[False, ""], [False, f"rank 1: {trouble}"], [False, ""]]
    assert found[1]["errors"] == [[True, trouble], [False, trouble], [False, ""]]
    assert [rank["step"] for rank in found] == [2, 2]
    assert run_world(resumed_losses, 2, **place) == [rank["losses"][2:] for rank in found]


@dataclass(frozen=True)
class Starvation:
    """How rank 1's uploader is treated when another process takes its processor."""

    waits: bool
    """Whether the ranks wait for it."""
    may_raise: bool
    """Whether they may raise its priority."""
    is_replaced: bool
    priorities: tuple[Priority, ...]
    """Priority at first, at the end of the upload, and during the next one."""


def starved(rank: int, size: int, settings: Any, folder: str, case: Starvation) -> dict[str, Any]:
    uploader_client.LATE_LEAST_SECONDS, uploader_client.AWAITED_SECONDS = 2.0, 1.0
    running = Running(rank, size, settings, folder, spread=0.0 if case.waits else 0.1)
    client, saver = running.manager._client, running.manager._saver
    first, reported = client.pid, [priority_of(client.pid)]
    with starve(first) if rank == 1 else nullcontext():
        while not case.waits and client.pid == first and rank == 1:
            saver.poll(0.1)
        if case.waits:
            saver.wait()
    reported.append(priority_of(client.pid))
    saver.wait()
    running.train(2, 3)
    running.save(3, 0.1)
    reported.append(priority_of(client.pid))
    saver.wait()
    return {"priorities": tuple(reported), "is_replaced": client.pid != first, "step": saver.last.step}


@contextmanager
def starve(pid: int) -> Iterator[None]:
    """Leave a process no processor time."""
    processor = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(pid, processor)
    busy = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {processor})\nwhile True: pass"]
    )
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def priority_of(pid: int) -> Priority:
    """The lowest priority of its threads."""
    own = {
        (os.SCHED_IDLE, 19): Priority.IDLE,
        (os.sched_getscheduler(0), 19): Priority.LOW,
        (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)): Priority.ORDINARY,
    }
    threads = [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]
    return min(own[os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)] for thread in threads)


def may_raise_priorities() -> bool:
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(effective.split()[1], 16) >> 23 & 1)  # CAP_SYS_NICE


def capabilities(may_raise: bool) -> Callable[[], None] | None:
    """Return what a rank calls first. A rank and its uploader have the capabilities of their pod."""
    return None if may_raise else drop_capability_to_raise_priorities


needs_permission = pytest.mark.skipif(not may_raise_priorities(), reason="needs CAP_SYS_NICE")
IDLE, LOW, ORDINARY = Priority


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Starvation(False, True, True, (IDLE, LOW, LOW)), id="late"),
        pytest.param(Starvation(True, True, False, (IDLE, ORDINARY, IDLE)), id="awaited", marks=needs_permission),
        pytest.param(Starvation(True, False, True, (IDLE, ORDINARY, IDLE)), id="awaited without permission"),
    ],
)
def test_a_starved_uploader_is_replaced_and_gets_the_priority_of_its_rank_while_the_ranks_wait(
    storage_settings: Any, bucket: str, run_world: Any, case: Starvation
) -> None:
    place = {"settings": storage_settings, "folder": bucket}
    found = run_world(starved, 2, first=capabilities(case.may_raise), case=case, **place)[1]
    assert found == {"priorities": case.priorities, "is_replaced": case.is_replaced, "step": 3}
    assert len(run_world(resumed_losses, 2, **place)[0]) == 3, "steps after the third, whose save is whole"


def with_slow_uploader(rank: int, size: int, settings: Any, folder: str) -> tuple[bool, bool, Priority]:
    uploader_client.AWAITED_SECONDS = 0.5
    running = Running(rank, size, settings, folder)
    client = running.manager._client
    first = client.pid
    os.kill(first, signal.SIGSTOP)
    is_settled = running.manager._saver.wait(2.0)
    reported = is_settled, client.pid != first, priority_of(client.pid)
    os.kill(first, signal.SIGCONT)
    running.manager._saver.wait()
    return reported


@pytest.mark.parametrize("may_raise", [pytest.param(True, marks=needs_permission), False])
def test_a_slow_uploader_is_not_replaced_and_loses_its_priority_when_nobody_waits_for_it(
    storage_settings: Any, bucket: str, run_world: Any, may_raise: bool
) -> None:
    place = {"settings": storage_settings, "folder": bucket}
    assert run_world(with_slow_uploader, 2, first=capabilities(may_raise), **place) == [(False, False, IDLE)] * 2


def without_storage(rank: int, size: int, settings: Any, folder: str, server: int) -> dict[str, Any]:
    import torch.distributed as dist

    running = Running(rank, size, settings, folder)
    running.manager._saver.wait()
    dist.barrier()
    if rank == 0:
        os.kill(server, signal.SIGKILL)
    dist.barrier()
    running.train(2, 4)
    running.save(4)
    trouble = running.until_trouble()
    running.train(4, 6)
    left_out = not running.manager._saver.wait(0.5)
    running.manager.close()
    return {
        "trouble": trouble,
        "postponed": left_out,
        "losses": running.losses,
        "last": running.manager._saver.last.step,
    }


def test_without_storage_training_continues_with_a_warning(killable: KillableStore, run_world: Any) -> None:
    place = {"settings": killable.settings(), "folder": f"{BUCKET}/away"}
    found = run_world(without_storage, 2, server=killable.pid, **place)
    for rank in found:
        assert killable.access.endpoint in rank["trouble"]
        assert (rank["postponed"], rank["last"], len(rank["losses"])) == (True, 2, 6)
    killable.start()
    assert run_world(resumed_losses, 2, **place) == [rank["losses"][2:] for rank in found]


def late(rank: int, size: int, settings: Any, folder: str, server: int) -> list[str]:
    """Lateness reported by rank 0: at first, while storage is down, and at the end."""
    import torch.distributed as dist

    save_interval.LATE_LEAST_SECONDS = 0.5
    policy = SavePolicy(total_steps=100, max_lost_seconds=0.4, max_stale_seconds=5.0)
    report = ProgressReporter(None, stage=Stage.TRAIN)
    running = Running(rank, size, settings, folder, policy=policy, report=report)
    manager = running.manager
    manager._saver.wait()
    manager.start(2)
    manager.record_step(0.1, step_seconds=0.1)
    reported = [report.progress.checkpoint_late]
    assert running.manager._pruner.wait(60)
    dist.barrier()
    if rank == 0:
        os.kill(server, signal.SIGKILL)
    manager.save(TrainingState(step=3, engine=running.engine, small_state={}), step_seconds=0.1, wait=False)
    running.until_trouble()
    # On a busy machine the first save took longer, and more work may be lost before that is late.
    deadline = time.monotonic() + 60
    while not report.progress.checkpoint_late and time.monotonic() < deadline:
        manager.record_step(0.1, step_seconds=0.1)
        time.sleep(0.05)
    reported.append(report.progress.checkpoint_late)
    while not manager._is_too_stale:
        time.sleep(0.1)
    assert manager.upload_status().is_too_stale is (rank == 0), "by the clock of rank 0 only"
    with pytest.raises(StorageUnreachableError) as stale:
        manager.progress(all_stored=False, fenced=False, error_changed=False, too_stale=True)
    manager.close()
    return [*reported, str(stale.value)]


def test_a_late_checkpoint_is_reported_with_the_reason(killable: KillableStore, run_world: Any) -> None:
    place = {"settings": killable.settings(), "folder": f"{BUCKET}/late"}
    for in_time, reported, end in run_world(late, 2, server=killable.pid, **place):
        assert in_time == ""
        assert reported.startswith("a crash would now lose all after step 2: ")
        assert killable.access.endpoint in reported
        assert end.startswith("the state of step 3 could not be stored within 5 s, the value of spec.checkpoint.")


def costly(rank: int, size: int, settings: Any, folder: str) -> list[Any]:
    """Steps between two saves before and after steps during uploads took twice as long, and the warnings."""
    report = ProgressReporter(None, stage=Stage.TRAIN)
    policy = SavePolicy(total_steps=100, max_lost_seconds=60.0)
    running = Running(rank, size, settings, folder, policy=policy, report=report)
    manager, every = running.manager, []
    for step in range(3, 7):
        manager._saver.wait()
        assert manager._pruner.wait(60)
        for _ in range(10):
            manager.record_step(1.0, step_seconds=1.0)
        manager.should_save(step, step_seconds=1.0)
        every.append(report.progress.checkpoint_every)
        state = TrainingState(step=step, engine=running.engine, small_state={})
        manager.save(state, step_seconds=1.0, wait=False)
        for _ in range(4):
            manager.record_step(2.0, step_seconds=1.0)
    return [every[0], every[-1], *report.progress.warnings]


def test_saves_are_less_frequent_if_steps_during_uploads_take_longer(
    storage_settings: Any, bucket: str, run_world: Any
) -> None:
    for before, after, reported in run_world(costly, 2, settings=storage_settings, folder=f"{bucket}/costly"):
        assert before == 39
        assert 4.0 / save_interval.MAX_OVERHEAD - 1 <= after < 8.0 / save_interval.MAX_OVERHEAD, (
            "four steps, a second each, and the stalls"
        )
        assert "not the 60 s of spec.checkpoint.maxLostWork: a save takes " in reported


def paused(rank: int, size: int, settings: Any, folder: str) -> list[bool]:
    """Whether a save is due: immediately, and after a short step that followed an evaluation."""
    policy = SavePolicy(total_steps=100, max_lost_seconds=3.0)
    manager = Running(rank, size, settings, folder, policy=policy).manager
    manager._saver.wait()
    assert manager._pruner.wait(60)
    manager.start(2)
    due = [manager.should_save(3, step_seconds=0.01)]
    time.sleep(3.0)
    return [*due, manager.should_save(4, step_seconds=0.01)]


def test_time_without_steps_counts_as_work_that_a_crash_costs(
    storage_settings: Any, bucket: str, run_world: Any
) -> None:
    assert run_world(paused, 2, settings=storage_settings, folder=f"{bucket}/paused") == [[False, True]] * 2


def use_wrong_key() -> None:
    os.environ["AWS_SECRET_ACCESS_KEY"] = "wrong"


def without_permission(rank: int, size: int, settings: Any, folder: str) -> str:
    manager = make_manager(settings, folder, rank, size)
    engine, scheduler = make_engine(CASE, size, disturb=False)
    train(CASE, engine, scheduler, rank, size, range(1))
    with pytest.raises(AccessDeniedError) as reported:
        manager.save(TrainingState(step=1, engine=engine, small_state={}))
    return str(reported.value)


def test_permanent_errors_are_not_waited_for(storage_settings: Any, bucket: str, run_world: Any) -> None:
    for reported in run_world(without_permission, 2, first=use_wrong_key, settings=storage_settings, folder=bucket):
        assert "denies access" in reported
