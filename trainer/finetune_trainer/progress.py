"""Reports the progress of rank 0 in a small file, which is replaced atomically.

The supervisor serves the file at `/progress`. Because it is another process, requests are answered even while the rank
is busy, hangs or has crashed.
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
"""Replacing the file takes about 0.1 ms. Ten updates per second suffice for a display and do not slow down training."""


class ProgressReporter:
    """Collects the progress of the stage and writes it to a file. On ranks other than 0, it writes nothing."""

    def __init__(self, folder: Path | None, *, stage: Stage, attempt: int = 0) -> None:
        self._path = None if folder is None else folder / PROGRESS_FILE
        self._written = 0.0
        self._logged: set[str] = set()
        self.progress = Progress(stage=stage, attempt=attempt)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which logs and reports for all ranks."""
        return self._path is not None

    def update(self, *, flush: bool = False, **fields: Any) -> None:
        """Set fields of Progress and write the file, at most ten times per second unless `flush` is set."""
        self.progress = self.progress.model_copy(update=fields)
        if self._path is not None and (flush or time.monotonic() - self._written >= _MIN_INTERVAL_SECONDS):
            replace_file(self._path, self.progress.model_dump_json(exclude_defaults=True))
            self._written = time.monotonic()

    def warn(self, message: str) -> None:
        """Add a warning for the display and the job's status, unless it has been added before."""
        warnings = merged_warnings(self.progress.warnings, [message])
        if warnings != self.progress.warnings:
            self.update(warnings=warnings, flush=True)

    @contextmanager
    def phase(self, name: str, activity: str = "") -> Iterator[None]:
        """Add the duration of the block to `phase_seconds[name]`, and show `activity` while it runs."""
        if activity:
            self.update(activity=activity, flush=True)
            self._log_once(activity)
        started = time.monotonic()
        try:
            yield
        finally:
            self.add_seconds(name, time.monotonic() - started)

    def _log_once(self, activity: str) -> None:
        """Log the activity on rank 0, only the first time, because some (such as saving) are repeated many times."""
        if self.is_main and activity not in self._logged:
            self._logged.add(activity)
            log.info("%s", activity)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add `seconds`, measured by the caller, to `phase_seconds[name]`."""
        spent = dict(self.progress.phase_seconds)
        spent[name] = spent.get(name, 0.0) + seconds
        self.update(phase_seconds=spent)
