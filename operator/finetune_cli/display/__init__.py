"""Three ways to watch a run: for people, for logs, for programs. Views and words are pure; displays only write."""

import sys
from enum import StrEnum

from .base import Display
from .json_lines import JsonDisplay
from .plain import PlainDisplay
from .summary import RUN_AGAIN, WaysOn

__all__ = ["Display", "JsonDisplay", "PlainDisplay", "Watch", "make_display"]


class Watch(StrEnum):
    """How a run is shown."""

    RICH = "rich"
    PLAIN = "plain"
    JSON = "json"


def make_display(watch: Watch | None, *, ways: WaysOn = RUN_AGAIN) -> Display:
    """The display asked for, on standard output; None and `rich` mean rich on a terminal and plain elsewhere.

    `ways` says how a job goes on that is suspended or has failed.
    """
    if watch is Watch.JSON:
        return JsonDisplay()
    if watch is Watch.PLAIN or not sys.stdout.isatty():
        return PlainDisplay(ways=ways)
    from rich.console import Console

    from .live import LiveDisplay

    return LiveDisplay(Console(), ways=ways)
