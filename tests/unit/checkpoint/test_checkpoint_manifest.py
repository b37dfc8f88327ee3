"""Names and order of manifests."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_trainer.checkpoint.format.compatibility import read_manifest
from finetune_trainer.checkpoint.format.manifest import Manifest, PartRef, manifest_name, newest_first, serialize


def make_manifest(**fields: object) -> Manifest:
    base = {"step": 1200, "attempt": 3, "run": 1, "time": "2026-01-01T00:00:00Z", "world_size": 1, "zero_stage": 2}
    parts = (PartRef(rank=0, digest="d"),)
    return Manifest.model_validate({**base, "blob_bytes": 64, "parts": parts, "state": "s", **fields})


def test_the_name_contains_step_and_attempt() -> None:
    assert make_manifest().name == manifest_name(1200, 3) == "00001200-a0003"


def test_a_newer_attempt_precedes_a_later_step() -> None:
    keys = ["00000009-a0001.json", "00000004-a0002.json", "00000003-a0002.json", "00000020-a0001.json"]
    assert newest_first(keys) == ["00000004-a0002", "00000003-a0002", "00000020-a0001", "00000009-a0001"]


@pytest.mark.parametrize("key", ["00000009.json", "9-a1.json", "00000009-a0001.json.part", "x00000009-a0001.json", ""])
def test_other_keys_are_ignored(key: str) -> None:
    assert newest_first([key]) == []


@given(st.sets(st.tuples(st.integers(0, 10**10), st.integers(0, 10**6))))
def test_numbers_with_more_digits_are_still_ordered(pairs: set[tuple[int, int]]) -> None:
    keys = [f"{manifest_name(step, attempt)}.json" for step, attempt in pairs]
    random.Random(0).shuffle(keys)
    expected = sorted(pairs, key=lambda pair: (pair[1], pair[0]), reverse=True)
    assert newest_first(keys) == [manifest_name(*pair) for pair in expected]


def test_a_manifest_is_unchanged_by_serialization() -> None:
    manifest = make_manifest(metrics={"Loss": 0.1}, is_best=True, parent_step=7)
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_a_field_of_another_version_is_not_ignored() -> None:
    with pytest.raises(ValidationError, match="surprise"):
        make_manifest(surprise=1)


@pytest.mark.parametrize(("position", "is_written"), [(None, False), (40, False), (42, True)])
def test_the_position_is_written_only_if_it_differs_from_the_step(position: int | None, is_written: bool) -> None:
    """A trainer that does not support the field can read all other checkpoints."""
    manifest = make_manifest(step=40, data_position=position)
    content = serialize(manifest)
    assert ("data_position" in json.loads(content)) is is_written
    assert read_manifest(content).position == (position or 40)
