"""Rank and folders from the environment."""

from pathlib import Path

import pytest

from finetune_trainer.errors import UsageError
from finetune_trainer.runtime import RuntimeEnv

WORLD = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "FINETUNE_SCRATCH": "/scratch"}


def test_the_cache_is_in_scratch_by_default() -> None:
    runtime = RuntimeEnv.from_environ(WORLD)
    assert (runtime.cache, runtime.lasting_cache) == (Path("/scratch/cache"), None)
    assert not runtime.is_main


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        ({name: value for name, value in WORLD.items() if name != "RANK"}, "environment variable RANK is missing"),
        (WORLD | {"RANK": "first"}, "environment variable RANK must be a whole number, not 'first'"),
    ],
)
def test_an_invalid_variable_is_reported(world: dict[str, str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        RuntimeEnv.from_environ(world)


def test_a_cache_of_the_node_outlives_the_pod() -> None:
    assert RuntimeEnv.from_environ(WORLD | {"FINETUNE_CACHE": "/node"}).lasting_cache == Path("/node")
    assert RuntimeEnv.from_environ(WORLD | {"FINETUNE_CACHE": "/scratch/other"}).lasting_cache is None
