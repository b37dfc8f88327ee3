"""Checks that an exported folder, loaded from its files, is the trained model.

The train stage has stored the losses of a few held-out rows (see `finetune_trainer.reference`). The evaluate stage,
which is another process and in a cluster another pod, computes them with every exported folder. Imports torch.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_api.trainer_config import Prepared, TrainerConfig
from finetune_api.v1alpha1 import Dtype

from ..data.collate import Collator
from ..data.shards import TokenDataset
from ..errors import ExportUnusableError
from ..reference import Reference, Sample, read_reference
from ..store.client import ObjectStore
from ..tasks import TASKS
from .records import Reloaded

log = logging.getLogger("finetune")

_TOLERANCE = {Dtype.FLOAT32: 1e-3}
"""Accepted mean difference per row, relative to the mean loss, or to 1 nat if the loss is smaller."""
_TOLERANCE_16_BIT = 0.05
"""Merging an adapter rounds the sum of two matrices to 16 bits."""


@dataclass(frozen=True)
class ReloadCheck:
    """Compares reloaded models with the trained model."""

    prepared: Prepared
    sample: Sample
    reference: Reference

    @classmethod
    def of_run(cls, config: TrainerConfig, prepared: Prepared, store: ObjectStore, cache: Path) -> "ReloadCheck":
        """Read the losses stored by the train stage, and the rows that they were measured on.

        Raises ObjectMissingError if there are none.
        """
        reference = read_reference(config, store)
        data = TokenDataset.open(store, prepared.dataset_uri, reference.split, cache)
        rows = TASKS[prepared.task].held_out_rows(data)
        return cls(prepared, Sample(reference.split, rows, reference.rows), reference)

    def __call__(self, model: Any, uri: str, pad_token_id: int, *, accepted: float = 0.0) -> Reloaded:
        """Measure a reloaded model. Raises ExportUnusableError if it is not the trained model.

        `accepted`: mean difference per row that its quantized weights explain, relative to the mean loss, or to 1 nat
        if the loss is smaller.
        """
        trained = np.array(self.reference.losses, np.float64)
        reloaded = self._losses(model, pad_token_id)
        share = max(accepted, _TOLERANCE.get(self.prepared.dtype, _TOLERANCE_16_BIT))
        result = Reloaded(
            uri=uri,
            split=self.sample.split,
            rows=trained.size,
            trained=_mean(trained),
            reloaded=_mean(reloaded),
            tolerance=share * max(1.0, abs(_mean(trained))),
        )
        if not math.isfinite(result.trained):
            raise ExportUnusableError(
                f"the model of {uri} has a loss on the {self.sample.split} split that is not a number, both after "
                "training and after reloading",
                advice="with BFloat16, try spec.model.dtype: Float32; otherwise check the loss curve in training.json",
            )
        difference = _mean(np.abs(reloaded - trained))
        if not difference <= result.tolerance:
            raise ExportUnusableError(
                f"{uri} is not the trained model: after reloading, its loss on {result.rows} rows of the "
                f"{result.split} split is {result.reloaded:.4f}, but it was {result.trained:.4f} before the export "
                f"(mean difference per row {difference:.4f}, allowed {result.tolerance:.4f})",
                advice="do not use this folder; change spec.runNonce to train and export again, and report the error "
                "with the base model's name if it repeats",
            )
        log.info("%s: %s", uri, result.sentence)
        return result

    def texts(self, tokenizer: Any) -> tuple[str, ...]:
        """The rows of the sample as text."""
        return tuple(tokenizer.decode(self.sample.data[row]["input_ids"].tolist()) for row in self.sample.rows)

    def _losses(self, model: Any, pad_token_id: int) -> npt.NDArray[np.float64]:
        """Loss of each row of the sample, shape (rows,)."""
        collate = Collator(pad_token_id, self.prepared.task)
        task = TASKS[self.prepared.task]
        losses = [
            task.row_losses(model, _OneRow(self.sample.data[row]), collate, _ignore_progress)[0]
            for row in self.sample.rows
        ]
        return np.array(losses, np.float64)


class _OneRow:
    """A split that has one row."""

    def __init__(self, row: dict[str, Any]) -> None:
        self._row = row
        self.lengths = np.array([len(row["input_ids"])], np.int32)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._row


def _ignore_progress(_done: int) -> None:
    return None


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else 0.0
