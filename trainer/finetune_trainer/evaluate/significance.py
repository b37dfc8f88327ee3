"""How far a figure of a finite test split can be trusted. Pure: the bootstrap's randomness comes from its seed."""

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm

from finetune_api.trainer_config import Message

_RESAMPLES = 2000
"""Enough for a 95 % interval: its ends then lie on about 50 resamples each."""

_CHUNK_ELEMENTS = 4_000_000
"""Resampled indices held at once: 32 MB."""


class Interval(Message):
    """A confidence interval."""

    low: float
    high: float
    confidence: float = 0.95


class PairedTest(Message):
    """Baseline against tuned model on the same examples."""

    name: str
    """Which test."""
    better: int
    """Examples on which the tuned model did better."""
    worse: int
    """Examples on which it did worse."""
    same: int
    """Examples that tell them not apart."""
    p_value: float
    """Probability of a split at least this uneven if both models were equally good."""


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Interval for a share, from the score test.

    With p = successes / trials and z the normal quantile: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212.
    Unlike p ± z sqrt(p(1-p)/n) it stays within 0 and 1 and holds for few examples and shares near the ends.
    Raises ValueError for no trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is not a share")
    z = float(norm.ppf(0.5 + confidence / 2))
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return Interval(low=max(0.0, centre - half), high=min(1.0, centre + half), confidence=confidence)


def mcnemar_exact(baseline_right: npt.NDArray[np.bool_], tuned_right: npt.NDArray[np.bool_]) -> PairedTest:
    """McNemar's test, exact form, on which examples each classifier had right; arrays of shape (examples,).

    Only examples that one had right and the other wrong tell; if both were equally good, each would fall either way
    with probability 1/2. Two-sided binomial test. Source: Q. McNemar, Psychometrika 12 (1947), 153-157.
    """
    better = int(np.count_nonzero(tuned_right & ~baseline_right))
    worse = int(np.count_nonzero(baseline_right & ~tuned_right))
    return _binomial("McNemar, exact", better, worse, same=int(baseline_right.size) - better - worse)


def sign_test(baseline_losses: npt.NDArray[np.float64], tuned_losses: npt.NDArray[np.float64]) -> PairedTest:
    """On how many examples the loss fell; arrays of shape (examples,). Two-sided binomial test over the signs."""
    better = int(np.count_nonzero(tuned_losses < baseline_losses))
    worse = int(np.count_nonzero(tuned_losses > baseline_losses))
    return _binomial("Sign test", better, worse, same=int(baseline_losses.size) - better - worse)


def bootstrap_mean(
    sums: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], *, seed: int, confidence: float = 0.95
) -> Interval:
    """Interval for sum(sums) / sum(weights) by resampling examples with replacement (percentile bootstrap).

    `sums` and `weights` have shape (examples,): for a language model the summed loss and the number of label tokens of
    each example. Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    size = sums.size
    generator = np.random.default_rng(seed)
    means: list[npt.NDArray[np.float64]] = []
    remaining = _RESAMPLES
    while remaining:
        rows = min(remaining, max(1, _CHUNK_ELEMENTS // size))
        drawn = generator.integers(0, size, (rows, size))
        means.append(sums[drawn].sum(axis=1) / np.maximum(weights[drawn].sum(axis=1), 1.0))
        remaining -= rows
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(low=float(low), high=float(high), confidence=confidence)


def _binomial(name: str, better: int, worse: int, *, same: int) -> PairedTest:
    told = better + worse
    p_value = float(binomtest(better, told, 0.5).pvalue) if told else 1.0
    return PairedTest(name=name, better=better, worse=worse, same=same, p_value=p_value)
