"""What the trainer has to know about a task. Importable without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from finetune_api.v1alpha1 import TASK_SUPPORT, Metric, Task, TaskSupport, Training

from ..registry import Registry
from .metrics import ClassificationMetrics

if TYPE_CHECKING:
    import torch

    from ..data.info import Masking
    from ..data.tokenize import Encode

IGNORED = -100
"""Label that no loss falls on: padding, a prompt. It is the default of torch's cross-entropy."""

LOSS_CHUNK_BYTES = 2**26
"""32-bit logits that exist at a time with a chunked loss. With 16-bit weights, there are one or two copies of half the
size. The estimate of memory counts three times as much."""

PACKED_INPUTS = ("input_ids", "position_ids")
"""Tensors that the model is called with for packs. transformers keeps the examples of a row apart by the position ids
only if there is no attention mask."""

Report = Callable[[int], None]
"""Called with the number of examples that are done."""

Batch = Mapping[str, "torch.Tensor"]
"""What a task collates, the inputs of the model among it."""

Collate = Callable[[list[dict[str, Any]]], "dict[str, torch.Tensor]"]


class Split(Protocol):
    """The rows of a split, as TokenDataset gives them."""

    lengths: npt.NDArray[np.int32]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class TestSplit(Split, Protocol):
    """A split whose rows may be parts of longer texts."""

    def documents(self) -> npt.NDArray[np.integer[Any]]:
        """Number of the record that each row was made of, shape (rows,)."""
        ...

    def units(self) -> npt.NDArray[np.int64] | None:
        """What the loss of a language model is divided by, shape (rows,). None: the tokens that carry loss."""
        ...


class StoredSplit(TestSplit, Protocol):
    """A split of a prepared dataset."""

    @property
    def masking(self) -> Masking | None:
        """What replaces masked tokens. None: the task masks none."""
        ...


@dataclass(frozen=True)
class WeightedMean:
    """A mean over examples of different weight, and the metrics that are functions of it."""

    sums: npt.NDArray[np.float64]
    """Shape (examples,)."""
    weights: npt.NDArray[np.float64]
    """Shape (examples,)."""
    metrics: Mapping[Metric, Callable[[float], float]]
    """Each rises with the mean."""


@dataclass(frozen=True)
class Classified:
    """Answers to targets that are classes: T targets in the order of the split."""

    predictions: npt.NDArray[np.int64]
    """(T,)"""
    targets: npt.NDArray[np.int64]
    """(T,)"""
    rows: npt.NDArray[np.int64]
    """(T,): the row of each target, ascending."""
    losses: npt.NDArray[np.float64]
    """(T,): cross-entropy in nats."""


@dataclass(frozen=True)
class Measured:
    """What one model did on the test split. Intervals and significance are computed from it elsewhere."""

    metrics: dict[Metric, float]
    examples: int
    scores: npt.NDArray[np.float64]
    """Shape (examples,), for the paired test: 1 for a right answer and 0 for a wrong one, or the loss per target."""
    tokens: int = 0
    """Tokens that the loss is a mean over; 0 where it is a mean over rows."""
    classification: ClassificationMetrics | None = None
    shares: Mapping[Metric, tuple[int, int]] = field(default_factory=dict)
    """Metrics that are shares: successes and trials."""
    means: tuple[WeightedMean, ...] = ()


class ValidationScores:
    """What a rank adds up over its batches of the validation split, in addition to loss and targets.

    The tensors are summed over all ranks before the metrics are computed. This class has none.
    """

    def add(self, rows: npt.NDArray[np.int64], logits: torch.Tensor, batch: Batch) -> None:
        """Add a batch; `rows` are its row numbers in the split, shape (rows,)."""

    def tensors(self) -> list[torch.Tensor]:
        """Tensors that must be summed over the ranks."""
        return []

    def metrics(self, loss: float) -> dict[Metric, float]:
        """Metrics of the whole split, given the mean loss per target."""
        return {Metric.LOSS: loss}


