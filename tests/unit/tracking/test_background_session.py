"""The thread that reports to a tracker: everything arrives in order, and nothing waits for a slow tracker."""

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from finetune_trainer.tracking import background
from finetune_trainer.tracking.background import BackgroundSession, Pauses
from finetune_trainer.tracking.base import LogEntry, Outcome, RunResult, Session
from process_support import until

FAST = Pauses(first=0.01, longest=0.02)


def entry(step: int) -> LogEntry:
    return LogEntry(time=0.0, values={"step": step, "epoch": 0.5, "loss": 1.0, "eval_macro_f1": 0.5})


class RecordingSession(Session):
    """Records what it gets; fails as often as it should, and waits for `gate`."""

    def __init__(self, *, failures: int = 0, gate: threading.Event | None = None) -> None:
        self.steps: list[int] = []
        self.events: list[object] = []
        self._failures = failures
        self._gate = gate

    def _fail_or_wait(self) -> None:
        if self._gate is not None:
            self._gate.wait(30)
        if self._failures:
            self._failures -= 1
            raise ConnectionError("no answer\x1b[2J\nsecond line")

    def log(self, entries: Sequence[LogEntry]) -> None:
        self._fail_or_wait()
        self.steps += [one.step for one in entries]

    def saved(self) -> None:
        self._fail_or_wait()
        self.events.append("saved")

    def result(self, result: RunResult) -> None:
        self.events.append(result)

    def end(self, outcome: Outcome) -> None:
        self._fail_or_wait()
        self.events.append(outcome)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opened after the test, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


def test_everything_is_reported_in_order_and_the_end_is_last() -> None:
    session = RecordingSession()
    result = RunResult(7, {"test/loss": 0.5})
    background = BackgroundSession("mlflow", lambda: session, [entry(step) for step in range(1, 1001)])
    for step in range(1001, 1011):
        background.log(entry(step))
    background.end(Outcome.EVALUATED, result)
    background.join()
    assert session.steps == list(range(1, 1011))
    assert session.events == [result, Outcome.EVALUATED]
    assert background.new_warnings() == []


def test_a_checkpoint_is_reported_after_the_entries_before_it() -> None:
    session = RecordingSession()
    reported = BackgroundSession("tensorBoard", lambda: session, [entry(1)])
    reported.saved()
    reported.end(Outcome.TRAINED)
    reported.join()
    assert session.steps == [1]
    assert session.events[-1] is Outcome.TRAINED


def test_failures_are_warnings_and_lose_no_entry() -> None:
    session, opened = RecordingSession(failures=3), []

    def open_session() -> Session:
        opened.append(1)
        if len(opened) < 3:
            raise OSError("unreachable")
        return session

    reported = BackgroundSession("mlflow", open_session, pauses=FAST)
    for step in range(1, 4):
        reported.log(entry(step))
    until(lambda: session.steps == [1, 2, 3], within=20, what="all steps are reported")
    reported.end(Outcome.TRAINED)
    reported.join()
    assert session.steps == [1, 2, 3]
    assert session.events == [Outcome.TRAINED]
    warnings = reported.new_warnings()
    assert warnings == ["spec.tracking.mlflow failed: OSError: unreachable"], "one for an outage"
    assert reported.new_warnings() == []


def test_the_number_and_the_text_of_warnings_are_limited() -> None:
    class Flapping(RecordingSession):
        def log(self, entries: Sequence[LogEntry]) -> None:
            self.steps += [one.step for one in entries]
            if len(self.steps) % 2:
                raise ConnectionError(f"<Connection object at 0x7f{len(self.steps):04x}>\x1b[2J {'x' * 500}\nmore")

    session = Flapping()
    reported = BackgroundSession("mlflow", lambda: session, pauses=FAST)
    for step in range(1, 9):
        reported.log(entry(step))
        until(lambda number=step: len(session.steps) >= 2 * number, within=20, what=f"step {step} is reported")
    reported.end(Outcome.TRAINED)
    reported.join()
    warnings = reported.new_warnings()
    assert len(warnings) == 3
    assert len(set(warnings)) == 1
    assert warnings[0].startswith("spec.tracking.mlflow failed: ConnectionError: <Connection>?[2J xxx")
    assert len(warnings[0]) < 250


def test_the_end_does_not_wait_for_a_tracker_that_fails() -> None:
    def unreachable() -> Session:
        raise ConnectionError("refused")

    reported = BackgroundSession("mlflow", unreachable, [entry(1)], pauses=Pauses(first=100.0, longest=100.0))
    started = time.monotonic()
    reported.end(Outcome.TRAINED)
    reported.join(10)
    assert time.monotonic() - started < 5
    assert reported.new_warnings()[-1] == "spec.tracking.mlflow does not answer: not everything was reported"


@pytest.mark.parametrize(
    ("is_completed_later", "warnings"),
    [(False, ["spec.tracking.mlflow is too slow: not everything was reported within 0.2 s"]), (True, [])],
)
def test_nothing_waits_for_a_tracker_that_hangs(
    gate: threading.Event, is_completed_later: bool, warnings: list[str]
) -> None:
    reported = BackgroundSession(
        "mlflow",
        lambda: RecordingSession(gate=gate),
        end_seconds=0.2,
        is_completed_later=is_completed_later,
    )
    started = time.monotonic()
    for step in range(1, 100):
        reported.log(entry(step))
        reported.saved()
    reported.end(Outcome.TRAINED)
    assert time.monotonic() - started < 1
    reported.join()
    assert time.monotonic() - started < 5
    assert reported.new_warnings() == warnings


def test_the_oldest_entries_are_dropped_if_too_many_wait(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "MAX_PENDING", 10)
    monkeypatch.setattr(background, "BATCH", 1)
    session = RecordingSession(gate=gate)
    reported = BackgroundSession("mlflow", lambda: session)
    for step in range(1, 101):
        reported.log(entry(step))
    gate.set()
    reported.end(Outcome.TRAINED)
    reported.join(20)
    assert session.steps[-10:] == list(range(91, 101))
    assert len(session.steps) <= 11
    (warning,) = reported.new_warnings()
    assert warning.endswith("entries of the log were dropped")


def test_an_abandoned_session_reports_nothing_more() -> None:
    session = RecordingSession()
    reported = BackgroundSession("tensorBoard", lambda: session)
    reported.abandon()
    reported.log(entry(1))
    reported.end(Outcome.FAILED)
    reported.join()
    assert (session.steps, session.events, reported.new_warnings()) == ([], [], [])


def test_metrics_have_the_names_of_their_split() -> None:
    assert entry(3).metrics == {"train/loss": 1.0, "validation/macro_f1": 0.5}
    assert entry(3).step == 3
