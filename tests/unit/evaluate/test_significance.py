"""Intervals and tests against published or hand-computed values."""

import tracemalloc

import numpy as np
import pytest

from finetune_trainer.evaluate.significance import bootstrap_mean, mcnemar_exact, sign_test, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # 81 of 263: the worked example of R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_agrees_with_published_intervals(successes, trials, low, high):
    interval = wilson_interval(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_an_impossible_proportion_has_no_interval(successes, trials):
    with pytest.raises(ValueError, match="not a proportion"):
        wilson_interval(successes, trials)


def rights(better: int, worse: int, same: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.array([False] * better + [True] * worse + [True] * same)
    after = np.array([True] * better + [False] * worse + [True] * same)
    return before, after


@pytest.mark.parametrize(
    ("better", "worse", "p_value"),
    [
        (5, 0, 2 / 2**5),  # both tails of five heads in a row
        (6, 1, 2 * (1 + 7) / 2**7),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_is_a_binomial_test_on_the_examples_that_differ(better, worse, p_value):
    test = mcnemar_exact(*rights(better, worse, same=10))
    assert (test.better, test.worse, test.same) == (better, worse, 10)
    assert test.p_value == pytest.approx(p_value)


def test_the_sign_test_counts_losses_that_decreased():
    before, after = np.array([2.0, 2.0, 2.0, 2.0, 2.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    test = sign_test(before, after)
    assert (test.better, test.worse, test.same) == (5, 0, 1)
    assert test.p_value == pytest.approx(2 / 32)


def test_the_bootstrap_finds_the_interval_of_a_normal_mean():
    generator = np.random.default_rng(0)
    losses = generator.normal(3.0, 0.5, 400)
    interval = bootstrap_mean(losses, np.ones(400), seed=1)
    half = 1.96 * losses.std() / 20
    assert (interval.low, interval.high) == pytest.approx((losses.mean() - half, losses.mean() + half), abs=0.01)


def test_the_bootstrap_is_deterministic_and_weights_by_tokens():
    sums, weights = np.array([10.0, 300.0]), np.array([10.0, 100.0])
    first = bootstrap_mean(sums, weights, seed=0)
    assert first == bootstrap_mean(sums, weights, seed=0)
    assert (first.low, first.high) == pytest.approx((1.0, 3.0))


def test_one_example_has_an_interval_of_zero_width():
    interval = bootstrap_mean(np.array([12.0]), np.array([4.0]), seed=0)
    assert (interval.low, interval.high) == (3.0, 3.0)


def test_the_bootstrap_of_many_examples_uses_bounded_memory():
    # All resamples at once would take 2000 x 50,000 x 8 bytes = 800 MB for the indices alone.
    examples = 50_000
    bootstrap_mean(np.ones(4), np.ones(4), seed=0)  # exclude what scipy allocates at its first use
    tracemalloc.start()
    try:
        bootstrap_mean(np.ones(examples), np.ones(examples), seed=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000_000