class TrainingTask(ABC):
    """Head, encoding, loss and metrics of one task."""

    name: ClassVar[Task]
    auto_class: ClassVar[str]
    """Class of transformers that loads a model with the task's head."""
    head_types: ClassVar[str]
    """Mapping in `transformers.models.auto.modeling_auto` from the model types that have such a head."""
    peft_type: ClassVar[str | None]
    """Member of `peft.TaskType`; None if PEFT has none for the task."""
    pipeline_tag: ClassVar[str]
    """The hub's name of the task."""
    needs_decoder: ClassVar[bool]
    """Whether only models that were trained to write can be used."""
    needs_encoder: ClassVar[bool] = False
    """Whether only models that read a text in both directions can be used."""
    model_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    """Tensors of a batch that the model is called with; the others are for the loss."""
    may_draw_head: ClassVar[bool]
    """Whether parameters of the head may be new; all others must be in the base model's files."""
    no_head_advice: ClassVar[str] = ""
    """What to do where the base model lacks a head that may not be new."""
    needs_pad_token: ClassVar[bool]
    """Whether the model has to know the pad id, which some base models do not name."""
    has_token_logits: ClassVar[bool]
    """Whether the head gives logits over the vocabulary for every token, which take memory."""
    has_one_target_per_row: ClassVar[bool]
    """The loss is normalized by rows, whose number is known without communication; otherwise by targets."""
    scores_are_answers: ClassVar[bool]
    """Whether `Measured.scores` are right and wrong answers; otherwise they are losses."""
    texts_per_row: ClassVar[int] = 1
    """Rows of the dataset in one row of the training."""
    padding_tokens: ClassVar[int] = 1
    """Tokens of a padding row."""
    labeled: ClassVar[str] = "example"
    """What has a label, in the singular: the unit of the metrics of each class."""
    limits: ClassVar[tuple[str, ...]] = ()
    """Sentences of the model card about what the metrics do not say."""

    @property
    def support(self) -> TaskSupport:
        """Row of the support table."""
        return TASK_SUPPORT[self.name]

    @property
    def has_labels(self) -> bool:
        """Whether there is a fixed set of labels. The head then has one output for each of them."""
        return self.support.has_labels

    @property
    def model_class(self) -> Any:
        """`auto_class`, imported."""
        import transformers

        return getattr(transformers, self.auto_class)

    def config_settings(self, labels: tuple[str, ...], pad_token_id: int | None) -> dict[str, Any]:
        """Settings of the model's configuration that the task changes: with `has_labels`, the pad id and the names of
        the labels. Without `labels`, the base model's names stay."""
        if not self.has_labels:
            return {}
        # A decoder finds a row's last real token by the pad id, and fairseq's encoders count positions from it.
        settings: dict[str, Any] = {"pad_token_id": pad_token_id}
        if labels:
            settings |= {
                "num_labels": len(labels),
                "id2label": dict(enumerate(labels)),
                "label2id": {label: index for index, label in enumerate(labels)},
            }
        return settings

    # ---- data ----

    @property
    @abstractmethod
    def encode(self) -> Encode:
        """How examples become rows of at most `max_length` tokens: a function of a module that does not import torch,
        because worker processes run it."""

    def collate(
        self, rows: Sequence[Mapping[str, Any]], pad_token_id: int, *, multiple: int = 1
    ) -> dict[str, torch.Tensor]:
        """One batch, padded on the right to the longest row, or up to the next multiple of `multiple` tokens.

        `input_ids` and `attention_mask` (rows, width), int64; `labels` as `collate_labels` gives them. For rows of
        `join_rows` also `position_ids` (rows, width), int64, in which the padding is one more example.
        """
        import torch

        width = -(-max(len(row["input_ids"]) for row in rows) // multiple) * multiple
        input_ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), width), dtype=np.int64)
        for index, row in enumerate(rows):
            input_ids[index, : len(row["input_ids"])] = row["input_ids"]
            attention_mask[index, : len(row["input_ids"])] = 1
        batch = {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "labels": torch.from_numpy(self.collate_labels(rows, width)),
        }
        if "position_ids" in rows[0]:
            positions = [[row["position_ids"], np.arange(width - len(row["position_ids"]))] for row in rows]
            batch["position_ids"] = torch.from_numpy(np.stack([np.concatenate(parts) for parts in positions]))
        return batch

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Tensors of a batch that the model is called with."""
        names = PACKED_INPUTS if "position_ids" in batch else self.model_inputs
        return {name: batch[name] for name in names}

    @abstractmethod
    def collate_labels(self, rows: Sequence[Mapping[str, Any]], width: int) -> npt.NDArray[np.int64]:
        """Labels of a batch that is padded to `width` tokens; the first axis is the rows."""

    def padding_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row without a target, which only fills up a batch: one token of `row`."""
        return {"input_ids": row["input_ids"][:1], "labels": self.padding_labels()}

    @abstractmethod
    def padding_labels(self) -> Any:
        """`labels` of a row of one token that has no target."""

    @abstractmethod
    def has_target(self, row: Mapping[str, Any]) -> bool:
        """Whether any loss falls on a row."""

    def masking(self, tokenizer: Any, uri: str) -> Masking | None:
        """What replaces masked tokens; None if the task masks none. `uri` is the address of the model, for messages.

        Raises ModelUnusableError if the tokenizer cannot be used.
        """
        del tokenizer, uri
        return None

    def training_rows(self, rows: StoredSplit, *, seed: int, epoch: int) -> Split:
        """The rows as an epoch (from 0) trains them. A task that draws the targets of a row draws others in each epoch,
        as a function of nothing but the seed, the epoch and the number of the row."""
        del seed, epoch
        return rows

    def held_out_rows(self, rows: StoredSplit) -> TestSplit:
        """The rows as models are measured on them, with the same targets for every model and seed."""
        return rows

    # ---- loss ----

    def training_task(self, training: Training) -> TrainingTask:
        """The task whose rows and loss are trained, where they differ from those that are measured."""
        del training
        return self

    def reference(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Tensors for `loss` that depend on the model without its adapter; empty if the loss needs none. `model` is in
        training mode, before and after. The first axis is the rows."""
        del model, batch
        return {}

    @abstractmethod
    def loss(self, logits: torch.Tensor, batch: Batch, *, smoothing: float = 0.0) -> torch.Tensor:
        """Loss, summed over the targets of a batch of `collate`, given the model's logits for it."""

    @abstractmethod
    def targets(self, batch: Batch) -> int:
        """Number of targets that `loss` sums over."""

    # ---- metrics ----

    def validation_scores(self, rows: int, labels: tuple[str, ...]) -> ValidationScores:
        """An accumulator for a validation split of so many rows."""
        del rows, labels
        return ValidationScores()

    @abstractmethod
    def measure(
        self, model: torch.nn.Module, split: TestSplit, collate: Collate, labels: tuple[str, ...], report: Report
    ) -> Measured:
        """Evaluate a model on the test split, in one process. The model is left in evaluation mode."""

    def score(self, found: Classified, rows: int, labels: tuple[str, ...]) -> Measured:
        """Metrics of answers to all targets of a split of `rows` rows. Only for tasks with labels.

        Raises NotImplementedError for other tasks.
        """
        raise NotImplementedError(f"{self.name} has no labels")

    @abstractmethod
    def row_losses(
        self, model: torch.nn.Module, split: Split, collate: Collate, report: Report
    ) -> npt.NDArray[np.float64]:
        """Mean loss per target of every row, in nats, shape (rows,). Used to compare an exported model with the trained
        one."""


class TokenTask(TrainingTask):
    """A task whose targets are tokens: `labels` of a row has one entry per token, IGNORED where it has no target."""

    has_one_target_per_row = False

    def collate_labels(self, rows: Sequence[Mapping[str, Any]], width: int) -> npt.NDArray[np.int64]:
        """Shape (rows, width)."""
        labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
        for index, row in enumerate(rows):
            labels[index, : len(row["labels"])] = row["labels"]
        return labels

    def padding_labels(self) -> npt.NDArray[np.int64]:
        """Shape (1,)."""
        return np.full(1, IGNORED, dtype=np.int64)


def join_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row with the examples of several rows, for a task whose targets are the next tokens.

    `position_ids` (L,) begin at 0 with each example. Its first token has no target: the token before it belongs to
    another example.
    """
    labels = [np.array(row["labels"]) for row in rows]
    for each in labels:
        each[0] = IGNORED
    return {
        "input_ids": np.concatenate([row["input_ids"] for row in rows]),
        "labels": np.concatenate(labels),
        "position_ids": np.concatenate([np.arange(len(row["input_ids"])) for row in rows]),
    }


TASKS: Registry[TrainingTask] = Registry("finetune_trainer.tasks", "spec.model.task")
"""Task by name."""


def definition_of(task: Task | TrainingTask) -> TrainingTask:
    """The definition of a task that is given by its name or as such."""
    return task if isinstance(task, TrainingTask) else TASKS[task]
