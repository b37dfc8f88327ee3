"""Confidence intervals and paired tests for metrics of a finite test split. Pure: the bootstrap is seeded."""

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, bootstrap

from finetune_api.trainer_config import Message

_RESAMPLES = 2000
"""Enough for a 95 % interval: about 50 resamples are beyond each end."""

_BATCH_ELEMENTS = 4_000_000
"""Resampled examples held at a time: 32 MB each for indices, sums and weights."""


class Interval(Message):
    """A confidence interval."""

    low: float
    high: float
    confidence: float = 0.95


class PairedTest(Message):
    """Compares baseline and tuned model on the same examples."""

    name: str
    """Name of the test."""
    better: int
    """Number of examples on which the tuned model was better."""
    worse: int
    """Number of examples on which it was worse."""
    same: int
    """Number of examples without a difference."""
    p_value: float
    """Probability of a ratio at least this uneven if both models were equally good."""


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Confidence interval of a proportion, from the score test; the formula is in `scipy.stats.binomtest`.

    Unlike p ± z sqrt(p(1-p)/n), it stays within 0 and 1 and is accurate for few examples and for proportions near 0 or
    1. Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927),
    209-212.
    Raises ValueError without trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is not a proportion")
    found = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(low=float(found.low), high=float(found.high), confidence=confidence)


def mcnemar_exact(baseline_right: npt.NDArray[np.bool_], tuned_right: npt.NDArray[np.bool_]) -> PairedTest:
    """McNemar's exact test on which examples each classifier predicted correctly; arrays of shape (examples,).

    Only the examples that exactly one classifier predicted correctly count; if both are equally good, each of them
    favors either classifier with probability 1/2. Two-sided binomial test. Source: Q. McNemar, Psychometrika 12
    (1947), 153-157.
    """
    better = int(np.count_nonzero(tuned_right & ~baseline_right))
    worse = int(np.count_nonzero(baseline_right & ~tuned_right))
    return _binomial("McNemar, exact", better, worse, same=int(baseline_right.size) - better - worse)


def sign_test(baseline_losses: npt.NDArray[np.float64], tuned_losses: npt.NDArray[np.float64]) -> PairedTest:
    """Two-sided binomial test on the number of examples whose loss decreased; arrays of shape (examples,)."""
    better = int(np.count_nonzero(tuned_losses < baseline_losses))
    worse = int(np.count_nonzero(tuned_losses > baseline_losses))
    return _binomial("Sign test", better, worse, same=int(baseline_losses.size) - better - worse)


def bootstrap_mean(
    sums: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], *, seed: int, confidence: float = 0.95
) -> Interval:
    """Interval of sum(sums) / sum(weights) by resampling examples with replacement (percentile bootstrap).

    `sums` and `weights` have shape (examples,): for a language model, the summed loss and the number of label tokens of
    each example. They are resampled together, because the loss of an example belongs to its tokens.
    Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    if sums.size == 1:  # every resample is the example itself, which scipy rejects
        mean = float(_weighted_mean(sums, weights))
        return Interval(low=mean, high=mean, confidence=confidence)
    found = bootstrap(
        (sums, weights),
        _weighted_mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH_ELEMENTS // sums.size),
        vectorized=True,
        paired=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(low=float(found.low), high=float(found.high), confidence=confidence)


def _weighted_mean(
    sums: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], axis: int = -1
) -> npt.NDArray[np.float64]:
    mean: npt.NDArray[np.float64] = sums.sum(axis=axis) / np.maximum(weights.sum(axis=axis), 1.0)
    return mean


def _binomial(name: str, better: int, worse: int, *, same: int) -> PairedTest:
    counted = better + worse
    p_value = float(binomtest(better, counted, 0.5).pvalue) if counted else 1.0
    return PairedTest(name=name, better=better, worse=worse, same=same, p_value=p_value)
