"""Parse and format log lines of workers. Pure."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from finetune_api.constants import Stage
from finetune_api.stages import stage_order


@dataclass(frozen=True)
class LogSource:
    """The pod that wrote a log line."""

    run: int
    stage: Stage
    attempt: int
    index: int
    """Index of the pod in its attempt."""

    @property
    def attempt_order(self) -> tuple[int, int, int]:
        """Sort key, oldest attempt first; equal for all pods of an attempt."""
        return (self.run, stage_order(self.stage), self.attempt)


Source = TypeVar("Source", bound=LogSource)


@dataclass(frozen=True)
class LogLine:
    """One line of a worker's log."""

    source: LogSource
    text: str
    time: str = ""
    """RFC 3339. A line without a time has the time of the previous line in the same file."""
    rank: int | None = None
    """None for lines of the pod's supervisor, and of libraries that do not use the logger."""
    level: str = ""

    def readable(self) -> str:
        """Return `12:01:24 train a2 rank 0  INFO text`."""
        clock = self.time[11:19] or " " * 8
        origin = f"pod {self.source.index} " if self.rank is None else f"rank {self.rank}"
        return f"{clock} {self.source.stage} a{self.source.attempt} {origin}  {self.level} {self.text}".replace(
            "   ", "  "
        )


def parse_line(source: LogSource, line: str, *, last_time: str = "") -> list[LogLine]:
    """Return the entries of a log line: several if its message or traceback has several lines."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or "message" not in fields:
        return [LogLine(source, line.rstrip("\r"), time=last_time)] if line.strip() else []
    texts = [*str(fields["message"]).splitlines(), *str(fields.get("traceback", "")).splitlines()]
    rank = fields.get("rank")
    return [
        LogLine(
            source,
            text,
            time=str(fields.get("time", last_time)),
            rank=rank if isinstance(rank, int) else None,
            level=str(fields.get("level", "")),
        )
        for text in texts or [""]
    ]


def parse_lines(source: LogSource, lines: Iterable[str]) -> list[LogLine]:
    """Return all entries of a log. Lines before the first one with a time get its time, so that they stay first."""
    entries: list[LogLine] = []
    for line in lines:
        entries += parse_line(source, line, last_time=entries[-1].time if entries else "")
    first = next((entry.time for entry in entries if entry.time), "")
    return [entry if entry.time else replace(entry, time=first) for entry in entries]


def of_newest_run(found: list[Source]) -> list[Source]:
    """Return the pods of all stages and attempts of the newest run."""
    newest = max((each.run for each in found), default=None)
    return [each for each in found if each.run == newest]


def by_time(entries: Iterable[LogLine]) -> list[LogLine]:
    """Sort entries of several pods by time. Entries of one pod with equal times keep their order."""
    return sorted(entries, key=lambda entry: entry.time)


def is_of_rank(entry: LogLine, rank: int | None) -> bool:
    """Whether the entry belongs to the log of `rank`. Lines of a supervisor belong to the rank with the pod's index."""
    return rank is None or rank == (entry.source.index if entry.rank is None else entry.rank)
