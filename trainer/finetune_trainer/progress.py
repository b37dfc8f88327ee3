"""How a rank tells its supervisor how far it is: a small file, replaced whole.

The supervisor serves the file at `/progress` from outside the training process, so that a rank that computes, hangs or
dies never takes the answer with it.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_api.constants import Stage
from finetune_api.files import replace_file
from finetune_api.progress import Progress, merged_warnings

log = logging.getLogger("finetune")

PROGRESS_FILE = "progress.json"

_MIN_INTERVAL_SECONDS = 0.1
"""Replacing the file costs about 0.1 ms; at ten a second no display looks stale and no step feels it."""


class ProgressReporter:
    """Rank 0's view of the stage. The other ranks hold one that writes nothing."""

    def __init__(self, folder: Path | None, *, stage: Stage, attempt: int = 0) -> None:
        self._path = None if folder is None else folder / PROGRESS_FILE
        self._written = 0.0
        self._logged: set[str] = set()
        self.progress = Progress(stage=stage, attempt=attempt)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0's, whose words people read."""
        return self._path is not None

    def update(self, *, flush: bool = False, **fields: Any) -> None:
        """Set fields of Progress; write the file unless it was written a moment ago (`flush` writes always)."""
        self.progress = self.progress.model_copy(update=fields)
        if self._path is not None and (flush or time.monotonic() - self._written >= _MIN_INTERVAL_SECONDS):
            replace_file(self._path, self.progress.model_dump_json(exclude_defaults=True))
            self._written = time.monotonic()

    def warn(self, message: str) -> None:
        """Add a warning that the user sees in the display and in status; the same one only once."""
        warnings = merged_warnings(self.progress.warnings, [message])
        if warnings != self.progress.warnings:
            self.update(warnings=warnings, flush=True)

    @contextmanager
    def phase(self, name: str, activity: str = "") -> Iterator[None]:
        """Count the block's seconds under `phase_seconds[name]`, and show `activity` meanwhile."""
        if activity:
            self.update(activity=activity, flush=True)
            self._log_once(activity)
        started = time.monotonic()
        try:
            yield
        finally:
            self.add_seconds(name, time.monotonic() - started)

    def _log_once(self, activity: str) -> None:
        """Of rank 0 alone, and what is done again and again, such as saving, only the first time."""
        if self.is_main and activity not in self._logged:
            self._logged.add(activity)
            log.info("%s", activity)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add to `phase_seconds[name]` what a caller has measured itself."""
        spent = dict(self.progress.phase_seconds)
        spent[name] = spent.get(name, 0.0) + seconds
        self.update(phase_seconds=spent)
