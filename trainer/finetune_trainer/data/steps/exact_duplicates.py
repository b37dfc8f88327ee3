"""`spec.data.cleaning.exactDuplicates`: trains on each text once, and on no text of a held-out file.

Texts are the same if they are equal after Unicode normalization (NFC), collapsing white space to single spaces and
stripping it at the ends. Labels are not compared.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import Spec

from ..formats import Example
from ..pipeline import DataStep, KeyedRows, Phase, Tally
from ..splits import TRAIN

_CONFLICTS = "texts with different labels"
_HELD_OUT = "records whose text is held out"


@dataclass(frozen=True)
class Parameters:
    """The step has no parameters."""


def parameters(spec: Spec) -> Parameters | None:
    """None: the step is not enabled."""
    return Parameters() if spec.data.cleaning.exact_duplicates else None


def key(_: Parameters, example: Example) -> str:
    """The normalized texts of the record, one per line (line ends within a text were replaced by spaces)."""
    return "\n".join(" ".join(unicodedata.normalize("NFC", text).split()) for text in example.content)


def apply(_: Parameters, rows: KeyedRows, tally: Tally) -> NDArray[np.bool_]:
    """Keep all records of held-out files; of training records with a text that no held-out file has, the first."""
    is_first = np.concatenate([[True], rows.keys[1:] != rows.keys[:-1]])
    first = np.flatnonzero(is_first)
    text = np.cumsum(is_first) - 1
    in_training = rows.splits == TRAIN
    training_records = np.add.reduceat(in_training, first, dtype=np.int64)
    is_held_out = training_records < np.diff([*first, len(text)])
    kept: NDArray[np.bool_] = ~in_training | (is_first & ~is_held_out[text])

    # Among equal keys, training files come first and held-out files follow.
    label_that_stays = rows.labels[np.where(is_held_out, first + training_records, first)]
    conflicts = ~kept & (rows.labels != label_that_stays[text])
    tally.counts[_CONFLICTS] += len(np.unique(text[conflicts]))
    tally.counts[_HELD_OUT] += int((~kept & is_held_out[text]).sum())
    return kept


def report(counts: Counter[str]) -> tuple[str, ...]:
    """Report what may be a mistake in the data."""
    found = []
    if counts[_CONFLICTS]:
        found.append(
            f"{_CONFLICTS}: {counts[_CONFLICTS]:,}. The label of the first record is used, or that of a held-out file"
        )
    if counts[_HELD_OUT]:
        found.append(
            f"training {_HELD_OUT}: {counts[_HELD_OUT]:,}. They are in a file of spec.data.validation or "
            "spec.data.test and are not trained on"
        )
    return tuple(found)


STEP = DataStep(
    "exact duplicates",
    version=1,
    order=50,
    parameters=parameters,
    apply=apply,
    report=report,
    phase=Phase.KEYS,
    key=key,
    depends_on_file_order=True,
)
