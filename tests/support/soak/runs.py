"""One run of the campaign: attempts that are killed until one completes, and the resulting state."""

import os
import random
import re
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.checkpoint.archive import Verifier
from finetune_trainer.checkpoint.stored.run_storage import RunStorage
from finetune_trainer.checkpoint.upload.uploader import PROCESS_NAME
from finetune_trainer.errors import ObjectMissingError
from killable_store import KillableStore
from soak.events import Event, Point, Victim
from soak.ranks import TARGET, step_times
from soak.trap import Trap, TrapProxy
from training_harness import Started, TrainingHarness

CASES: tuple[dict[str, Any], ...] = (
    {"steps": 100, "kind": "bert-dropout", "zero": 2, "method": {"full": {}}},
    {"steps": 110, "kind": "llama", "zero": 1, "method": {"full": {}}},
    {"steps": 45, "kind": "llama", "zero": 3, "method": {"lora": {"dropout": 0.1}}},
)
"""Number of steps that takes about fifteen seconds with the pauses."""
_PATIENCE_SECONDS = 12.0
"""Timeout for the request of an event; then another event is tried."""
_PEERS_SECONDS = 0.3
"""Delay between the death of a rank and the termination of the rest of its attempt: reaction time of the supervisor."""
_MOST_ATTEMPTS = 40
_LATER = frozenset({Point.RESTORE, Point.PRUNED_MANIFESTS, Point.PRUNED_BLOBS})


class Kill(BaseModel):
    """A kill that was carried out."""

    event: Event
    attempt: int
    lost_seconds: float = 0.0
    """Seconds of training, if it ended the attempt."""
    is_disturbed: bool = False
    """An uploader or the storage server was killed earlier in the same attempt, so no bound applies."""


class Outcome(BaseModel):
    """Result of one run."""

    number: int
    attempts: int = 0
    kills: list[Kill] = []
    corrupt: list[str] = []
    """Attempts that failed by themselves, and checkpoints that were skipped or are damaged."""
    mismatches: int = 0
    """Number of values in the training log that differ from those of the uninterrupted run."""
    missed: list[Event] = []
    """Events that did not occur."""


@dataclass
class CampaignSetup:
    """Resources shared by all runs."""

    harness: TrainingHarness
    store: KillableStore
    proxy: TrapProxy
    max_lost_seconds: float
    """`checkpoint.maxLostWork` of every run."""
    references: dict[int, list[dict[str, float]]] = field(default_factory=dict)

    def config(self, name: str, case: int, attempt: int = 1) -> TrainerConfig:
        """Configuration of one attempt of the run `name`."""
        blocks = dict(CASES[case])
        training = {"maxSteps": blocks.pop("steps"), "epochs": None}
        checkpoint = {"maxLostWork": f"{self.max_lost_seconds:g}s", "everySteps": None}
        return self.harness.config(name, attempt=attempt, training=training, checkpoint=checkpoint, **blocks)

    def reference(self, case: int) -> list[dict[str, float]]:
        """The log of an uninterrupted run."""
        if case not in self.references:
            config = self.config(f"through-{case}", case)
            ended = self.harness.start(config, target=TARGET).ended()
            assert ended.exit_codes == [0, 0], ended.output
            self.references[case] = self.harness.training_log(config)
        return self.references[case]


