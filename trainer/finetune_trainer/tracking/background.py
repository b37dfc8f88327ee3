"""The thread that reports to one tracker, so that a slow or unreachable one never delays the training."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .base import QUICK_SECONDS, LogEntry, Outcome, RunResult, Session, described

MAX_PENDING = 20_000
"""Entries that wait for the tracker; the oldest are dropped beyond that. Each has a few numbers."""
BATCH = 200
"""Entries that are reported together."""
_MAX_OUTAGES = 3
"""Warnings about failures, because the status has the last sixteen warnings of a run only."""


@dataclass(frozen=True)
class Pauses:
    """Seconds between tries after failures: they double from `first` to `longest`."""

    first: float = 2.0
    longest: float = 60.0


class BackgroundSession:
    """Passes entries to a session in a thread of its own. No method but `join` waits.

    `open_session` is called by the thread. After a failure, the thread tries again with the same entries. Failures
    become warnings, which `new_warnings` returns to the thread of the caller. `end_seconds` limits `join`, and
    `is_completed_later` says that the evaluation reports what is missing then.
    """

    def __init__(
        self,
        name: str,
        open_session: Callable[[], Session],
        history: Iterable[LogEntry] = (),
        *,
        end_seconds: float = QUICK_SECONDS,
        is_completed_later: bool = False,
        pauses: Pauses | None = None,
    ) -> None:
        self._name = name
        self._end_seconds = end_seconds
        self._is_completed_later = is_completed_later
        self._open = open_session
        self._pauses = pauses or Pauses()
        self._session: Session | None = None
        self._changed = threading.Condition()
        self._pending: deque[LogEntry] = deque(history)
        """Entries of earlier attempts are in memory anyway, so that their number is not limited."""
        self._limit = len(self._pending) + MAX_PENDING
        self._dropped = 0
        self._save_due = False
        self._result: RunResult | None = None
        self._outcome: Outcome | None = None
        self._abandoned = False
        self._warnings: list[str] = []
        self._failures = 0
        """Since the last success."""
        self._outages = 0
        self._thread = threading.Thread(target=self._run, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    def log(self, entry: LogEntry) -> None:
        """Add an entry of the log."""
        with self._changed:
            if len(self._pending) >= self._limit:
                self._pending.popleft()
                self._dropped += 1
            self._pending.append(entry)
            self._changed.notify()

    def saved(self) -> None:
        """A checkpoint was saved."""
        with self._changed:
            self._save_due = True
            self._changed.notify()

    def end(self, outcome: Outcome, result: RunResult | None = None) -> None:
        """No entry follows. `join` waits until everything is reported."""
        with self._changed:
            self._result, self._outcome = result, outcome
            self._changed.notify()

    def abandon(self) -> None:
        """Report nothing more: a newer attempt owns the run."""
        with self._changed:
            self._abandoned = True
            self._changed.notify()

    def join(self, seconds: float | None = None) -> None:
        """Wait until the session has ended, at most this long or as long as the session allows.

        Adds a warning if something was not reported, and nothing else will report it.
        """
        limit = self._end_seconds if seconds is None else seconds
        self._thread.join(limit)
        with self._changed:
            is_late = self._thread.is_alive() and not self._abandoned
            self._abandoned |= is_late
            if is_late and not self._is_completed_later:
                self._warn(f"is too slow: not everything was reported within {limit:g} s")
            if self._dropped and not self._is_completed_later:
                self._warn(f"is too slow: {self._dropped} entries of the log were dropped")

    def new_warnings(self) -> list[str]:
        """Return the warnings since the last call."""
        with self._changed:
            found, self._warnings = self._warnings, []
        return found

    # ---- the thread ----

    def _run(self) -> None:
        while self._wait_for_work():
            entries: list[LogEntry] = []
            try:
                if self._session is None:
                    self._session = self._open()
                entries = self._take()
                if entries:
                    self._session.log(entries)
                elif self._finish(self._session):
                    return
                self._failures = 0
            except Exception as error:  # noqa: BLE001  a tracker may raise anything, and must not end the training
                if not self._failed(error, entries):
                    return

    def _wait_for_work(self) -> bool:
        """Wait for something to report. Returns False if nothing must be reported any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or self._pending or self._save_due or self._outcome)
            return not self._abandoned

    def _take(self) -> list[LogEntry]:
        with self._changed:
            return [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]

    def _finish(self, session: Session) -> bool:
        """Report a checkpoint, or the end if no entry is left. Returns whether the session has ended."""
        with self._changed:
            outcome, result, self._save_due = self._outcome, self._result, False
        if outcome is None:
            session.saved()
            return False
        if result is not None:
            session.result(result)
        session.end(outcome)
        return True

    def _failed(self, error: Exception, entries: list[LogEntry]) -> bool:
        """Put the entries back and pause. Returns False at the end of the attempt, which does not wait for retries."""
        self._failures += 1
        pause = min(self._pauses.longest, self._pauses.first * 2 ** min(self._failures - 1, 10))
        with self._changed:
            self._pending.extendleft(reversed(entries))
            if self._failures == 1 and self._outages < _MAX_OUTAGES:
                self._outages += 1
                self._warn(f"failed: {described(error)}")
            if self._outcome is None:
                self._changed.wait_for(lambda: self._abandoned or self._outcome is not None, timeout=pause)
                return True
            if self._failures > 1:
                if not self._is_completed_later:
                    self._warn("does not answer: not everything was reported")
                return False
        return True

    def _warn(self, message: str) -> None:
        """Add a warning. The caller holds the lock."""
        self._warnings.append(f"spec.tracking.{self._name} {message}")
