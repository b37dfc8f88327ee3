"""Tables of plain text."""

import pytest

from finetune_cli.display.table import table_lines


@pytest.mark.parametrize(
    ("headings", "rows", "options", "lines"),
    [
        (("NAME", "STEP"), [("a", "1"), ("longer", "20")], {}, ["NAME    STEP", "a       1", "longer  20"]),
        (("NAME", "STEP"), [], {}, ["NAME  STEP"]),
        (
            ("", "baseline", "tuned"),
            [("loss", "2.8", "0.51")],
            {"numbers": True, "gap": 3},
            ["       baseline   tuned", "loss        2.8    0.51"],
        ),
        (("a", "b"), [("1", "2")], {"first_width": 6}, ["a       b", "1       2"]),
        (("NAME", "X"), [("日本", "1"), ("ab", "2")], {}, ["NAME  X", "日本  1", "ab    2"]),
        (("N", "BEST"), [("1", ""), ("2", "yes")], {}, ["N  BEST", "1", "2  yes"]),
    ],
    ids=["left", "no rows", "numbers", "first width", "wide characters", "nothing at the end"],
)
def test_columns_are_aligned(headings, rows, options, lines):
    assert table_lines(headings, rows, **options) == lines


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("[red]x[/red]", "[red]x[/red]"),
        ("[link=https://x]y[/]", "[link=https://x]y[/]"),
        ("[/]", "[/]"),
        (":smile:", ":smile:"),
        ("\x1b[31mred\x07", "\\u001b[31mred\\u0007"),
        ("two\nlines", "two lines"),
        ("\u202etxt", "\\u202etxt"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_markup_in_a_cell_is_shown_as_text(cell, shown, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    heading, line = table_lines(("CELL", "END"), [(cell, "end")])
    assert line == f"{shown:<4}  end"
    assert heading.isascii()


def test_a_long_cell_is_not_wrapped_or_truncated():
    name = "n" * 300
    assert table_lines(("NAME", "END"), [(name, "end")])[1] == f"{name}  end"
