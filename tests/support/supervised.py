"""An operator that is supervised like by a kubelet: restarted when it exits, or when its probe fails."""

import time
from collections.abc import Callable
from typing import Any

from operator_process import OperatorProcess

_FAILED_PROBES = 3


class SupervisedOperator:
    """Supervises one operator; tests wait with `until`."""

    def __init__(self, operator: OperatorProcess, server: str) -> None:
        self.operator, self._server = operator, server
        self.ended: list[int] = []
        """Exit statuses of operators that exited by themselves."""
        self.failed_probes: list[str] = []
        """Probe results for which operators were killed."""
        self.shown: Callable[[], object] = lambda: ""
        """Additional output for failures."""
        self._failures = 0
        self._next_probe = 0.0

    def until(self, condition: Callable[[], Any], *, within: float, what: str) -> Any:
        """Poll the condition, and supervise the operator while waiting."""
        deadline = time.monotonic() + within
        while not (value := condition()):
            assert time.monotonic() < deadline, f"timed out after {within} s: {what}\n{self._report()}"
            self._look()
            time.sleep(0.5)
        return value

    def _look(self) -> None:
        status = self.operator.exit_status
        if status is not None:
            self.ended.append(status)
            assert status != 0, f"the operator exited with status 0:\n{self.operator.log_text()}"
            self._start()
        elif time.monotonic() >= self._next_probe:
            self._probe()

    def _probe(self) -> None:
        self._next_probe = time.monotonic() + 1.0
        status, text = self.operator.get("/healthz")
        self._failures = self._failures + 1 if status == 500 else 0
        if self._failures >= _FAILED_PROBES:
            self.failed_probes.append(text)
            self.operator.stop()
            self._start()

    def _start(self) -> None:
        self._failures = 0
        self.operator.start(server=self._server)

    def _report(self) -> str:
        health = self.operator.get("/healthz")
        state = f"health {health}, ended {self.ended}, failed probes {self.failed_probes}"
        return f"{state}\n{self.shown()}\n{self.operator.log_text()}"
