"""`finetune logs` of a local run: files in its folder."""

import time
from collections.abc import Callable, Iterator

from .engine import OVER
from .exit_status import CommandError
from .local_state import LocalJob, LocalState, LogFile
from .log_lines import LogEntry, of_newest_attempt, parse_line, parse_lines

_POLL_SECONDS = 0.3

Wanted = Callable[[LogFile], bool]


def entries_now(job: LocalJob, wanted: Wanted) -> list[LogEntry]:
    """What the newest attempt has said so far, in the order of time. Raises CommandError if there is none."""
    found = of_newest_attempt([log for log in job.logs() if wanted(log)])
    if not found:
        known = ", ".join(dict.fromkeys(f"{log.stage} attempt {log.attempt}" for log in job.logs())) or "none yet"
        raise CommandError(f"{job.key.name} has no such log; there are: {known}")
    entries = [entry for log in found for entry in parse_lines(log, log.path.read_text(errors="replace").splitlines())]
    return sorted(entries, key=lambda entry: entry.time)


def follow(state: LocalState, name: str | None, wanted: Wanted) -> Iterator[LogEntry]:
    """The newest attempt from its beginning, and each later one as it comes."""
    first: tuple[int, int, int] | None = None
    read: dict[LogFile, int] = {}
    while True:
        job = state.find(name)
        is_over = job.status.phase in OVER or not state.is_running
        found = [log for log in job.logs() if wanted(log)]
        if found and first is None:
            first = found[-1].attempt_order
        for log in found:
            if first is not None and log.attempt_order >= first:
                entries, read[log] = _entries_from(log, read.get(log, 0))
                yield from entries
        if is_over:
            return
        time.sleep(_POLL_SECONDS)


def _entries_from(log: LogFile, offset: int) -> tuple[list[LogEntry], int]:
    """The whole lines after `offset`; where they end."""
    with log.path.open("rb") as file:
        file.seek(offset)
        whole, _, _ = file.read().rpartition(b"\n")
    if not whole:
        return [], offset
    lines = whole.decode(errors="replace").split("\n")
    return [entry for line in lines for entry in parse_line(log, line)], offset + len(whole) + 1
