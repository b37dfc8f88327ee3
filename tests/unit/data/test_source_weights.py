"""Weights of sources: how often each row of the training split is written."""

from pathlib import Path

import numpy as np
import pytest

from factories import make_job
from finetune_api.validation import parse_job
from finetune_trainer.data.source_weights import Parameters, Repeats, parameters
from finetune_trainer.data.sources import SourceFile

SOURCES = np.array([0, 1, 0, 0, 1, 0, 0, 1, 0, 0])
USABLE = np.ones(len(SOURCES), dtype=np.bool_)


def times(repeats: Repeats, size: int, usable: np.ndarray = USABLE) -> list[int]:
    """How often each row is written if the rows come in parts of `size`."""
    places = range(0, len(SOURCES), size)
    parts = [repeats.take(SOURCES[place : place + size], usable[place : place + size]) for place in places]
    return np.concatenate(parts).tolist()


@pytest.mark.parametrize("size", [1, 3, 10])
@pytest.mark.parametrize(
    ("weights", "expected", "left_out"),
    [
        ([1.0, 1.0], [1] * 10, 0),
        ([2.0, 1.0], [2, 1, 2, 2, 1, 2, 2, 1, 2, 2], 0),
        ([0.3, 1.0], [1, 1, 1, 0, 1, 0, 0, 1, 0, 0], 5),
        ([2.3, 1.0], [3, 1, 3, 2, 1, 2, 2, 1, 2, 2], 0),
        ([0.3, 1.5], [1, 2, 1, 0, 2, 0, 0, 1, 0, 0], 5),
        ([0.001, 0.001], [1, 1, 0, 0, 0, 0, 0, 0, 0, 0], 8),
        ([100.0, 1.0], [100, 1, 100, 100, 1, 100, 100, 1, 100, 100], 0),
    ],
)
def test_a_weight_is_whole_copies_and_a_sample_of_the_first_rows_however_they_are_divided(
    weights: list[float], expected: list[int], left_out: int, size: int
) -> None:
    repeats = Repeats(weights, np.bincount(SOURCES))
    assert times(repeats, size) == expected
    assert repeats.left_out == left_out


def test_rows_without_loss_are_written_once_and_are_in_no_sample() -> None:
    usable = USABLE.copy()
    usable[[0, 1]] = False
    repeats = Repeats([0.4, 2.0], np.bincount(SOURCES[usable]))
    assert times(repeats, 3, usable) == [1, 1, 1, 1, 2, 0, 0, 2, 0, 0]


def test_a_source_without_rows_has_none() -> None:
    repeats = Repeats([2.0, 0.5], np.array([3, 0]))
    assert repeats.take(np.zeros(3, dtype=np.int64), np.ones(3, dtype=np.bool_)).tolist() == [2, 2, 2]
    spec = parse_job(make_job(data={"train": [{"uri": "s3://bucket/a.jsonl"}, {"uri": "s3://bucket/b.jsonl"}]})).spec
    assert [(source.before, source.after) for source in repeats.info(spec)] == [(3, 6), (0, 0)]


def files(*names: str) -> list[SourceFile]:
    return [
        SourceFile(f"s3://bucket/{name}", Path(name), digest, 0, source=int(digest))
        for digest, name in ((str(number), name) for number, name in enumerate(names))
    ]


def test_the_digest_covers_the_weights_and_the_contents_that_they_apply_to() -> None:
    train = [
        {"uri": "s3://bucket/a.jsonl"},
        {"uri": "s3://bucket/b.txt", "weight": 0.5},
        {"uri": "s3://bucket/c.csv", "weight": 0.25},
    ]
    spec = parse_job(make_job(data={"train": train})).spec
    found = parameters(spec, files("a.jsonl", "b.txt", "c.csv"))
    assert found == Parameters(((0.25, ((".csv", "2"),)), (0.5, ((".txt", "1"),))))


@pytest.mark.parametrize("weight", [{}, {"weight": 1}, {"weight": 1.0}])
def test_without_weights_there_is_no_step(weight: dict[str, float]) -> None:
    spec = parse_job(make_job(data={"train": [{"uri": "s3://bucket/a.jsonl", **weight}]})).spec
    assert parameters(spec, files("a.jsonl")) is None
