"""The loop of `finetune watch`."""

import asyncio
import io
from typing import Any

import pytest

from factories import make_job, merged
from finetune_api.v1alpha1 import FineTuneJob
from finetune_cli.display import PlainDisplay
from finetune_cli.display.summary import APPLY_AGAIN
from finetune_cli.watching import watch_job
from statuses import FAILED, RESTARTING, START, SUCCEEDED, SUSPENDED, TRAINING

SEEN = {"observedGeneration": 1}


class FakeSource:
    """A job whose status changes at every read."""

    name = "topics"
    where = "a test"

    def __init__(self, *statuses: dict[str, Any], is_interrupted: bool = False) -> None:
        self.statuses = list(statuses)
        self.left = is_interrupted

    async def read(self) -> dict[str, Any]:
        return {**make_job("topics"), "status": self.statuses.pop(0)}

    async def events(self) -> list[dict[str, Any]] | None:
        return []

    def is_interrupted(self) -> bool:
        return self.left


def watched(source: FakeSource) -> tuple[FineTuneJob | None, list[str]]:
    """Watch with a clock that advances ten seconds between reads. Return the job and the output."""
    stream, now = io.StringIO(), [0.0]

    async def pause(_: float) -> None:
        now[0] += 10

    def clock() -> float:
        return now[0]

    display = PlainDisplay(stream, clock=clock, next_steps=APPLY_AGAIN)
    job = asyncio.run(watch_job(source, display, pause=pause, clock=clock))
    lines = stream.getvalue().splitlines()
    return job, [line[10:] if line[2:3] == ":" else line for line in lines]


def test_a_job_is_watched_to_its_end() -> None:
    job, lines = watched(FakeSource(TRAINING | SEEN, RESTARTING | SEEN, SUCCEEDED | SEEN))
    assert job is not None
    assert job.status.phase == "Succeeded"
    order = ["train: started", "train: step 180 of 296, loss 0.412", "restarting the training"]
    order += ["succeeded", "topics: fine-tuned"]
    assert sorted(order, key=lines.index) == order


@pytest.mark.parametrize("status", [FAILED, SUSPENDED, {"phase": "Invalid"}], ids=["failed", "suspended", "invalid"])
def test_watching_ends_with_an_ended_or_suspended_job(status: dict[str, Any]) -> None:
    source = FakeSource(status | SEEN, TRAINING | SEEN)
    job, lines = watched(source)
    assert job is not None
    assert len(source.statuses) == 1
    if status is SUSPENDED:
        assert lines[-1].split(maxsplit=1) == ["resume", "set spec.suspend to false"]


def test_a_terminal_status_of_an_older_generation_does_not_end_it() -> None:
    """The job was resumed, or changed after its end, and the operator has not updated the status yet."""
    source = FakeSource(SUSPENDED, SUSPENDED, TRAINING | SEEN, SUCCEEDED | SEEN)
    job, _ = watched(source)
    assert job is not None
    assert (job.status.phase, source.statuses) == ("Succeeded", [])


def test_an_operator_that_does_not_reconcile_is_reported_once() -> None:
    _, lines = watched(FakeSource(*[{}] * 8, SUCCEEDED | SEEN))
    assert lines.count("the operator has not reconciled the object yet; check that it is running") == 1
    _, lines = watched(FakeSource({}, {}, *[TRAINING | SEEN] * 8, SUCCEEDED | SEEN))
    assert not any("has not looked" in line for line in lines)


def test_an_interrupted_run_ends_the_watch() -> None:
    job, _ = watched(FakeSource(TRAINING | SEEN, is_interrupted=True))
    assert job is None


def test_changes_of_the_waiting_reason_are_shown() -> None:
    def waiting(message: str) -> dict[str, Any]:
        ready = {"type": "Ready", "status": "False", "reason": "WaitingForPods", "message": message}
        return merged(TRAINING, {"phase": "Pending", "conditions": [ready | {"lastTransitionTime": START}]}) | SEEN

    _, lines = watched(FakeSource(waiting("no node"), waiting("no node"), waiting("image missing"), SUCCEEDED | SEEN))
    assert [line for line in lines if line.startswith("waiting")] == ["waiting (no node)", "waiting (image missing)"]
