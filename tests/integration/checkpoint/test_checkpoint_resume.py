"""Training that resumes from a checkpoint equals uninterrupted training in every bit."""

from typing import Any

from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import Offload
from tiny_engine import SAVE_AT, STEPS, Case, resumed, uninterrupted

SAME_WORLD = [Case(stage, method, drop) for stage in range(4) for method in ("full", "lora") for drop in (0.0, 0.1)]
SAME_WORLD += [Case(stage, method, 0.1, bf16=True) for stage in (2, 3) for method in ("full", "lora")]
SAME_WORLD += [Case(2, dropout=0.1, fp16=True), Case(3, "lora", 0.1, fp16=True, accumulation=2)]
SAME_WORLD += [Case(2, "frozen", 0.1, accumulation=2), Case(3, "frozen", 0.1)]
AWAY, ALL_AWAY = Offload.OPTIMIZER, Offload.OPTIMIZER_AND_PARAMETERS
SAME_WORLD += [
    Case(1, dropout=0.1, offload=AWAY),
    Case(2, "lora", 0.1, offload=AWAY),
    Case(2, bf16=True, accumulation=2, offload=AWAY),
]
SAME_WORLD += [
    Case(3, "frozen", 0.1, offload=AWAY),
    Case(3, dropout=0.1, offload=ALL_AWAY),
    Case(3, bf16=True, offload=ALL_AWAY),
]


def test_losses_after_a_restore_are_bitwise_those_of_the_uninterrupted_run(
    storage_settings: StorageSettings, bucket: str, run_world: Any
) -> None:
    before = run_world(
        uninterrupted, 2, uploaders=len(SAME_WORLD), cases=SAME_WORLD, settings=storage_settings, folder=bucket
    )[0]
    pairs = [(case, case) for case in SAME_WORLD]
    after = run_world(resumed, 2, pairs=pairs, settings=storage_settings, folder=bucket)[0]
    wrong = {}
    for case in SAME_WORLD:
        got, expected = after[f"{case.name}->{case.name}"], before[case.name][SAVE_AT:]
        if got["losses"] != expected:
            wrong[case.name] = (got["losses"], expected)
        assert got["seen"] == [STEPS] * 3, case.name
        assert got["global_steps"] == STEPS
        assert got["micro_steps"] == STEPS * case.accumulation
    assert wrong == {}


SOURCES = [Case(0), Case(2), Case(3), Case(2, "lora"), Case(3, "lora"), Case(2, "frozen"), Case(2, bf16=True)]
SOURCES += [Case(2, offload=AWAY), Case(3, offload=ALL_AWAY)]
TO_ONE_RANK = [(case, case) for case in SOURCES] + [(Case(2), Case(3)), (Case(3), Case(2)), (Case(3), Case(0))]
TO_ANOTHER_STAGE = [(Case(2), Case(3)), (Case(3), Case(2)), (Case(3), Case(0)), (Case(3), Case(1)), (Case(0), Case(2))]
TO_ANOTHER_STAGE += [(Case(2, "lora"), Case(3, "lora")), (Case(2, bf16=True), Case(3, bf16=True))]
TO_ANOTHER_PLACE = [
    (Case(2), Case(2, offload=AWAY)),
    (Case(2), Case(1, offload=AWAY)),
    (Case(0), Case(3, offload=ALL_AWAY)),
    (Case(2, offload=AWAY), Case(2)),
    (Case(2, offload=AWAY), Case(3)),
    (Case(3, offload=ALL_AWAY), Case(2)),
]
TO_THREE_RANKS = [(Case(2), Case(2)), (Case(3), Case(3)), (Case(2), Case(3)), (Case(3, "lora"), Case(2, "lora"))]
FROM_ONE_RANK = [(Case(2), Case(2)), (Case(3), Case(3)), (Case(0), Case(3, offload=ALL_AWAY))]
FROM_FOUR_RANKS = [(Case(2), Case(2)), (Case(3), Case(3)), (Case(0), Case(3))]


def test_a_checkpoint_can_be_resumed_with_any_world_size_zero_stage_and_offload(
    storage_settings: StorageSettings, bucket: str, run_world: Any
) -> None:
    """Sums over another world size differ in their last bit; the bound is the difference between two uninterrupted
    runs."""
    place = {"settings": storage_settings, "folder": f"{bucket}/two"}
    before = run_world(uninterrupted, 2, uploaders=len(SOURCES), cases=SOURCES, **place)[0]
    one = run_world(resumed, 1, pairs=TO_ONE_RANK, first_attempt=2, **place)[0]
    other = run_world(resumed, 2, pairs=TO_ANOTHER_STAGE + TO_ANOTHER_PLACE, first_attempt=20, **place)[0]
    three = run_world(resumed, 3, pairs=TO_THREE_RANKS, first_attempt=60, **place)[0]
    place = {"settings": storage_settings, "folder": f"{bucket}/one"}
    sources = [source for source, _ in FROM_ONE_RANK]
    alone = run_world(uninterrupted, 1, uploaders=len(sources), cases=sources, **place)[0]
    grown = run_world(resumed, 2, pairs=FROM_ONE_RANK, **place)[0]
    place = {"settings": storage_settings, "folder": f"{bucket}/four"}
    sources = [source for source, _ in FROM_FOUR_RANKS]
    four = run_world(uninterrupted, 4, uploaders=len(sources), cases=sources, **place)[0]
    two = run_world(resumed, 2, pairs=FROM_FOUR_RANKS, **place)[0]
    for results, expected in ((one, before), (three, before), (other, before), (grown, alone), (two, four)):
        for name, got in results.items():
            bound = 1e-6 if "fp32" in name else 1e-2  # bf16 keeps 8 bits
            assert difference(got["losses"], expected[name.partition("->")[0]][SAVE_AT:]) < bound, name


def difference(found: list[str], expected: list[str]) -> float:
    """Maximum relative difference."""
    pairs = [(float.fromhex(a), float.fromhex(b)) for a, b in zip(found, expected, strict=True)]
    return max(abs(a - b) / abs(b) for a, b in pairs)
