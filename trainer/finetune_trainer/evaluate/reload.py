"""Checks that an exported folder, loaded from its files, is the trained model.

The train stage computes the losses of a few held-out rows with the trained model and stores them in the run's folder.
The evaluate stage, which is another process and in a cluster another pod, computes them with every exported folder.
Imports torch.

Both stages use batches of one row, because padding changes the results of some architectures.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_api.trainer_config import Message, Prepared, TrainerConfig
from finetune_api.v1alpha1 import Dtype

from ..data.collate import Collator
from ..data.shards import TokenDataset
from ..errors import ExportUnusableError
from ..store.client import ObjectStore
from ..tasks import TASKS
from .records import Reloaded

log = logging.getLogger("finetune")

_MAX_ROWS = 32
_MAX_TOKENS = 16_384
"""Approximate size of the whole sample: fewer rows are used if they are long."""

_TOLERANCE = {Dtype.FLOAT32: 1e-3}
"""Accepted mean difference per row, relative to the mean loss, or to 1 nat if the loss is smaller."""
_TOLERANCE_16_BIT = 0.05
"""Merging an adapter rounds the sum of two matrices to 16 bits."""


class Reference(Message):
    """`reference.json` in the run's folder: losses of the trained model on a few rows."""

    split: str
    rows: tuple[int, ...]
    """Row indices within the split."""
    losses: tuple[float, ...]
    """Loss of each of these rows in nats: of its label, or the mean over the tokens that carry loss."""


@dataclass(frozen=True)
class Sample:
    """Rows that both stages measure."""

    split: str
    data: TokenDataset
    rows: tuple[int, ...]


def write_reference(config: TrainerConfig, store: ObjectStore, reference: Reference) -> None:
    """Store the losses for the evaluate stage. Replaces those of an earlier attempt."""
    # Not pydantic's JSON, which would write NaN as null.
    text = json.dumps(reference.model_dump(), indent=1)
    store.put(config.layout.reference, text.encode(), content_type="application/json")


def read_reference(config: TrainerConfig, store: ObjectStore) -> Reference:
    """Read the losses stored by the train stage. Raises ObjectMissingError if there are none."""
    return Reference.model_validate(store.get_json(config.layout.reference))


def choose_sample(prepared: Prepared, open_split: Callable[[str], TokenDataset]) -> Sample:
    """Up to 32 evenly spaced rows of the validation split; of the test or the training split if it is missing.

    Rows in which no token carries loss are excluded.
    """
    sample: Sample | None = None
    for split in ("validation", "test", "train"):
        if not getattr(prepared.counts, split):
            continue
        data = open_split(split)
        wanted = min(len(data), _MAX_ROWS, max(1, int(_MAX_TOKENS / data.lengths.mean())))
        spread = np.unique(np.linspace(0, len(data) - 1, wanted).astype(np.int64)).tolist()
        sample = Sample(split, data, tuple(row for row in spread if TASKS[prepared.task].has_target(data[row])))
        if sample.rows:
            break
    assert sample is not None, "a prepared data set has training rows"
    return sample


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
        return cls(prepared, Sample(reference.split, data, reference.rows), reference)

    def __call__(self, model: Any, uri: str, pad_token_id: int) -> Reloaded:
        """Measure a reloaded model. Raises ExportUnusableError if it is not the trained model."""
        trained = np.array(self.reference.losses, np.float64)
        reloaded = self._losses(model, pad_token_id)
        share = _TOLERANCE.get(self.prepared.dtype, _TOLERANCE_16_BIT)
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
                advice="do not use this folder; change spec.runId to train and export again, and report the error with "
                "the base model's name if it repeats",
            )
        log.info("%s: %s", uri, result.sentence)
        return result

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
