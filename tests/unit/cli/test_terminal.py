"""Text from pods, storage and other users cannot control the terminal."""

import ast
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import finetune_cli
from factories import merged
from finetune_api.progress import Progress
from finetune_cli.commands.status import Output, status
from finetune_cli.display import JsonDisplay, PlainDisplay
from finetune_cli.display.base import Display
from finetune_cli.display.live import LiveDisplay
from finetune_cli.terminal import echo, printable
from statuses import FAILED, TRAINING, job_with, live

EVIL = "\x1b]52;c;cm0gLXJm\x07\x1b[2J\x9b31m\x7f\rover \u202e"
HOSTILE = merged(
    FAILED,
    {"run": {"warnings": [EVIL], "failure": {"message": EVIL, "advice": EVIL, "pod": f"pod{EVIL}", "node": EVIL}}},
)


def is_clean(text: str) -> bool:
    return not any(ord(character) < 32 and character not in "\n\t" for character in text) and not set(text) & set(
        "\x7f\x9b\u202e"
    )


def console(file: io.StringIO) -> Console:
    return Console(file=file, width=100, color_system=None, force_terminal=False)


@pytest.mark.parametrize(
    "display",
    [
        PlainDisplay,
        JsonDisplay,
        lambda file: LiveDisplay(console(file)),
    ],
    ids=["plain", "json", "rich"],
)
def test_a_display_shows_control_characters_as_text(display: Any) -> None:
    file = io.StringIO()
    progress: Progress = live().model_copy(update={"activity": f"training{EVIL}", "warnings": (EVIL,)})
    shown: Display = display(file)
    with shown:
        shown.update(job_with(TRAINING), progress)
        shown.event(EVIL)
        shown.finish(job_with(HOSTILE))
    assert "\\u001b]52;c;cm0gLXJm\\u0007" in file.getvalue()
    assert is_clean(file.getvalue())


@pytest.mark.parametrize("output", Output)
def test_the_page_of_a_job_shows_control_characters_as_text(
    output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = tmp_path / "jobs/default/topics/objects"
    objects.mkdir(parents=True)
    manifest = json.loads(job_with({}).model_dump_json(by_alias=True, exclude_none=True)) | {"status": HOSTILE}
    (objects / "FineTuneJob.topics.json").write_text(json.dumps(manifest))
    status("topics", output, tmp_path)
    text = capsys.readouterr().out
    assert "52;c;cm0gLXJm" in text
    assert is_clean(text)
    if output is Output.JSON:
        assert json.loads(text)["status"]["run"]["failure"]["message"] == EVIL


@pytest.mark.parametrize(
    "text",
    ["plain\ttext\n", "Ünï-çødé 漢字 العربية עברית", "👩‍🔬 ✓ ▁▂█", "می‌خواهم"],
    ids=["ascii", "letters", "signs", "joiner"],
)
def test_harmless_text_is_not_changed(text: str) -> None:
    assert printable(text) == text


def test_an_unpaired_surrogate_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    echo("half \ud83d pair")
    assert capsys.readouterr().out == "half \\ud83d pair\n"


def test_all_output_goes_through_the_terminal_module() -> None:
    root = Path(finetune_cli.__file__).parent
    others = [path for path in root.rglob("*.py") if path.name != "terminal.py"]
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in others
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []
