"""When a micro-batch is measured, which sizes, and what the measured steps mean."""

from collections.abc import Callable

import pytest

from finetune_api.rules import memory_fingerprint
from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1 import AttemptPlan
from finetune_trainer.micro_batch import (
    MeasuredMicroBatch,
    MeasuredStep,
    divisors,
    is_lowered_by_operator,
    next_size,
    reason_to_measure,
    result,
    settings_digest,
    smallest,
)
from train_configs import train_config

GIB = 2**30
MEMORY = {"resources": {"limits": {"memory": "2Gi"}}}


def measured(peak: Callable[[int], int], sizes: tuple[int, ...], usable: int) -> MeasuredMicroBatch:
    """The result of a measurement in which a micro-batch of n rows has the peak `peak(n)`."""
    steps: list[MeasuredStep] = []
    while (size := next_size(sizes, steps, usable)) is not None:
        steps.append(MeasuredStep(micro_batch_size=size, peak_bytes=peak(size), seconds=1))
    return result(sizes, steps, usable=usable, limit=usable, seconds=1)


@pytest.mark.parametrize("fixed", [0, 100, 1000])
@pytest.mark.parametrize("row", [1, 7, 60])
@pytest.mark.parametrize("usable", [1010, 1100, 1500, 5000])
@pytest.mark.parametrize("sizes", [divisors(16, 16), divisors(48, 16), divisors(7, 16), (1,)], ids=str)
def test_the_result_is_the_largest_size_that_fits_within_one_power_of_two(
    fixed: int, row: int, usable: int, sizes: tuple[int, ...]
) -> None:
    def peak(size: int) -> int:
        return fixed + row * size

    found, fitting = measured(peak, sizes, usable), [size for size in sizes if peak(size) <= usable]
    if not fitting:
        assert (found.micro_batch_size, found.too_large) == (1, 1)
        assert found.problem
        return
    assert found.micro_batch_size in fitting
    assert fitting[-1] <= 2 * found.micro_batch_size or not [
        size for size in sizes if found.micro_batch_size < size <= 2 * found.micro_batch_size
    ]
    assert (found.too_large is None) == (found.micro_batch_size == sizes[-1])


def test_a_size_that_would_reach_the_limit_by_the_peaks_of_the_smaller_ones_is_not_tried() -> None:
    tried = []

    def peak(size: int) -> int:
        tried.append(size)
        return 100 * size

    found = measured(peak, divisors(16, 16), 1000)
    assert tried == [1, 2, 4, 8]
    assert (found.micro_batch_size, found.too_large) == (8, 16)
    assert found.sentence.startswith("micro-batch 8: measured in 1 s")


def test_a_size_whose_process_was_killed_does_not_fit() -> None:
    steps = [MeasuredStep(micro_batch_size=size, peak_bytes=10, seconds=1) for size in (1, 2)]
    found = result(divisors(16, 16), steps, usable=1000, limit=2000, seconds=9)
    assert (found.micro_batch_size, found.too_large, found.warning) == (2, 4, "")


def test_the_smallest_result_of_all_workers_counts() -> None:
    four, two = MeasuredMicroBatch(micro_batch_size=4), MeasuredMicroBatch(micro_batch_size=2)
    failed = MeasuredMicroBatch(problem="no memory")
    assert smallest([four, None, two]) is two
    assert smallest([four, failed, two]) is failed
    assert "microBatchSize" in failed.warning


def job(estimate: float = 1.0, *, known_settings: bool = True, estimated: int | None = None) -> PreparedConfig:
    prepared = {
        "memory_estimate_bytes": int(estimate * GIB),
        "micro_batch_limit": estimated,
        "micro_batch_memory": "2Gi",
    }
    config = train_config(workers=MEMORY, prepared=prepared)
    fingerprint = memory_fingerprint(config.spec) if known_settings else "other"
    return config.model_copy(
        update={"prepared": config.prepared.model_copy(update={"memory_fingerprint": fingerprint})}
    )


@pytest.mark.parametrize(
    ("config", "limit", "is_known", "reason"),
    [
        (job(1.0), 2 * GIB, True, ""),
        (job(1.6), 2 * GIB, True, "the estimate of 1.6 GiB is close to the memory of 2.0 GiB"),
        (job(1.6), None, True, ""),
        (job(1.0), 2 * GIB, False, "the estimate does not know the architecture"),
        (job(1.0, known_settings=False), 2 * GIB, True, "the estimate is for other settings"),
        (job(1.0, estimated=4), 2 * GIB, True, "by the estimate, larger micro-batches do not fit"),
        (job(0.0), 2 * GIB, False, ""),
    ],
    ids=["far", "close", "no limit", "unknown architecture", "other settings", "reduced", "older trainer"],
)
def test_a_micro_batch_is_measured_only_if_the_estimate_may_be_wrong_about_it(
    config: PreparedConfig, limit: int | None, is_known: bool, reason: str
) -> None:
    assert reason_to_measure(config, limit=limit, is_known=is_known) == reason


@pytest.mark.parametrize(
    ("estimated", "planned", "is_lowered"),
    [(None, None, False), (4, 4, False), (4, 2, True), (None, 4, True)],
)
def test_a_maximum_below_the_estimated_one_comes_from_a_restart_rule(
    estimated: int | None, planned: int | None, is_lowered: bool
) -> None:
    config = job(estimated=estimated)
    plan = AttemptPlan(nodes=2, micro_batch_limit=planned)
    assert is_lowered_by_operator(config.model_copy(update={"plan": plan})) == is_lowered


def test_a_measurement_applies_to_the_memory_and_settings_it_was_made_for() -> None:
    digests = [
        settings_digest(train_config(workers=MEMORY | change, deepspeed={"zeroStage": stage}).spec)
        for change, stage in (({}, 2), ({}, 3), ({"nodes": 4}, 2), ({"resources": {"limits": {"memory": "3Gi"}}}, 2))
    ]
    assert len(set(digests)) == len(digests)
    assert digests[0] == settings_digest(train_config(workers=MEMORY, deepspeed={"zeroStage": 2}).spec)
