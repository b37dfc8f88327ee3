"""Print text to a terminal safely.

Logs, statuses and names come from pods, storage and other users, and may contain control characters.
"""

import re
import sys
from typing import TextIO

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional formatting, which reorders displayed text
    "\u2028\u2029"  # line and paragraph separators
    "\ud800-\udfff]"  # unpaired surrogates, which cannot be encoded
)


def printable(text: str) -> str:
    r"""Escape control characters as `\u001b`, like JSON; newline and tab are kept.

    Without this, a pod could move the cursor, change the title or clipboard of the terminal, or hide lines.
    """
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def echo(text: object = "", *, file: TextIO | None = None, end: str = "\n") -> None:
    """Print text in its printable form to standard output or `file`, and flush."""
    print(printable(str(text)), file=sys.stdout if file is None else file, end=end, flush=True)
