"""Format tables as plain text with rich. Pure."""

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..terminal import printable

if TYPE_CHECKING:
    from rich.text import Text

_MAX_WIDTH = 10_000
"""Maximum width of a line. Cells are not wrapped, so that each row stays one line for tools such as grep and cut."""


def table_lines(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False, gap: int = 2, first_width: int = 0
) -> list[str]:
    """Return one line for the headings and one for each row, without boxes, colors or trailing spaces.

    `numbers` right-aligns all columns except the first. `gap` is the number of spaces between columns, `first_width`
    the minimum width of the first column. Cells are text, not markup.
    """
    # The import takes 30 ms, which commands without a table should not spend.
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for index, heading in enumerate(headings):
        is_number = numbers and index > 0
        table.add_column(
            _cell(heading),
            justify="right" if is_number else "left",
            no_wrap=True,
            min_width=first_width if index == 0 else None,
        )
    for row in rows:
        table.add_row(*map(_cell, row))
    text = io.StringIO()
    console = Console(file=text, width=_MAX_WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
    console.print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def _cell(text: str) -> "Text":
    from rich.text import Text

    return Text(printable(text.replace("\n", " ")))
