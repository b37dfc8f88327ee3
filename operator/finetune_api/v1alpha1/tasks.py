"""What a model can be trained for: the names of `spec.model.task`, and what goes with each."""

from dataclasses import dataclass
from enum import StrEnum

from .data import DataFormat
from .training import Metric


class Task(StrEnum):
    """Which head and which loss the model gets."""

    SEQUENCE_CLASSIFICATION = "SequenceClassification"
    CAUSAL_LM = "CausalLM"


@dataclass(frozen=True)
class TaskSupport:
    """The row of one task in the support table (see `finetune_api.support`)."""

    model: str
    """What its models are called in messages."""
    formats: tuple[DataFormat, ...]
    """Data formats that it can be trained on. A format without `spec.model.task` means the first task that lists it."""
    metrics: tuple[Metric, ...]
    """Metrics of its validation and test split, in the order in which they are shown."""
    headline: Metric
    """The metric that a verdict on the trained model is about."""
    has_labels: bool
    """Whether every record has one label of a fixed set. Splits are then stratified by it."""
    answers_prompts: bool
    """Whether `spec.evaluation.prompts` can be answered."""


TASK_SUPPORT: dict[Task, TaskSupport] = {
    Task.SEQUENCE_CLASSIFICATION: TaskSupport(
        model="classifier",
        formats=(DataFormat.CLASSIFICATION,),
        metrics=(Metric.LOSS, Metric.ACCURACY, Metric.MACRO_F1),
        headline=Metric.ACCURACY,
        has_labels=True,
        answers_prompts=False,
    ),
    Task.CAUSAL_LM: TaskSupport(
        model="language model",
        formats=(DataFormat.TEXT, DataFormat.INSTRUCTION, DataFormat.CHAT),
        metrics=(Metric.LOSS, Metric.PERPLEXITY),
        headline=Metric.PERPLEXITY,
        has_labels=False,
        answers_prompts=True,
    ),
}
