"""Who owns a run if storage cannot decide it atomically."""

from collections.abc import Sequence
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.checkpoint.stored.claim_keys import ClaimDecision, ClaimKey, decide_claim, keys_of

A, B, C = (ClaimKey(2, token=token) for token in "abc")


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ([B], ClaimDecision.OURS),
        ([ClaimKey(1), ClaimKey(1, token="a"), B], ClaimDecision.OURS),
        ([B, C], ClaimDecision.WAIT),
        ([A, B], ClaimDecision.LOST),
        ([A, B, C], ClaimDecision.LOST),
        ([ClaimKey(2), B], ClaimDecision.LOST),
        ([B, ClaimKey(3)], ClaimDecision.LOST),
        ([B, ClaimKey(3, token="z")], ClaimDecision.LOST),
        ([B, ClaimKey(2, 1, "z")], ClaimDecision.LOST),
        ([], ClaimDecision.WAIT),
        ([ClaimKey(1)], ClaimDecision.WAIT),
        ([C], ClaimDecision.WAIT),
    ],
)
def test_a_claimant_owns_the_run_only_without_other_claimants_of_the_attempt(
    listed: list[ClaimKey], expected: ClaimDecision
) -> None:
    assert decide_claim(B, listed) is expected


def test_other_names_are_not_claims() -> None:
    keys = [ClaimKey(1), ClaimKey(12, token="0f"), ClaimKey(3), ClaimKey(3, 1), ClaimKey(3, 10, "0f")]
    assert keys_of(key.name for key in keys) == keys
    assert (
        keys_of(
            [
                "",
                ".json",
                "x.json",
                "1-.json",
                "01.json",
                "-a.json",
                ".conditions-0f",
                "1",
                "²-a.json",
                "1.0.json",
                "1.01.json",
                "1..json",
            ]
        )
        == []
    )


class Claimant:
    """Advances one step at a time: writes its key, then lists until it owns the run or has withdrawn."""

    def __init__(self, key: ClaimKey) -> None:
        self.key, self.looks = key, -1
        self.has_run: bool | None = None

    def step(self, keys: set[ClaimKey], *, patience: int) -> None:
        if self.has_run is not None:
            return
        self.looks += 1
        if self.looks == 0:
            keys.add(self.key)
            return
        found = decide_claim(self.key, sorted(keys))
        if found is ClaimDecision.OURS:
            self.has_run = True
        elif found is ClaimDecision.LOST or self.looks > patience:
            self.has_run = False
            keys.remove(self.key)


def play(turns: Sequence[int], *, claimants: int = 3, patience: int = 3) -> list[Claimant]:
    """Each turn is a step of one claimant; at the end, all finish in order."""
    playing, keys = [Claimant(key) for key in (A, B, C)[:claimants]], set[ClaimKey]()
    for turn in turns:
        playing[turn % claimants].step(keys, patience=patience)
    for claimant in playing:
        while claimant.has_run is None:
            claimant.step(keys, patience=patience)
    return playing


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(0, 5))
def test_at_most_one_claimant_owns_the_run_in_any_order(turns: list[int], patience: int) -> None:
    assert sum(bool(claimant.has_run) for claimant in play(turns, patience=patience)) <= 1


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_of_concurrent_claimants_the_smallest_token_owns_the_run(order: tuple[int, ...]) -> None:
    assert [claimant.has_run for claimant in play(order * 4)] == [True, False, False]


@pytest.mark.parametrize("first", range(3))
def test_a_single_claimant_owns_the_run_and_keeps_it(first: int) -> None:
    assert [claimant.has_run for claimant in play([first] * 2)] == [number == first for number in range(3)]


def test_claims_without_a_generation_are_those_of_earlier_versions() -> None:
    names = {ClaimKey(3): "3.json", ClaimKey(3, token="5f"): "3-5f.json", ClaimKey(3, 1): "3.1.json"}
    assert {key: key.name for key in names} == names
    assert ClaimKey(3, 2, "5f").name == "3.2-5f.json"


@pytest.mark.parametrize(
    ("mine", "listed", "expected"),
    [
        (ClaimKey(2, 1, "b"), [A, ClaimKey(2, 1, "b")], ClaimDecision.OURS),
        (ClaimKey(2, 1, "b"), [ClaimKey(2), ClaimKey(2, 1, "b")], ClaimDecision.OURS),
        (ClaimKey(2, 1, "b"), [ClaimKey(2, 1, "b"), ClaimKey(2, 1, "c")], ClaimDecision.WAIT),
        (ClaimKey(2, 1, "b"), [ClaimKey(2, 1, "a"), ClaimKey(2, 1, "b")], ClaimDecision.LOST),
        (ClaimKey(2, 1, "b"), [ClaimKey(2, 1, "b"), ClaimKey(2, 2)], ClaimDecision.LOST),
        (ClaimKey(2, 9, "b"), [ClaimKey(2, 9, "b"), ClaimKey(3)], ClaimDecision.LOST),
    ],
)
def test_a_generation_is_newer_than_earlier_ones_of_its_attempt(
    mine: ClaimKey, listed: list[ClaimKey], expected: ClaimDecision
) -> None:
    assert decide_claim(mine, listed) is expected
