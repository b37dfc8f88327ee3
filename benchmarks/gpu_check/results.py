"""Rows of the result, and the time budget. Pure."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Clock = Callable[[], float]


class SkippedError(Exception):
    """A check cannot be made here; the message is the reason."""


class FailedCheckError(Exception):
    """What a check requires does not hold; the message says what was found, `figures` what was measured."""

    def __init__(self, message: str, figures: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.figures = figures or {}


@dataclass(frozen=True)
class Row:
    """Result of one check."""

    name: str
    holds: bool | None
    """None: skipped."""
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    """Why it was skipped or failed."""

    def as_json(self) -> dict[str, Any]:
        """Return the row for the last line; without numbers that JSON does not have."""
        shown: dict[str, Any] = {"name": self.name, "holds": "skipped" if self.holds is None else self.holds}
        if self.reason:
            shown["reason"] = self.reason
        return shown | {"figures": finite(self.figures), "seconds": round(self.seconds, 1)}

    def as_text(self) -> str:
        """Return the row of the table."""
        state = {None: "skipped", True: "holds", False: "FAILED"}[self.holds]
        shown = ", ".join(f"{name} {_short(value)}" for name, value in self.figures.items() if _is_short(value))
        return f"{self.name:<24} {state:<8} {self.seconds:>6.1f} s  {'; '.join(filter(None, (self.reason, shown)))}"


@dataclass(frozen=True)
class Check:
    """A check: it returns its figures, or raises SkippedError or FailedCheckError."""

    name: str
    seconds: float
    """Time that must be left for it to start."""
    run: Callable[[], dict[str, Any]]


class Budget:
    """The time that all checks share."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self._end - self._clock())


def run_checks(
    checks: Sequence[Check], budget: Budget, show: Callable[[Row], None], clock: Clock = time.monotonic
) -> list[Row]:
    """Run all checks in order. An error of one is its result and does not end the others."""
    rows = []
    for check in checks:
        started = clock()
        row = _row(check, budget, started, clock)
        show(row)
        rows.append(row)
    return rows


def _row(check: Check, budget: Budget, started: float, clock: Clock) -> Row:
    if budget.left < check.seconds:
        reason = f"{budget.left:.0f} s of the time budget are left, and it needs {check.seconds:.0f} s"
        return Row(check.name, None, 0.0, reason=reason)
    try:
        figures = check.run()
    except SkippedError as skipped:
        return Row(check.name, None, clock() - started, reason=str(skipped))
    except FailedCheckError as failed:
        return Row(check.name, False, clock() - started, failed.figures, str(failed))
    except Exception as error:  # noqa: BLE001  # the other checks must still run
        return Row(check.name, False, clock() - started, reason=f"{type(error).__name__}: {str(error)[-1500:]}")
    return Row(check.name, True, clock() - started, figures)


def last_line(rows: Sequence[Row], device: dict[str, Any], seconds: float) -> str:
    """Return the JSON object of the last line."""
    document = {
        "gpuCheck": [row.as_json() for row in rows],
        "device": finite(device),
        "failed": [row.name for row in rows if row.holds is False],
        "skipped": [row.name for row in rows if row.holds is None],
        "seconds": round(seconds, 1),
    }
    return json.dumps(document, allow_nan=False)


def exit_status(rows: Sequence[Row]) -> int:
    """Return 0 if no check failed."""
    return int(any(row.holds is False for row in rows))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def falls(losses: Sequence[float]) -> bool:
    """Whether all losses are finite, and the mean of the last third is below that of the first third."""
    third = max(1, len(losses) // 3)
    if not losses or not all(math.isfinite(loss) for loss in losses):
        return False
    return sum(losses[-third:]) < sum(losses[:third])


def largest_difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative difference; infinity if the lengths differ or a value is not finite."""
    if len(found) != len(expected) or not all(map(math.isfinite, [*found, *expected])):
        return math.inf
    return max(
        (abs(one - other) / max(abs(other), 1e-12) for one, other in zip(found, expected, strict=True)), default=0
    )


def finite(value: Any) -> Any:
    """Return the value with text instead of NaN and infinity, and rounded to six significant digits."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def _is_short(value: Any) -> bool:
    return not isinstance(value, dict | list | tuple)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
