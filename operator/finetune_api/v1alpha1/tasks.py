"""What a model can be trained for: the names of `spec.model.task`, and the properties of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from .baselines import SimpleBaseline
from .data import DataFormat
from .metrics import Metric
from .results import ArtifactFormat
from .training import Batching

ENTITY_PREFIXES = ("B-", "I-", "E-", "S-", "L-", "U-")
"""Prefixes of labels that say where an entity begins and ends, of the schemes BIO, BIOES and BILOU."""


class Task(StrEnum):
    """Head and loss of the model."""

    SEQUENCE_CLASSIFICATION = "SequenceClassification"
    CAUSAL_LM = "CausalLM"
    MASKED_LM = "MaskedLM"
    TOKEN_CLASSIFICATION = "TokenClassification"
    PREFERENCE = "Preference"


@dataclass(frozen=True)
class TaskSupport:
    """The row of one task in the support table (see `finetune_api.support`)."""

    model: str
    """Name of its models in messages."""
    formats: tuple[DataFormat, ...]
    """Data formats that it can be trained on. If `spec.model.task` is absent, the first task that lists the data format
    is used."""
    metrics: tuple[Metric, ...]
    """Metrics of its validation and test split, in the order in which they are shown."""
    headline: Metric
    """The metric by which the trained model is compared with the base model."""
    has_labels: bool
    """Whether there is a fixed set of labels. The head then has one output for each of them."""
    answers_prompts: bool
    """Whether `spec.evaluation.prompts` can be answered."""
    batchings: tuple[Batching, ...] = (Batching.PADDED, Batching.LENGTH_GROUPED)
    """Values of `spec.training.batching` that it can be trained with."""
    artifacts: tuple[ArtifactFormat, ...] = tuple(one for one in ArtifactFormat if one is not ArtifactFormat.GGUF)
    """Formats that its models can be exported in. GGUF has language models only."""
    labels_tokens: bool = False
    """Whether a label belongs to a token; otherwise to a record."""
    baselines: tuple[SimpleBaseline, ...] = ()
    """Simple models that its models can be compared with."""
    entity_headline: Metric | None = None
    """Used instead of `headline` if a label has one of ENTITY_PREFIXES."""

    methods: tuple[str, ...] | None = None
    """Names of the methods that it can be trained with. None: those whose row allows it."""
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    """ZeRO stages that it can be trained with."""
    reason: str = ""
    """Why `methods` and `zero_stages` are limited, as the end of a sentence."""

    def allows(self, method: str) -> bool:
        """Whether it can be trained with a method whose row allows it."""
        return self.methods is None or method in self.methods

    def headline_for(self, labels: Sequence[str]) -> Metric:
        """The metric by which a model with these labels is compared with the base model."""
        has_entities = any(label.startswith(ENTITY_PREFIXES) for label in labels)
        return self.entity_headline if self.entity_headline and has_entities else self.headline

    @property
    def labels_records(self) -> bool:
        """Whether every record has one label. Splits are then stratified by it."""
        return self.has_labels and not self.labels_tokens


TASK_SUPPORT: dict[Task, TaskSupport] = {
    Task.SEQUENCE_CLASSIFICATION: TaskSupport(
        model="classifier",
        formats=(DataFormat.CLASSIFICATION,),
        metrics=(Metric.LOSS, Metric.ACCURACY, Metric.MACRO_F1),
        headline=Metric.ACCURACY,
        has_labels=True,
        answers_prompts=False,
        baselines=(SimpleBaseline.MAJORITY_CLASS, SimpleBaseline.TFIDF_LOGISTIC_REGRESSION),
    ),
    Task.CAUSAL_LM: TaskSupport(
        model="language model",
        formats=(DataFormat.TEXT, DataFormat.INSTRUCTION, DataFormat.CHAT),
        metrics=(Metric.LOSS, Metric.PERPLEXITY),
        headline=Metric.PERPLEXITY,
        has_labels=False,
        answers_prompts=True,
        batchings=tuple(Batching),
        artifacts=tuple(ArtifactFormat),
    ),
    # After CausalLM, which Text data is for unless the spec names the task.
    Task.MASKED_LM: TaskSupport(
        model="masked language model",
        formats=(DataFormat.TEXT,),
        metrics=(Metric.LOSS, Metric.PERPLEXITY),
        headline=Metric.PERPLEXITY,
        has_labels=False,
        answers_prompts=False,
    ),
    Task.TOKEN_CLASSIFICATION: TaskSupport(
        model="token classifier",
        formats=(DataFormat.TOKEN_CLASSIFICATION,),
        metrics=(Metric.LOSS, Metric.ACCURACY, Metric.MACRO_F1, Metric.ENTITY_F1),
        headline=Metric.MACRO_F1,  # most tokens have the label of no entity, which makes any accuracy high
        has_labels=True,
        answers_prompts=False,
        labels_tokens=True,
        baselines=(SimpleBaseline.MAJORITY_CLASS,),
        entity_headline=Metric.ENTITY_F1,
    ),
    Task.PREFERENCE: TaskSupport(
        model="preference-tuned language model",
        formats=(DataFormat.PREFERENCE,),
        metrics=(Metric.LOSS, Metric.ACCURACY, Metric.MARGIN),
        headline=Metric.ACCURACY,
        has_labels=False,
        answers_prompts=True,
        batchings=(Batching.PADDED,),
        artifacts=tuple(ArtifactFormat),
        methods=("lora",),
        # Stage 3 partitions the parameters, and its hooks expect one forward pass of the engine per backward pass.
        zero_stages=(0, 1, 2),
        reason="because the reference model of DPO is the base model of the same process without its adapter",
    ),
}
