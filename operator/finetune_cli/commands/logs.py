"""`finetune logs`: what workers have said."""

import time
from collections.abc import Callable
from typing import Annotated

import typer

from finetune_api.constants import Stage
from finetune_api.v1alpha1 import Status

from ..engine import OVER
from ..exit_status import CommandError
from ..local_state import LocalState, LogFile
from ..log_lines import is_of_rank, parse_line, parse_lines
from .options import DEFAULT_WORK_DIR, WorkDir

_POLL_SECONDS = 0.3

Wanted = Callable[[LogFile], bool]


def logs(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Job; the latest if left out.")] = None,
    attempt: Annotated[int | None, typer.Option(metavar="N", help="Attempt; the latest if left out.")] = None,
    stage: Annotated[Stage | None, typer.Option(help="Stage; the latest if left out.")] = None,
    rank: Annotated[int | None, typer.Option(metavar="R", help="Rank; all if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
) -> None:
    """Print what the workers of a run have said, in the order of time."""
    state = LocalState(work_dir)
    if follow:
        _follow(state, name, _selected(stage, attempt), rank)
        return
    job = state.find(name)
    found = _latest([log for log in job.logs() if _selected(stage, attempt)(log)])
    if not found:
        known = ", ".join(dict.fromkeys(f"{log.stage} attempt {log.attempt}" for log in job.logs())) or "none yet"
        raise CommandError(f"{job.key.name} has no such log; there are: {known}")
    entries = [entry for log in found for entry in parse_lines(log, log.path.read_text(errors="replace").splitlines())]
    for entry in sorted(entries, key=lambda entry: entry.time):
        if is_of_rank(entry, rank):
            print(entry.readable())


def _selected(stage: Stage | None, attempt: int | None) -> Wanted:
    return lambda log: stage in (None, log.stage) and attempt in (None, log.attempt)


def _latest(found: list[LogFile]) -> list[LogFile]:
    """The pods of the newest attempt."""
    return [log for log in found if log.order[:3] == found[-1].order[:3]]


def _follow(state: LocalState, name: str | None, wanted: Wanted, rank: int | None) -> None:
    """Print the newest attempt from its beginning, and each later one as it comes."""
    first: tuple[int, int, int] | None = None
    read: dict[LogFile, int] = {}
    while True:
        job = state.find(name)
        is_over = _is_over(job.status, state)
        found = [log for log in job.logs() if wanted(log)]
        if found and first is None:
            first = found[-1].order[:3]
        for log in found:
            if first is not None and log.order[:3] >= first:
                read[log] = _print_from(log, read.get(log, 0), rank)
        if is_over:
            return
        time.sleep(_POLL_SECONDS)


def _is_over(status: Status, state: LocalState) -> bool:
    return status.phase in OVER or not state.is_running


def _print_from(log: LogFile, offset: int, rank: int | None) -> int:
    """Print the whole lines after `offset`; where they end."""
    with log.path.open("rb") as file:
        file.seek(offset)
        whole, _, _ = file.read().rpartition(b"\n")
    if not whole:
        return offset
    for line in whole.decode(errors="replace").split("\n"):
        for entry in parse_line(log, line):
            if is_of_rank(entry, rank):
                print(entry.readable(), flush=True)
    return offset + len(whole) + 1
