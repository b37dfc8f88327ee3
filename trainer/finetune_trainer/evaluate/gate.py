"""Whether a model is promoted: the conditions of `spec.evaluation.promote`. Pure.

A condition is a function of CONDITIONS, which yields one check for each value that it compares. A model is promoted if
all checks hold. NaN never passes: every comparison is false for it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from finetune_api.comparison import OVERFLOW, OVERFLOW_TEXT, metric_name
from finetune_api.v1alpha1 import METRIC_SUPPORT, Metric, Promotion

from ..promotion.records import Check, PromotionEntry
from .compare import p_text
from .significance import PairedTest


@dataclass(frozen=True)
class Evidence:
    """What the conditions depend on. Metrics are those of the test split of this run."""

    rules: Promotion
    metric: Metric
    """Metric of the gains."""
    tuned: Mapping[Metric, float]
    """Empty: there is no test split."""
    baseline: Mapping[Metric, float] = field(default_factory=dict)
    """Empty: the base model was not evaluated."""
    regression_sets: Mapping[str, tuple[Mapping[Metric, float], Mapping[Metric, float]]] = field(default_factory=dict)
    """Name of a regression set -> metrics of the base model and of this one."""
    promoted_uri: str = ""
    """Folder of the promoted model. Empty: there is none to compare with."""
    promoted: Mapping[Metric, float] = field(default_factory=dict)
    record_error: str = ""
    """Why it is unknown which model is promoted. Empty: it is known."""
    obstacle: str = ""
    """Why the promoted model cannot be compared. Empty: it can."""
    paired_test: PairedTest | None = None
    """The promoted model against this one."""
    rolled_back: PromotionEntry | None = None
    """The earlier promotion of this run, if it was rolled back."""


Condition = Callable[[Evidence], Iterator[Check]]


def checks(evidence: Evidence) -> tuple[Check, ...]:
    """Evaluate all conditions."""
    if not evidence.tuned:
        return (Check(holds=False, text="the test split has no examples, so nothing was measured"),)
    return tuple(check for condition in CONDITIONS for check in condition(evidence))


def thresholds(evidence: Evidence) -> Iterator[Check]:
    """Bounds of metrics."""
    for threshold in evidence.rules.thresholds:
        name, value = metric_name(threshold.metric), evidence.tuned.get(threshold.metric, math.nan)
        if threshold.min is not None:
            yield _check(value >= threshold.min, f"{name} {_text(value)}", f"at least {_text(threshold.min)}")
        if threshold.max is not None:
            yield _check(value <= threshold.max, f"{name} {_text(value)}", f"at most {_text(threshold.max)}")


def gain_over_base_model(evidence: Evidence) -> Iterator[Check]:
    """Improvement over the base model."""
    if evidence.rules.min_gain_over_base_model is not None:
        yield _gain(evidence, "the base model", evidence.baseline, evidence.rules.min_gain_over_base_model)


def regression(evidence: Evidence) -> Iterator[Check]:
    """How much worse than the base model it is on other records."""
    limit = evidence.rules.max_regression
    if limit is None:
        return
    for name, (before, after) in evidence.regression_sets.items():
        on_set = replace(evidence, tuned=after)
        yield _gain(on_set, f"the base model on the regression set {name}", before, -limit)


def not_rolled_back(evidence: Evidence) -> Iterator[Check]:
    """A person's rollback is not undone by another evaluation of the run."""
    entry = evidence.rolled_back
    if entry is not None:
        yield Check(
            holds=False,
            text=f"this run's model was promoted at {entry.time} and rolled back by a person; "
            "`finetune promote --force` promotes it again",
        )


def known(evidence: Evidence) -> Iterator[Check]:
    """Whether the record of the promoted model can be read."""
    if evidence.record_error:
        yield Check(holds=False, text=evidence.record_error)


def comparable(evidence: Evidence) -> Iterator[Check]:
    """Whether the promoted model has numbers that this model can be compared with."""
    if evidence.obstacle:
        yield Check(
            holds=False,
            text=f"the promoted model {evidence.promoted_uri} cannot be compared: {evidence.obstacle}; "
            "`finetune promote --force` promotes this model without a comparison",
        )


def gain_over_promoted(evidence: Evidence) -> Iterator[Check]:
    """Improvement over the promoted model."""
    if _is_compared(evidence):
        yield _gain(evidence, "the promoted model", evidence.promoted, evidence.rules.min_gain_over_promoted)


def significance(evidence: Evidence) -> Iterator[Check]:
    """Paired test against the promoted model on the same examples."""
    limit = evidence.rules.max_p_value
    if not _is_compared(evidence) or limit >= 1:
        return
    test = evidence.paired_test
    if test is None:
        yield Check(holds=False, text="there is no paired test against the promoted model")
        return
    yield Check(
        holds=test.p_value <= limit and test.better > test.worse,
        text=f"{test.name} against the promoted model: {p_text(test.p_value)} must be at most {_text(limit)}, "
        f"with more examples better ({test.better:,}) than worse ({test.worse:,})",
    )


CONDITIONS: tuple[Condition, ...] = (
    thresholds,
    gain_over_base_model,
    regression,
    known,
    not_rolled_back,
    comparable,
    gain_over_promoted,
    significance,
)
"""In the order in which they are reported."""


def _is_compared(evidence: Evidence) -> bool:
    return bool(evidence.promoted_uri) and not evidence.obstacle


def _gain(evidence: Evidence, other: str, figures: Mapping[Metric, float], minimum: float) -> Check:
    metric = evidence.metric
    name, after, before = metric_name(metric), evidence.tuned.get(metric, math.nan), figures.get(metric, math.nan)
    gain = before - after if METRIC_SUPPORT[metric].lower_is_better else after - before
    # 0.9 - 0.8 is less than 0.1 in binary.
    holds = gain >= minimum or math.isclose(gain, minimum, rel_tol=1e-9, abs_tol=1e-12)
    subject = f"{name} gain over {other}, {_text(gain)} ({_text(before)} to {_text(after)}),"
    return _check(holds, subject, f"at least {_text(minimum)}")


def _check(holds: bool, subject: str, requirement: str) -> Check:
    return Check(holds=holds, text=f"{subject} must be {requirement}")


def _text(value: float) -> str:
    """Six significant digits, in the units in which the spec has the bounds."""
    return OVERFLOW_TEXT if abs(value) >= OVERFLOW else f"{value:.6g}"
