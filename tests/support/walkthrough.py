"""A page of the docs, followed like a reader does: its commands are executed in their order, its files are written.

What a page shows as the output of a command is compared with what the command prints; see `stable`.
"""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from doc_pages import SHELLS, Block, blocks_of, command_texts, text_of
from process_support import ROOT

SECONDS = 400.0
"""Limit of a command. It is generous, because this machine may have other work."""

_SAVED_AS = re.compile(r"[Ss]ave this as `([\w.-]+)`:\n+\Z")

_VARYING = (
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?",  # times
    r"\b\d\d:\d\d:\d\d\b",
    r"(?<=r\d{4}-)[0-9a-f]{8}\b",  # of the job's UID, in addresses of runs
    r"\b(?=[a-f]*\d)[0-9a-f]{12,64}\b",  # digests
    r"\b(\d+(\.\d+)?(ms|s|m|h|d)\s?)+(?!\w)",  # durations
    r"[+-]?\d+(\.\d+)?\s*(%|points|([KMGT]i?)?B\b)",  # shares and sizes
    r"\b\d+\.\d+(e-?\d+)?\b",  # figures
)


def stable(text: str) -> list[str]:
    """The lines of an output without what differs between two readers: times, durations, digests, figures, columns."""
    for pattern in _VARYING:
        text = re.sub(pattern, "*", text)
    return [" ".join(line.split()) for line in text.strip().splitlines()]


@dataclass(frozen=True)
class Executed:
    """A command of the page, as it was executed, and what it printed."""

    block: Block
    text: str
    output: str


@dataclass
class Walkthrough:
    """Follows a page in a folder. The repository's chart is in it, as in the folder of a reader."""

    page: Path
    folder: Path
    environment: Mapping[str, str]
    replaced: Mapping[str, str]
    """What is replaced in the blocks of the page: each must occur in one."""
    examples: Mapping[str, str]
    """Language of the blocks that a reader does not execute -> why."""
    executed: list[Executed] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    """Outputs that the page does not show as they are. They do not end the walkthrough."""

    def __post_init__(self) -> None:
        (self.folder / "charts").symlink_to(ROOT / "charts")
        (self.folder / "variables").touch()
        found = list(blocks_of(self.page))
        unused = [text for text in self.replaced if not any(text in block.text for block in found)]
        assert not unused, f"{self.page.name} has no longer what is replaced: {unused}"
        unused = [name for name in self.examples if not any(name == block.language for block in found)]
        assert not unused, f"{self.page.name} has no longer examples: {unused}"
        self._rest = iter([*found, None])
        self._next = next(self._rest)

    def until(self, heading: str = "") -> None:
        """Follow the page until a section; without a heading, to its end."""
        lines = text_of(self.page).splitlines()
        end = lines.index(f"## {heading}") + 1 if heading else len(lines)
        while self._next is not None and self._next.line < end:
            block, self._next = self._next, next(self._rest)
            self._follow(block)

    def _follow(self, block: Block) -> None:
        text = self._here(block.text)
        if block.language in SHELLS:
            for command in command_texts(block):
                self._execute(block, self._here(command))
        elif saved := _SAVED_AS.search(text_of(block.page)[: _offset(block)]):
            (self.folder / saved[1]).write_text(text)
        elif block.language == "":
            last = self.executed[-1]
            if stable(last.output) != stable(text):
                self.differences.append(f"{block} is not what `{last.text}` prints:\n{last.output}")
        else:
            assert block.language in self.examples, f"{block} is neither executed, nor written, nor an example"

    def _here(self, text: str) -> str:
        for written, actual in self.replaced.items():
            text = text.replace(written, actual)
        return text

    def _execute(self, block: Block, command: str) -> None:
        # The next command has the variables of this one.
        script = f"set -aeuo pipefail; . ./variables; {command}\nexport -p >variables"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        printed = f"{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"{block}: `{command}`: exit status {done.returncode}\n{printed}"
        self.executed.append(Executed(block, command, done.stdout))


def _offset(block: Block) -> int:
    """Where the block begins in its page."""
    return sum(len(line) + 1 for line in text_of(block.page).split("\n")[: block.line - 1])