class Run:
    """Executes one run."""

    def __init__(self, setup: CampaignSetup, number: int, events: list[Event], *, case: int, seed: int) -> None:
        self._setup, self._case = setup, case
        self._name = f"run-{number}"
        self._draw = random.Random(f"{seed}/{number}")
        self._events = deque(events)
        self._waiting: list[tuple[Kill, Path]] = []
        """Kills whose cost will be known from the next attempt that trains."""
        self._restarts: list[threading.Thread] = []
        self.outcome = Outcome(number=number)

    def execute(self) -> Outcome:
        """Run attempts until training has completed."""
        outcome, expected = self.outcome, self._setup.reference(self._case)
        while outcome.attempts < _MOST_ATTEMPTS:
            outcome.attempts += 1
            if self._draw.random() < 0.5:  # like on another host
                shutil.rmtree(self._setup.harness.cache / "checkpoints", ignore_errors=True)
            if self._attempt():
                break
        outcome.missed += self._events
        config = self._setup.config(self._name, self._case)
        found = self._log_of(config)
        outcome.mismatches = abs(len(found) - len(expected))
        outcome.mismatches += sum(one != other for one, other in zip(found, expected, strict=False))
        outcome.corrupt += self._damages(config)
        return outcome

    def _log_of(self, config: TrainerConfig) -> list[dict[str, float]]:
        """The log of the run; empty if it has none yet."""
        try:
            return self._setup.harness.training_log(config)
        except ObjectMissingError:
            return []

    def _attempt(self) -> bool:
        """Run one attempt. Returns whether the run has completed."""
        setup, outcome = self._setup, self.outcome
        config = setup.config(self._name, self._case, outcome.attempts)
        started = setup.harness.start(config, target=TARGET)
        is_killed = self._kill_in(started)
        ended = started.ended()
        self._count_losses(ended.folder)
        outcome.corrupt += re.findall(r"checkpoint \S+ cannot be used: .*", ended.output)
        if is_killed:
            return False
        if ended.exit_codes != [0, 0]:
            outcome.corrupt.append(f"attempt {outcome.attempts} ended with {ended.exit_codes}: {ended.output[-3000:]}")
        return True

    # Killing

    def _kill_in(self, started: Started) -> bool:
        """Carry out events until one is fatal; False if the attempt ends by itself."""
        disturbed = False
        for event in self._due():
            if not self._wait_and_kill(event, started):
                self.outcome.missed.append(event)
                continue
            kill = Kill(event=event, attempt=self.outcome.attempts, is_disturbed=disturbed)
            self.outcome.kills.append(kill)
            if event.is_fatal:
                self._waiting.append((kill, started.folder))
                time.sleep(_PEERS_SECONDS)
                started.kill()
                self._restore_storage()
                return True
            disturbed = True
        while any(rank.poll() is None for rank in started.ranks):
            time.sleep(0.05)
        self._restore_storage()
        return False

    def _due(self) -> Iterator[Event]:
        """Events that are due. Restores and removals require a stored checkpoint, so such events are postponed until
        then."""
        for _ in range(len(self._events)):
            event = self._events.popleft()
            others_first = any(other.point not in _LATER for other in self._events)
            if event.point in _LATER and self.outcome.attempts < 3 and others_first:
                self._events.append(event)
                continue
            yield event

    def _wait_and_kill(self, event: Event, started: Started) -> bool:
        """Wait for the event's point and kill; False if it did not occur."""
        proxy = self._setup.proxy
        trap = Trap(event, lambda: self._kill(event, started))
        deadline = time.monotonic() + _PATIENCE_SECONDS
        moment = time.monotonic() + event.seconds
        if event.point is not Point.ANY:
            proxy.trap = trap
        try:
            while time.monotonic() < deadline and not trap.fired.is_set():
                if any(rank.poll() is not None for rank in started.ranks):
                    break
                if event.point is Point.ANY and time.monotonic() >= moment and trap.kill():
                    return True
                time.sleep(0.01)
            return trap.has_fired()
        finally:
            proxy.trap = None

    def _kill(self, event: Event, started: Started) -> bool:
        """Kill the victim; returns whether it was running."""
        if event.victim is Victim.STORE:
            if any(restart.is_alive() for restart in self._restarts):
                return False  # it is already down, or about to restart
            self._setup.store.kill()
            restart = threading.Thread(target=self._start_later, args=(event.away_seconds,))
            self._restarts.append(restart)
            restart.start()
            return True
        ranks = started.ranks if event.victim is Victim.ALL_RANKS else [started.ranks[event.rank]]
        pids = [rank.pid for rank in ranks if rank.pid is not None]
        if event.victim is Victim.UPLOADER:
            pids = [child for pid in pids for child in _uploaders_of(pid)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def _start_later(self, seconds: float) -> None:
        time.sleep(seconds)
        self._setup.store.start()

    def _restore_storage(self) -> None:
        for restart in self._restarts:
            restart.join()
        self._restarts.clear()

    # Cost

    def _count_losses(self, folder: Path) -> None:
        """The first step of this attempt determines what the previous ones lost."""
        steps = step_times(folder)
        if not steps:
            return
        restored = steps[0][0] - 1
        for kill, killed in self._waiting:
            if killed != folder:
                kill.lost_seconds = _lost_seconds(step_times(killed), restored)
        self._waiting = [each for each in self._waiting if each[1] == folder]

    def _damages(self, config: TrainerConfig) -> list[str]:
        """Problems of the remaining checkpoints."""
        storage = RunStorage.of(self._setup.harness.store, config.run_uri, attempt=config.attempt)
        verifier, found = Verifier(storage.blobs), []
        for name in storage.catalog.listing().names:
            _, damages = verifier.check(storage.catalog.read(name))
            found += [f"checkpoint {name}: {damage}" for damage in damages]
        return found


def _lost_seconds(steps: list[tuple[int, float]], restored: int) -> float:
    """Time that an attempt spent on steps after `restored`, up to its last completed step."""
    lost = [moment for step, moment in steps if step > restored]
    if not lost:
        return 0.0
    known = [moment for step, moment in steps if step == restored]
    # The start time of the first step of an attempt is unknown, because no step precedes it.
    return lost[-1] - (known[0] if known else lost[0])


def _uploaders_of(pid: int) -> list[int]:
    """Uploader children of a rank. Not every kernel lists children, so all processes are examined."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has exited in the meantime
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and (folder / "comm").read_text().strip() == PROCESS_NAME:
                found.append(int(folder.name))
    return found
