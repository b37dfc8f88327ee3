"""Log lines of workers as people read them. Pure."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from finetune_api.constants import Stage
from finetune_api.stages import stage_order


@dataclass(frozen=True)
class LogSource:
    """The pod that has said it."""

    run: int
    stage: Stage
    attempt: int
    index: int
    """Of the pod among those of its attempt."""

    @property
    def attempt_order(self) -> tuple[int, int, int]:
        """Oldest first; the same for all pods of an attempt."""
        return (self.run, stage_order(self.stage), self.attempt)


Source = TypeVar("Source", bound=LogSource)


@dataclass(frozen=True)
class LogEntry:
    """One line of a worker's log."""

    source: LogSource
    text: str
    time: str = ""
    """RFC 3339; of a line without a time, that of the line before it in the same file."""
    rank: int | None = None
    """None: said by the pod itself, or by a library that writes past the log."""
    level: str = ""

    def readable(self) -> str:
        """`12:01:24 train a2 rank 0  INFO text`."""
        clock = self.time[11:19] or " " * 8
        speaker = f"pod {self.source.index} " if self.rank is None else f"rank {self.rank}"
        return f"{clock} {self.source.stage} a{self.source.attempt} {speaker}  {self.level} {self.text}".replace(
            "   ", "  "
        )


def parse_line(source: LogSource, line: str, *, last_time: str = "") -> list[LogEntry]:
    """A line of a log; more than one entry where a message or a traceback has several lines."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or "message" not in fields:
        return [LogEntry(source, line.rstrip("\r"), time=last_time)] if line.strip() else []
    texts = [*str(fields["message"]).splitlines(), *str(fields.get("traceback", "")).splitlines()]
    rank = fields.get("rank")
    return [
        LogEntry(
            source,
            text,
            time=str(fields.get("time", last_time)),
            rank=rank if isinstance(rank, int) else None,
            level=str(fields.get("level", "")),
        )
        for text in texts or [""]
    ]


def parse_lines(source: LogSource, lines: Iterable[str]) -> list[LogEntry]:
    """All entries of a log. Lines before the first one with a time get that time, so that they stay in front of it."""
    entries: list[LogEntry] = []
    for line in lines:
        entries += parse_line(source, line, last_time=entries[-1].time if entries else "")
    first = next((entry.time for entry in entries if entry.time), "")
    return [entry if entry.time else replace(entry, time=first) for entry in entries]


def of_newest_run(found: list[Source]) -> list[Source]:
    """The pods of all stages and attempts of the newest run."""
    newest = max((each.run for each in found), default=None)
    return [each for each in found if each.run == newest]


def by_time(entries: Iterable[LogEntry]) -> list[LogEntry]:
    """Entries of several pods in the order of time; those of one pod keep their order where times are equal."""
    return sorted(entries, key=lambda entry: entry.time)


def is_of_rank(entry: LogEntry, rank: int | None) -> bool:
    """Whether a rank's log holds the entry; a pod's own lines belong to the rank of the same number."""
    return rank is None or rank == (entry.source.index if entry.rank is None else entry.rank)
