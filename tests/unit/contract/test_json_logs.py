"""The JSON lines that operator and trainer write and the command line reads."""

import json
import logging
import sys
from typing import Any

import pytest

from finetune_api.json_logs import JsonFormatter


def record(message: object, *arguments: object, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("finetune", logging.ERROR, __file__, 1, message, arguments, None)
    made.created = 1767268800.25
    made.__dict__.update(extra)
    return made


COMMON = {"time": "2026-01-01T12:00:00.250+00:00", "level": "ERROR", "logger": "finetune"}
OPERATOR = JsonFormatter(fields=("namespace", "job", "attempt"))
RANK = JsonFormatter(rank=3)


@pytest.mark.parametrize(
    ("formatter", "logged", "expected"),
    [
        (OPERATOR, record("two\nlines of %s", "text"), {"message": "two\nlines of text"}),
        (
            OPERATOR,
            record("ended", namespace="ml", job="topics", attempt=2, settings=object(), k8s_ref={"name": "topics"}),
            {"message": "ended", "namespace": "ml", "job": "topics", "attempt": 2},
        ),
        (OPERATOR, record("ended", namespace="ml", job=None), {"message": "ended", "namespace": "ml"}),
        (RANK, record("step", job="topics"), {"rank": 3, "message": "step"}),
        (JsonFormatter(rank=0), record("step"), {"rank": 0, "message": "step"}),
        (RANK, record({"loss": 1.5, "exc_info": "no"}), {"rank": 3, "message": "{'loss': 1.5, 'exc_info': 'no'}"}),
        (RANK, record("Größe", stack_info="Stack"), {"rank": 3, "message": "Größe"}),
        (
            RANK,
            record("https://user:secret@host/x failed"),
            {"rank": 3, "message": "https://(hidden)@host/x failed"},
        ),
        (RANK, record(""), {"rank": 3, "message": ""}),
    ],
    ids=[
        "arguments and lines",
        "named fields only",
        "a field that is None",
        "a static field",
        "a static zero",
        "a dictionary as message",
        "no stack",
        "no credentials",
        "an empty message",
    ],
)
def test_a_record_is_one_line_of_json_with_the_named_keys(
    formatter: JsonFormatter, logged: logging.LogRecord, expected: dict[str, Any]
) -> None:
    line = formatter.format(logged)
    assert "\n" not in line
    assert json.loads(line) == {**COMMON, **expected}


def test_keys_are_in_a_fixed_order_with_the_time_first() -> None:
    keys = list(json.loads(JsonFormatter(fields=("job",), rank=1).format(record("text", job="topics"))))
    assert keys == ["time", "level", "rank", "logger", "message", "job"]


def test_text_outside_ascii_is_readable_and_an_unpaired_surrogate_is_escaped() -> None:
    line = RANK.format(record("Größe \ud83d end"))
    assert "Größe \\ud83d end" in line
    assert line.encode()
    assert json.loads(line)["message"] == "Größe \ud83d end"


def test_a_value_that_json_does_not_support_does_not_lose_the_line() -> None:
    fields = json.loads(OPERATOR.format(record("ended", job=object())))
    assert fields["job"].startswith("<object object")


@pytest.mark.parametrize("message", ["it broke", {"step": 3}])
def test_an_exception_is_logged_without_credentials(message: object) -> None:
    try:
        raise ValueError("https://user:secret@host/x")
    except ValueError:
        logged = record(message, exc_info=sys.exc_info())
    fields = json.loads(OPERATOR.format(logged))
    assert fields["message"] == str(message)
    assert fields["traceback"].startswith("Traceback (most recent call last):")
    assert fields["traceback"].endswith("ValueError: https://(hidden)@host/x")
    assert "exc_info" not in fields
