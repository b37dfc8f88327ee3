"""Metrics of the validation and test split: their names, and the properties of each."""

import re
from dataclasses import dataclass
from enum import StrEnum


class Metric(StrEnum):
    """A metric of the validation or test split."""

    LOSS = "Loss"
    PERPLEXITY = "Perplexity"
    ACCURACY = "Accuracy"
    MACRO_F1 = "MacroF1"
    ENTITY_F1 = "EntityF1"
    MARGIN = "Margin"

    @property
    def key(self) -> str:
        """Name in the training log, after `eval_`: `macro_f1`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.value).lower()


@dataclass(frozen=True)
class MetricSupport:
    """The row of one metric in the support table (see `finetune_api.support`). Its tasks list it in theirs."""

    name: str
    """Name within a sentence: `macro F1`."""
    meaning: str
    """What it measures, for docs/support.md."""
    hub_type: str
    """Its identifier in the metadata of a model card (`model-index`, `metrics.type`)."""
    lower_is_better: bool = False
    is_share: bool = False
    """Whether it is between 0 and 1 and shown in percent."""


METRIC_SUPPORT: dict[Metric, MetricSupport] = {
    Metric.LOSS: MetricSupport(
        "loss",
        "mean cross-entropy per text or token, in nats; for pairs of answers [another one](techniques/preference.md)",
        hub_type="loss",
        lower_is_better=True,
    ),
    Metric.PERPLEXITY: MetricSupport(
        "perplexity", "exponential of the loss", hub_type="perplexity", lower_is_better=True
    ),
    Metric.ACCURACY: MetricSupport(
        "accuracy",
        "share of the texts or words with the right label, or of the pairs whose chosen answer is the more likely one",
        hub_type="accuracy",
        is_share=True,
    ),
    Metric.MACRO_F1: MetricSupport("macro F1", "mean of the F1 of each label", hub_type="f1", is_share=True),
    Metric.ENTITY_F1: MetricSupport(
        "entity F1",
        "F1 of entities; one is found if all of its words and its type are right ([labels](data.md#formats))",
        hub_type="f1",
        is_share=True,
    ),
    Metric.MARGIN: MetricSupport(
        "margin",
        "mean log-probability per token of the chosen answer minus that of the rejected one, in nats",
        hub_type="margin",
    ),
}
"""In the order in which metrics are shown: that of `Metric`."""
