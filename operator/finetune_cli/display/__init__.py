"""Displays of a run: on a terminal, as a log, and as JSON lines. Views and formatting are pure."""

import sys
from enum import StrEnum

from .base import Display
from .json_lines import JsonDisplay
from .plain import PlainDisplay
from .summary import RUN_AGAIN, NextSteps

__all__ = ["Display", "DisplayMode", "JsonDisplay", "PlainDisplay", "make_display"]


class DisplayMode(StrEnum):
    """Value of `--output` of commands that follow a job."""

    RICH = "rich"
    PLAIN = "plain"
    JSON = "json"


def make_display(watch: DisplayMode | None, *, next_steps: NextSteps = RUN_AGAIN) -> Display:
    """Return a display on standard output. None and `rich` mean rich on a terminal and plain otherwise.

    `next_steps` describes how to continue a suspended or failed job.
    """
    if watch is DisplayMode.JSON:
        return JsonDisplay()
    if watch is DisplayMode.PLAIN or not sys.stdout.isatty():
        return PlainDisplay(next_steps=next_steps)
    from rich.console import Console

    from .live import LiveDisplay

    return LiveDisplay(Console(), next_steps=next_steps)
