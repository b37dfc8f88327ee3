"""The pages of the docs as tests read them: fenced blocks, commands, links, and names in backticks."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from process_support import ROOT

GUIDES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/techniques").glob("*.md")),
)
DECISIONS = tuple(sorted((ROOT / "docs/decisions").glob("*.md")))
"""Records of the past: only their links are checked."""

SHELLS = frozenset({"bash", "sh", "console"})
_SEPARATORS = frozenset({"|", "||", "&&", ";"})
_ASSIGNMENT = re.compile(r"[A-Za-z_]+=\S*")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name
        return f"{page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A simple command of a block: without prompt, comment, pipe and variables."""

    block: Block
    words: tuple[str, ...]
    variables: tuple[str, ...] = ()
    """Variables that are set for it: `NAME=value`."""

    @property
    def program(self) -> str:
        return self.words[0]

    def __str__(self) -> str:
        return f"{self.block}: {shlex.join(self.words)}"

    @property
    def options(self) -> list[str]:
        """Names of the options, as written: `--set`, `-n`."""
        return [word.partition("=")[0] for word in self.words[1:] if re.match(r"--?[A-Za-z]", word)]

    def values_of(self, *names: str) -> list[str]:
        """Values of an option, from `--name value` and `--name=value`."""
        found = [after for word, after in zip(self.words, self.words[1:], strict=False) if word in names]
        return found + [
            word.partition("=")[2] for word in self.words if word.partition("=")[0] in names and "=" in word
        ]


@cache
def text_of(page: Path) -> str:
    return page.read_text()


def blocks(*languages: str) -> list[Block]:
    """Fenced blocks of all guides in one of these languages."""
    return [block for page in GUIDES for block in blocks_of(page) if block.language in languages]


def blocks_of(page: Path) -> Iterator[Block]:
    for found in _FENCED.finditer(text_of(page)):
        yield Block(page, found[1], found[2], text_of(page).count("\n", 0, found.start()) + 1)


def commands(*programs: str) -> list[Command]:
    """Commands of all guides; of these programs only, if there are any."""
    found = [command for block in blocks(*SHELLS) for command in commands_of(block)]
    return [command for command in found if not programs or command.program in programs]


def commands_of(block: Block) -> Iterator[Command]:
    for text in command_texts(block):
        yield from _simple_commands(block, text)


def command_texts(block: Block) -> Iterator[str]:
    """Yield each command of a block of a shell with its continuation lines.

    In a console, lines without a prompt are output.
    """
    pending = ""
    for line in block.text.splitlines():
        is_start = block.language != "console" or line.startswith("$ ")
        if not pending and not is_start:
            continue
        pending += line if pending else line.removeprefix("$ ")
        if pending.endswith("\\"):
            pending = pending[:-1]  # as a shell joins the lines
        elif not pending.endswith("|") and pending.count("; do\n") == pending.count("\n  done") and line[-4:] != "; do":
            yield pending
            pending = ""
        else:
            pending += "\n"
    assert not pending, f"{block}: the last command is not complete"


def _simple_commands(block: Block, text: str) -> Iterator[Command]:
    for inner in re.findall(r"\$\((.*?)\)(?=\s|$)", text, re.MULTILINE):
        yield from _simple_commands(block, inner)
    words = shlex.shlex(re.sub(r"\$\(.*?\)(?=\s|$)", "VALUE", text), posix=True, punctuation_chars="|&;")
    words.whitespace_split = True
    command: list[str] = []
    variables: list[str] = []
    for word in [*words, ";"]:
        if word in _SEPARATORS:
            if command:
                yield Command(block, tuple(command), tuple(variables))
            command, variables = [], []
        elif not command and _ASSIGNMENT.fullmatch(word):
            variables.append(word)
        elif command or word != "do":
            command.append(word)


def inline(page: Path) -> Iterator[str]:
    """Yield what is in backticks outside of blocks, on one line."""
    for found in re.findall(r"`([^`]+)`", _FENCED.sub("", text_of(page))):
        yield " ".join(found.split())


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield target and anchor of every link to a file of the repository."""
    prose = re.sub(r"`[^`\n]*`", "code", _FENCED.sub("", text_of(page)))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


@cache
def anchors(page: Path) -> frozenset[str]:
    """Anchors of the headings of a page, as GitHub derives them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", _FENCED.sub("", text_of(page)), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = "".join(letter for letter in text if letter.isalnum() or letter in " -_").replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return frozenset(found)
