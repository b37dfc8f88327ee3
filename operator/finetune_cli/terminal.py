"""The only way for text to a terminal. Logs, status and names of objects come from pods, storage and other people."""

import re
import sys
from typing import TextIO

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what makes a line read in another order than it was written
    "\u2028\u2029"  # line and paragraph separators
    "\ud800-\udfff]"  # half surrogate pairs, which cannot be encoded
)


def printable(text: str) -> str:
    r"""Control characters as `\u001b`, which is also how JSON writes them; newline and tab stay.

    Without this, a pod could move the reader's cursor, change the terminal's title or clipboard, or hide lines.
    """
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(text: object = "", *, file: TextIO | None = None, end: str = "\n") -> None:
    """Print text in its printable form, on standard output or on `file`, at once."""
    print(printable(str(text)), file=sys.stdout if file is None else file, end=end, flush=True)
