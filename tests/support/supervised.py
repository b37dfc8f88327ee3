"""An operator that is looked after as a kubelet does: started again when it has ended, or when its probe fails."""

import time
from collections.abc import Callable
from typing import Any

from operator_process import OperatorProcess

_FAILED_PROBES = 3


class Supervised:
    """Watches over one operator; `until` is how a test waits."""

    def __init__(self, operator: OperatorProcess, server: str) -> None:
        self.operator, self._server = operator, server
        self.ended: list[int] = []
        """Exit statuses of operators that ended by themselves."""
        self.found_ill: list[str] = []
        """What the probe said of operators that were ended for it."""
        self.shown: Callable[[], object] = lambda: ""
        """What a failure shows beside the operator's own words."""
        self._failures = 0
        self._next_probe = 0.0

    def until(self, condition: Callable[[], Any], *, within: float, what: str) -> Any:
        """Poll the condition, and meanwhile look after the operator."""
        deadline = time.monotonic() + within
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {within} s: {what}\n{self._report()}"
            self._look()
            time.sleep(0.5)
        return value

    def _look(self) -> None:
        status = self.operator.exit_status
        if status is not None:
            self.ended.append(status)
            assert status != 0, f"it ended as if all were well:\n{self.operator.said()}"
            self._start()
        elif time.monotonic() >= self._next_probe:
            self._probe()

    def _probe(self) -> None:
        self._next_probe = time.monotonic() + 1.0
        status, text = self.operator.get("/healthz")
        self._failures = self._failures + 1 if status == 500 else 0
        if self._failures >= _FAILED_PROBES:
            self.found_ill.append(text)
            self.operator.stop()
            self._start()

    def _start(self) -> None:
        self._failures = 0
        self.operator.start(server=self._server)

    def _report(self) -> str:
        health = self.operator.get("/healthz")
        return (
            f"health {health}, ended {self.ended}, found ill {self.found_ill}\n{self.shown()}\n{self.operator.said()}"
        )
