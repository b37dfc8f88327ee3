"""Simple models that the trained model is compared with: the names of `evaluation.simpleBaselines`."""

from dataclasses import dataclass
from enum import StrEnum


class SimpleBaseline(StrEnum):
    """A simple model that is fitted to the training split and evaluated on the test split."""

    MAJORITY_CLASS = "MajorityClass"
    TFIDF_LOGISTIC_REGRESSION = "TfidfLogisticRegression"


@dataclass(frozen=True)
class BaselineSupport:
    """How a simple baseline is named."""

    name: str
    """Name within a sentence."""
    label: str
    """Label of a row of `finetune status`, at most 12 characters."""


BASELINE_SUPPORT: dict[SimpleBaseline, BaselineSupport] = {
    SimpleBaseline.MAJORITY_CLASS: BaselineSupport("the most frequent class", "majority"),
    SimpleBaseline.TFIDF_LOGISTIC_REGRESSION: BaselineSupport("TF-IDF with logistic regression", "linear model"),
}
"""In the order in which they are shown."""
