"""A fine-tuning method and a task as a contributor would add them, for tests of the extension points."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import numpy as np
import torch

from finetune_api.support import OFFLOAD_ZERO_STAGES, SUPPORT, Support
from finetune_api.v1alpha1 import (
    ArtifactFormat,
    DataFormat,
    Method,
    MethodBlock,
    MethodSupport,
    Metric,
    Spec,
    Task,
    TaskSupport,
)
from finetune_trainer.data.tokenize import encode_classified
from finetune_trainer.methods import METHODS, FineTuningMethod
from finetune_trainer.methods.base import ParameterCounts
from finetune_trainer.tasks import TASKS, TrainingTask
from finetune_trainer.tasks.base import Measured
from finetune_trainer.tasks.forward import batches

BRIER = cast(Task, "Brier")
"""A name that the API does not have."""


class HeadOnly(MethodBlock):
    """Train only the head."""

    support: ClassVar[MethodSupport] = MethodSupport(
        formats=tuple(one for one in ArtifactFormat if one is not ArtifactFormat.ADAPTER),
        tasks=(Task.SEQUENCE_CLASSIFICATION, BRIER),
        zero_stages=(0, 1, 2),
    )


class MoreMethods(Method):
    """The API with an additional field."""

    head_only: HeadOnly | None = None


class MoreSpec(Spec):
    """A spec with that field."""

    method: MoreMethods = MoreMethods(head_only=HeadOnly())


class HeadOnlyMethod(FineTuningMethod[HeadOnly]):
    """No parameter of the base model is trained."""

    name = "headOnly"
    block = HeadOnly
    title = "head only"
    is_adapter = False

    def parameters(self, sizes: Any, block: HeadOnly) -> ParameterCounts:
        return ParameterCounts(trained=1000, added=0)

    def apply(self, model: Any, block: HeadOnly, task: TrainingTask, *, seed: int) -> Any:
        for parameter in model.base_model.parameters():
            parameter.requires_grad_(False)
        return model

    def merged(self, model: Any, weights: Any, block: HeadOnly, task: TrainingTask, load_base: Any) -> Any:
        return model, dict(weights)


class Brier(TrainingTask):
    """A classifier that is trained with the Brier score (G. W. Brier, Monthly Weather Review 78 (1950), 1-3)."""

    name = BRIER
    auto_class = "AutoModelForSequenceClassification"
    head_types = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
    peft_type = "SEQ_CLS"
    pipeline_tag = "text-classification"
    needs_decoder = False
    may_draw_head = True
    needs_pad_token = True
    has_token_logits = False
    has_one_target_per_row = False
    scores_are_answers = False

    support = TaskSupport(
        model="probability forecaster",
        formats=(DataFormat.CLASSIFICATION,),
        metrics=(Metric.LOSS,),
        headline=Metric.LOSS,
        has_labels=True,
        answers_prompts=False,
    )

    @property
    def encode(self) -> Any:
        return encode_classified

    def collate_labels(self, rows: Sequence[Mapping[str, Any]], width: int) -> Any:
        return np.array([row["labels"] for row in rows], dtype=np.int64)

    def padding_labels(self) -> int:
        return -1

    def has_target(self, row: Mapping[str, Any]) -> bool:
        return True

    def loss(self, logits: torch.Tensor, batch: Any, *, smoothing: float = 0.0) -> torch.Tensor:
        labels = batch["labels"]
        return _brier(logits[labels >= 0], labels[labels >= 0]).sum()

    def targets(self, batch: Any) -> int:
        return int((batch["labels"] >= 0).sum())

    def measure(
        self, model: Any, split: Any, collate: Any, labels: tuple[str, ...], report: Callable[[int], None]
    ) -> Measured:
        losses = self.row_losses(model, split, collate, report)
        return Measured(metrics={Metric.LOSS: float(losses.mean())}, examples=len(losses), scores=losses)

    @torch.inference_mode()
    def row_losses(self, model: Any, split: Any, collate: Any, report: Callable[[int], None]) -> Any:
        losses = np.zeros(len(split), np.float64)
        for rows, batch in batches(model.eval(), split, collate, report):
            labels = batch.pop("labels")
            losses[rows] = _brier(model(**batch).logits, labels).double().cpu().numpy()
        return losses


def _brier(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    forecast = logits.float().softmax(-1)
    return (forecast - torch.nn.functional.one_hot(labels, forecast.shape[-1])).square().sum(-1)


MORE_SUPPORT = Support(
    methods={name: block.support for name, block in MoreMethods.blocks().items()},
    tasks={**SUPPORT.tasks, BRIER: Brier.support},
    offload=OFFLOAD_ZERO_STAGES,
)
"""The support table with both extensions."""


@contextmanager
def registered() -> Iterator[None]:
    """Register both with the trainer within the context."""
    METHODS.register(HeadOnlyMethod)
    TASKS.register(Brier)
    try:
        yield
    finally:
        METHODS.unregister("headOnly")
        TASKS.unregister("Brier")
