"""`finetune logs` for a local run: read the files in its folder."""

import time
from collections.abc import Callable, Iterator

from ..exit_status import CommandError
from ..log_lines import LogLine, by_time, of_newest_run, parse_lines
from .state import LocalJob, LocalState, LogFile

_POLL_SECONDS = 0.3

Wanted = Callable[[LogFile], bool]


def entries_now(job: LocalJob, wanted: Wanted) -> list[LogLine]:
    """Return the logs of the newest run so far, sorted by time. Raises CommandError if none of its logs is `wanted`."""
    logs = of_newest_run(job.logs())
    found = [log for log in logs if wanted(log)]
    if not found:
        known = ", ".join(dict.fromkeys(f"{log.stage} attempt {log.attempt}" for log in logs)) or "none"
        raise CommandError(f"{job.key.name} has no such log; existing logs: {known}")
    # Not splitlines(), which also splits at separators such as U+2028 within a message.
    texts = {log: log.path.read_bytes().decode(errors="replace").split("\n") for log in found}
    return by_time(entry for log, lines in texts.items() for entry in parse_lines(log, lines))


def follow(state: LocalState, name: str | None, wanted: Wanted) -> Iterator[LogLine]:
    """Yield the logs of the newest run, and of later ones, until the job has ended."""
    first: int | None = None
    read: dict[LogFile, int] = {}
    while True:
        job = state.find(name)
        has_ended = job.status.phase.is_terminal or not state.is_running
        logs = job.logs()
        if logs and first is None:
            first = logs[-1].run
        new: list[LogLine] = []
        for log in logs:
            if wanted(log) and first is not None and log.run >= first:
                entries, read[log] = _entries_from(log, read.get(log, 0))
                new += entries
        yield from by_time(new)
        if has_ended:
            return
        time.sleep(_POLL_SECONDS)


def _entries_from(log: LogFile, offset: int) -> tuple[list[LogLine], int]:
    """Return the entries of complete lines after `offset`, and the offset of their end."""
    with log.path.open("rb") as file:
        file.seek(offset)
        whole, _, _ = file.read().rpartition(b"\n")
    if not whole:
        return [], offset
    return parse_lines(log, whole.decode(errors="replace").split("\n")), offset + len(whole) + 1
