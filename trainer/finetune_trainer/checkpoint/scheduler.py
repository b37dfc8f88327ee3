"""CheckpointScheduler: decides when a save is due, measures what saves cost, and warns when checkpoints are late."""

import time

from ..progress import ProgressReporter
from .save_interval import (
    SaveCosts,
    SavePolicy,
    UploadOverhead,
    default_upload_seconds,
    interval_seconds,
    interval_steps,
    late_seconds,
    lost_seconds,
    upload_seconds,
    why_lost_is_more,
)

SAVES_BEFORE_COSTS_ARE_REPORTED = 3
"""The first saves cost more than later ones: they allocate buffers and start the uploader."""


class CheckpointScheduler:
    """The clock of one attempt's saves, on one rank. Not collective: rank 0's view decides."""

    def __init__(self, policy: SavePolicy, report: ProgressReporter) -> None:
        self._policy, self._report = policy, report
        self.step, self._started = 0, time.monotonic()
        """Step and time of the last snapshot; at first, of the start of the attempt."""
        self._secured = self._started
        """Time of the snapshot in the last committed checkpoint."""
        self._stall_seconds = 0.0
        self._commit_latency = 0.0
        self._overhead, self._was_uploading = UploadOverhead(), False
        self._is_postponed = False
        """A due save was skipped because the previous one was still in flight."""
        self._has_reported_costs = False

    def start(self, step: int) -> None:
        """Start the clock: the training starts or resumes at this step."""
        self.step, self._started = step, time.monotonic()
        self._secured = self._started

    def is_due(self, step: int, *, step_seconds: float) -> bool:
        """Whether a save is due by time after this step: after one more step, the interval would have passed."""
        if self._is_postponed:
            return True
        if self._policy.every_steps or step_seconds <= 0:
            return False
        lost, costs = self._policy.max_lost_seconds, self._costs(step_seconds)
        self._report.update(checkpoint_every=interval_steps(lost, costs))
        # By time, not by the number of steps: evaluations and slow steps are also repeated after a crash.
        has_passed = time.monotonic() - self._started + step_seconds > interval_seconds(lost, costs)
        return has_passed and not self._policy.ends_soon(step, step_seconds=step_seconds)

    def _costs(self, step_seconds: float) -> SaveCosts:
        return SaveCosts(
            step=step_seconds,
            stall=self._stall_seconds,
            upload_overhead=self._overhead.seconds,
            commit_latency=self._commit_latency,
        )

    def upload_seconds(self, step_seconds: float) -> float:
        """Seconds to spread the next upload over, limited so that the state does not become too stale."""
        limit = upload_seconds(self._policy.max_stale_seconds)
        if self._policy.every_steps:
            return min(limit, upload_seconds(self._policy.every_steps * step_seconds))
        return min(limit, default_upload_seconds(self._policy.max_lost_seconds))

    # Events

    def postpone(self) -> None:
        """A due save was skipped; the next one is due as soon as possible."""
        self._is_postponed = True

    def save_started(self, step: int, started: float, *, stall_seconds: float | None) -> None:
        """A snapshot was taken. `started`: by time.monotonic(); `stall_seconds`: None if the save waited for the
        upload."""
        self._is_postponed, self._was_uploading = False, True
        self._overhead.start_save()
        if stall_seconds is not None:
            self._stall_seconds = stall_seconds
        self.step, self._started = step, started

    def committed(self) -> None:
        """The last snapshot was committed."""
        self._commit_latency = time.monotonic() - self._started
        self._secured = self._started

    def step_done(self, seconds: float, *, is_uploading: bool) -> None:
        """A step took this long, excluding a save after the previous step."""
        self._overhead.step(seconds, is_uploading=is_uploading or self._was_uploading)
        self._was_uploading = is_uploading

    # Work that no checkpoint has

    @property
    def is_too_stale(self) -> bool:
        """Whether the last snapshot is older than `uploadTimeout` allows."""
        return time.monotonic() - self._started > self._policy.max_stale_seconds

    def is_late(self, *, step_seconds: float) -> bool:
        """Whether a crash would now cost clearly more work than promised."""
        if self._policy.every_steps:
            promised = 2 * self._policy.every_steps * step_seconds
        else:
            costs, lost = self._costs(step_seconds), self._policy.max_lost_seconds
            promised = lost_seconds(lost, costs)
            self._report_costs(costs)
        return time.monotonic() - self._secured > late_seconds(promised)

    def _report_costs(self, costs: SaveCosts) -> None:
        """Warn once if `maxLostWork` cannot be met."""
        if self._overhead.saves >= SAVES_BEFORE_COSTS_ARE_REPORTED and not self._has_reported_costs:
            why = why_lost_is_more(self._policy.max_lost_seconds, costs)
            if why:
                self._report.warn(why)
            self._has_reported_costs = bool(why)
