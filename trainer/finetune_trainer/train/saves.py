"""The saves of a training: when one is taken, how far it is, and what a user sees of it."""

import logging
import math
import time

from ..checkpoint.plane import CheckpointPlane
from ..checkpoint.training_state import TrainingState
from ..errors import StorageUnreachableError
from ..progress import ProgressReporter
from .cadence import (
    SaveCosts,
    allowed_spread,
    interval_seconds,
    interval_steps,
    late_seconds,
    lost_seconds,
    spread_seconds,
    why_lost_is_more,
)
from .drag import Drag
from .plan import TrainingPlan

log = logging.getLogger("finetune")

PATIENCE_SECONDS = 2.0
"""How long a save waits for the one before it: a small state is stored by then. A large one is not waited for."""

SAVES_BEFORE_COSTS_ARE_TOLD = 3
"""The first ones are not like those that follow: buffers are allocated, an uploader starts."""


class Saves:
    """Rank 0 watches the clock; all ranks take, move on and finish saves together."""

    def __init__(self, plan: TrainingPlan, plane: CheckpointPlane, report: ProgressReporter) -> None:
        self._plan, self._plane, self._report = plan, plane, report
        self._begun_step, self._begun = 0, time.monotonic()
        self._secured = self._begun
        """When the state was taken that the last checkpoint holds."""
        self._stall_seconds = 0.0
        self._landing_seconds = 0.0
        self._drag, self._was_beside = Drag(), False
        self._warned_step = -1
        self._told_trouble = ""
        self._is_owed = False
        """A save has been left out, because the one before it was still in flight."""
        self._has_told_cost = False

    def start(self, step: int) -> None:
        """The training begins, or goes on, at this step."""
        self._plane.saver.prepare()
        self._begun_step, self._begun = step, time.monotonic()
        self._secured = self._begun

    def are_due(self, step: int, *, step_seconds: float) -> bool:
        """Whether the clock asks for a save after this step: one more, and the interval would be over."""
        if self._plane.saver.in_flight or self._plane.saver.housekeeping.insists:
            return False
        if self._is_owed:
            return True
        if self._plan.save_every or step_seconds <= 0:
            return False
        lost, costs = self._plan.max_lost_seconds, self._costs(step_seconds)
        self._report.update(checkpoint_every=interval_steps(lost, costs))
        # By the clock, not by those steps: evaluations and slow steps are done again after a crash, too.
        is_over = time.monotonic() - self._begun + step_seconds > interval_seconds(lost, costs)
        return is_over and not self._plan.ends_soon(step, step_seconds=step_seconds)

    def _costs(self, step_seconds: float) -> SaveCosts:
        return SaveCosts(
            step=step_seconds, stall=self._stall_seconds, drag=self._drag.seconds, landing=self._landing_seconds
        )

    def step_done(self, seconds: float) -> None:
        """One has taken so long, without a save before it: what it has taken longer for an upload is learnt."""
        is_beside = self._plane.saver.is_working
        self._drag.step(seconds, beside=is_beside or self._was_beside)
        self._was_beside = is_beside

    def move_on(self, *, all_stored: bool, refused: bool) -> None:
        """After a step: what is in flight. Raises FencedError on every rank if a newer attempt has claimed the run."""
        saver = self._plane.saver
        self._tell_what_stays(saver.housekeeping.trouble)
        if not saver.in_flight:
            return
        if saver.trouble and self._warned_step != self._begun_step:
            self._warned_step = self._begun_step
            told = f"the checkpoint of step {self._begun_step} is not stored yet: {saver.trouble}"
            log.warning(told)
            self._report.warn(told)
        if all_stored or refused:
            saver.advance()
            self._tell_landed()

    # Work that is in no checkpoint

    @property
    def is_too_stale(self) -> bool:
        """Whether a state is being stored for so long that the attempt has to end."""
        return self._plane.saver.in_flight and time.monotonic() - self._begun > self._plan.max_stale_seconds

    def too_stale(self) -> StorageUnreachableError:
        """The error that ends it; what it says of uploads names this rank's own first."""
        limit = self._plan.max_stale_seconds
        return StorageUnreachableError(
            f"the state of step {self._begun_step} could not be stored within {limit:g} s, which is "
            f"spec.checkpoint.maxStaleness: {self._obstacle()}",
            advice="see to the storage; or remove spec.checkpoint.maxStaleness to train on meanwhile",
        )

    def tell_lateness(self, *, step_seconds: float) -> None:
        """Rank 0, after a step: whether a crash would now cost more than the user was promised."""
        costs, lost = self._costs(step_seconds), self._plan.max_lost_seconds
        if self._plan.save_every:
            promised = 2 * self._plan.save_every * step_seconds
        else:
            promised = lost_seconds(lost, costs)
            self._tell_cost(costs)
        is_late = time.monotonic() - self._secured > late_seconds(promised)
        self._report.update(checkpoint_late=self._why_late() if is_late else "")

    def _tell_cost(self, costs: SaveCosts) -> None:
        """Once, where what was asked for is not to be had."""
        if self._drag.saves >= SAVES_BEFORE_COSTS_ARE_TOLD and not self._has_told_cost:
            why = why_lost_is_more(self._plan.max_lost_seconds, costs)
            if why:
                self._report.warn(why)
            self._has_told_cost = bool(why)

    def _why_late(self) -> str:
        saver = self._plane.saver
        base = f"all after step {saver.last.step}" if saver.last else "all that this attempt has done"
        return f"a crash would now cost {base}: {self._obstacle()}"

    def _obstacle(self) -> str:
        saver = self._plane.saver
        if saver.in_flight:
            return saver.trouble or f"that of step {self._begun_step} is still being stored"
        return saver.housekeeping.trouble or "the next save has not begun yet"

    # Taking and landing

    def take(self, state: TrainingState, *, step_seconds: float, waits: bool) -> None:
        """Save it. `waits`: until it is stored, for the training ends here.

        One that is neither last nor best is left out where the one before it is still in flight, and taken later.
        """
        started = time.monotonic()
        with self._report.phase("save", "saving a checkpoint"):
            if not self._make_room(must=waits or state.best_step == state.step):
                self._is_owed = True
                return
            self._plane.save(state, spread_seconds=None if waits else self._spread(step_seconds))
        self._is_owed, self._was_beside = False, True
        self._drag.save_begins()
        if not waits:
            self._stall_seconds = time.monotonic() - started
        self._begun_step, self._begun = state.step, started
        self._tell_landed()

    def _tell_what_stays(self, trouble: str) -> None:
        if trouble and trouble != self._told_trouble:
            told = f"checkpoints that are not kept are not all removed: {trouble}"
            log.warning(told)
            self._report.warn(told)
        self._told_trouble = trouble or self._told_trouble

    def _make_room(self, *, must: bool) -> bool:
        saver = self._plane.saver
        has_room = saver.make_room(math.inf if must else PATIENCE_SECONDS)
        self._tell_landed()
        if not has_room:
            what = "is still being stored" if saver.in_flight else "is followed by a removal of old ones"
            log.info("a save is left out: that of step %d %s", self._begun_step, what)
        return has_room

    def _spread(self, step_seconds: float) -> float:
        """Never so long that the spreading itself would make the state too stale."""
        limit = spread_seconds(self._plan.max_stale_seconds)
        if self._plan.save_every:
            return min(limit, spread_seconds(self._plan.save_every * step_seconds))
        return min(limit, allowed_spread(self._plan.max_lost_seconds))

    def _tell_landed(self) -> None:
        saver = self._plane.saver
        if not saver.in_flight and saver.last is not None:
            if saver.last != self._report.progress.last_checkpoint:
                if self._report.is_main:
                    log.info("checkpoint of step %d committed in %.1f s", saver.last.step, saver.last.save_seconds)
                self._landing_seconds = time.monotonic() - self._begun
                self._secured = self._begun
            self._report.update(last_checkpoint=saver.last, flush=True)
