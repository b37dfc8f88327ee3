"""The campaign: runs until the requested number of kills, and a file from which it can be continued."""

import statistics
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from killable_store import BUCKET, KillableStore
from soak.events import Event, Point, Victim, events
from soak.runs import CASES, CampaignSetup, Outcome, Run
from soak.trap import TrapProxy
from training_harness import open_harness

EVENTS_OF_A_RUN = 10
_OCCASION = Event(victim=Victim.ALL_RANKS, point=Point.ANY, seconds=8.0)
"""An additional kill for a run that only has events at restores, which would otherwise not occur."""
_RUNS_FACTOR = 4
"""Events that did not occur are retried in later runs, up to this number."""


@contextmanager
def setup(folder: Path, *, max_lost_seconds: float) -> Iterator[CampaignSetup]:
    """Storage that can be killed, a proxy for it, tiny models and their data."""
    (folder / "store").mkdir()
    with (
        KillableStore(folder / "store") as store,
        TrapProxy(store) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in store.access.env().items():
            patch.setenv(name, value)
        kinds = sorted({case["kind"] for case in CASES})
        with open_harness(proxy.settings(), BUCKET, folder, kinds) as harness:
            yield CampaignSetup(harness, store, proxy, max_lost_seconds)


class Campaign:
    """`kills` kills with one seed. Completed runs are in `path`, one line each."""

    def __init__(self, *, seed: int, kills: int, path: Path, cases: int = len(CASES)) -> None:
        self._seed, self._kills, self._path, self._cases = seed, kills, path, cases
        known = path.read_text().splitlines() if path.exists() else []
        self.outcomes = [Outcome.model_validate_json(line) for line in known]

    @property
    def kills(self) -> int:
        """Number of kills so far."""
        return sum(len(outcome.kills) for outcome in self.outcomes)

    def run(self, place: CampaignSetup) -> Iterator[Outcome]:
        """Run the remaining runs; yields each when it has completed."""
        waiting = self._waiting()
        most = _RUNS_FACTOR * -(-self._kills // EVENTS_OF_A_RUN)
        while waiting and len(self.outcomes) < most:
            chosen = [waiting.popleft() for _ in range(min(EVENTS_OF_A_RUN, len(waiting)))]
            if all(event.point is Point.RESTORE for event in chosen):
                chosen.insert(0, _OCCASION)
            number = len(self.outcomes)
            outcome = Run(place, number, chosen, case=number % self._cases, seed=self._seed).execute()
            waiting += outcome.missed
            self.outcomes.append(outcome)
            with self._path.open("a") as file:
                file.write(outcome.model_dump_json() + "\n")
            yield outcome

    def _waiting(self) -> deque[Event]:
        done = Counter(kill.event for outcome in self.outcomes for kill in outcome.kills)
        waiting: deque[Event] = deque()
        for event in events(self._seed, self._kills):
            if done[event]:
                done[event] -= 1
            else:
                waiting.append(event)
        return waiting

    # Results

    def summary(self, interval: float) -> dict[str, Any]:
        """The results as one JSON object; `interval` is checkpoint.maxLostWork in seconds."""
        kills = [kill for outcome in self.outcomes for kill in outcome.kills]
        fatal = [kill for kill in kills if kill.event.is_fatal]
        lost = [kill.lost_seconds / interval for kill in fatal if not kill.is_disturbed]
        disturbed = [kill.lost_seconds / interval for kill in fatal if kill.is_disturbed]
        return {
            "kills": len(kills),
            "corruptResumes": sum(len(outcome.corrupt) for outcome in self.outcomes),
            "maxLostIntervals": round(max(lost, default=0.0), 3),
            "lossMismatches": sum(outcome.mismatches for outcome in self.outcomes),
            "medianLostIntervals": round(statistics.median(lost or [0.0]), 3),
            "maxLostIntervalsAfterOtherKills": round(max(disturbed, default=0.0), 3),
            "runs": len(self.outcomes),
            "attempts": sum(outcome.attempts for outcome in self.outcomes),
            "seed": self._seed,
        }

    def table(self) -> str:
        """Kills by victim and point, and the maximum work that they lost."""
        rows: dict[str, list[float]] = {}
        for outcome in self.outcomes:
            for kill in outcome.kills:
                rows.setdefault(str(kill.event), []).append(kill.lost_seconds)
        width = max(map(len, rows), default=0)
        return "\n".join(
            [
                f"{'killed':{width}}  kills  lost at most",
                *(f"{name:{width}}  {len(lost):5}  {max(lost):.2f} s" for name, lost in sorted(rows.items())),
            ]
        )
