"""What saves cost the steps beside them: uploads take processor time, memory bandwidth and network. Pure."""

import statistics
from collections import deque

_FIRST_STEPS = 5
"""Of an attempt: they allocate, compile and fill caches, and are compared with nothing."""
_QUIET_STEPS = 100
_LEAST_QUIET_STEPS = 3
_SAVES = 5
"""A mean over so many: of one save it is a small difference of two sums, either of which other loads disturb."""
_CAP = 2.0
"""Times the usual. A step that takes longer has another reason than an upload of the lowest priority."""


class Drag:
    """Compares steps beside an upload, or a removal, with recent ones beside none."""

    def __init__(self) -> None:
        self._ignored = 0
        self._quiet: deque[float] = deque(maxlen=_QUIET_STEPS)
        self._extra: float | None = None
        """Of the steps beside the save of now; None: none could be compared yet."""
        self._saves: deque[float] = deque(maxlen=_SAVES)

    def step(self, seconds: float, *, beside: bool) -> None:
        """One has taken so long."""
        if self._ignored < _FIRST_STEPS:
            self._ignored += 1
        elif not beside:
            self._quiet.append(seconds)
        elif len(self._quiet) >= _LEAST_QUIET_STEPS:
            longest = _CAP * statistics.median(self._quiet)
            usual = statistics.fmean(min(each, longest) for each in self._quiet)
            self._extra = (self._extra or 0.0) + min(seconds, longest) - usual

    def save_begins(self) -> None:
        """What comes from now on is of another save."""
        if self._extra is not None:
            self._saves.append(self._extra)
        self._extra = None

    @property
    def saves(self) -> int:
        """Of which it is known."""
        return len(self._saves)

    @property
    def seconds(self) -> float:
        """How much longer the steps beside a save have taken, all together; 0 until one has been seen to its end."""
        return max(0.0, statistics.fmean(self._saves)) if self._saves else 0.0
