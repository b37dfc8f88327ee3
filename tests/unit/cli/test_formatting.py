"""Formatting of numbers, times, curves, log lines and listings."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from finetune_api.constants import Stage
from finetune_api.v1alpha1 import Metric
from finetune_cli.commands.store import listing
from finetune_cli.display.text import count, duration, metric_change, metric_value, size, sparkline
from finetune_cli.local.state import LogFile
from finetune_cli.log_lines import is_of_rank, parse_lines
from finetune_trainer.store import ObjectInfo
from finetune_trainer.tasks.metrics import perplexity


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (0.96, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0.62, "0.6"), (9.96, "10.0"), (2140.4, "2,140")])
def test_counts(value: float, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (90868376, "86.7 MiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text


def test_shares_are_percent_and_their_change_is_points() -> None:
    assert metric_value(Metric.ACCURACY, 0.8784) == "87.8 %"
    assert metric_change(Metric.ACCURACY, 0.0946, 0.8784) == "+78.4 points"
    assert metric_value(Metric.PERPLEXITY, 12.3456) == "12.35"
    assert metric_change(Metric.PERPLEXITY, 20.0, 12.5) == "-7.5"


def test_a_perplexity_that_overflows_is_not_shown_as_a_number() -> None:
    assert metric_value(Metric.PERPLEXITY, perplexity(1895.0)) == "overflow (> 1e308)"
    assert metric_change(Metric.PERPLEXITY, 20.0, perplexity(1895.0)) == ""


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [([], 5, ""), ([1.0], 5, "▁"), ([1.0, 1.0], 5, "▁▁"), ([8, 7, 6, 5, 4, 3, 2, 1], 4, "█▆▃▁"), ([1, 2], 0, "")],
)
def test_a_curve_is_never_wider_than_requested(values: list[float], width: int, bars: str) -> None:
    assert sparkline(values, width) == bars


LOG = LogFile(run=1, stage=Stage.TRAIN, attempt=2, index=1, path=Path("x.log"))


def test_json_log_lines_are_formatted_and_other_lines_are_kept() -> None:
    first = {
        "time": "2026-01-01T12:00:01.5+00:00",
        "level": "ERROR",
        "rank": 1,
        "message": "bad",
        "traceback": "Trace\nback",
    }
    entries = parse_lines(LOG, [json.dumps(first), "Segmentation fault", '{"a": 1}', ""])
    assert [entry.readable() for entry in entries] == [
        "12:00:01 train a2 rank 1  ERROR bad",
        "12:00:01 train a2 rank 1  ERROR Trace",
        "12:00:01 train a2 rank 1  ERROR back",
        "12:00:01 train a2 pod 1   Segmentation fault",
        '12:00:01 train a2 pod 1   {"a": 1}',
    ]


@pytest.mark.parametrize(("rank", "kept"), [(None, 2), (1, 2), (0, 0), (7, 0)])
def test_lines_of_a_supervisor_belong_to_the_rank_with_the_index_of_the_pod(rank: int | None, kept: int) -> None:
    entries = parse_lines(LOG, [json.dumps({"message": "a", "rank": 1}), "past the log"])
    assert sum(is_of_rank(entry, rank) for entry in entries) == kept


def info(uri: str, size_bytes: int, hour: int) -> ObjectInfo:
    return ObjectInfo(uri, size_bytes, "etag", datetime(2026, 1, 1, hour, tzinfo=UTC))


OBJECTS = [info("s3://b/runs/a", 1, 1), info("s3://b/runs/model/c", 2, 2), info("s3://b/runs/model/d/e", 4, 3)]


@pytest.mark.parametrize(
    ("prefix", "recursive", "rows"),
    [
        ("s3://b/runs/", False, [("s3://b/runs/a", 1), ("s3://b/runs/model/", 6)]),
        ("s3://b/runs/", True, [("s3://b/runs/a", 1), ("s3://b/runs/model/c", 2), ("s3://b/runs/model/d/e", 4)]),
        ("s3://b/ru", False, [("s3://b/runs/", 7)]),
        ("s3://b", False, [("s3://b/runs/", 7)]),
        ("s3://b/", False, [("s3://b/runs/", 7)]),
    ],
)
def test_a_listing_sums_up_folders(prefix: str, recursive: bool, rows: list[tuple[str, int]]) -> None:
    assert [(row.uri, row.size) for row in listing(prefix, OBJECTS, recursive=recursive)] == rows
