"""What the ranks agree on at the end of a step."""

from dataclasses import fields, replace
from typing import Any

import pytest

from finetune_trainer.train.votes import StepVotes

QUIET = StepVotes(
    stop=False,
    save=False,
    diverged=False,
    tokens=0,
    part_stored=False,
    fenced=False,
    upload_error_changed=False,
    too_stale=False,
)


def reduced(*votes: StepVotes) -> StepVotes:
    totals = [sum(values) for values in zip(*(each.pack() for each in votes), strict=True)]
    return StepVotes.unpack(totals, world_size=len(votes))


ONE_RANK = [
    ("stop", True, True),
    ("save", True, True),
    ("diverged", True, True),
    ("tokens", 7, 7),
    ("part_stored", True, False),
    ("fenced", True, True),
    ("upload_error_changed", True, True),
    ("too_stale", True, True),
]
"""Field, vote of one rank of three, result."""


@pytest.mark.parametrize("rank", range(3))
@pytest.mark.parametrize(("name", "vote", "expected"), ONE_RANK)
def test_a_vote_of_one_rank_reaches_all_in_its_own_field(name: str, vote: Any, expected: Any, rank: int) -> None:
    votes = [replace(QUIET, **{name: vote}) if each == rank else QUIET for each in range(3)]
    assert reduced(*votes) == replace(QUIET, **{name: expected})


def test_every_field_is_in_the_table() -> None:
    assert [name for name, _, _ in ONE_RANK] == [each.name for each in fields(StepVotes)]


def test_a_save_is_stored_when_the_parts_of_all_ranks_are() -> None:
    stored = replace(QUIET, part_stored=True)
    assert reduced(stored, stored, stored).part_stored
    assert not reduced(stored, QUIET, stored).part_stored


def test_tokens_are_counted_exactly() -> None:
    """A float of 32 bits could not hold this sum."""
    assert reduced(replace(QUIET, tokens=2**30 + 1), replace(QUIET, tokens=2**30)).tokens == 2**31 + 1
