"""`spec.data.cleaning.exactDuplicates`: no text is trained on twice, and none that is in a held-out file.

Texts are the same if they are equal after Unicode normalisation NFC and after every run of white space has become one
space, and none at the ends. Labels are not compared.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import Spec

from ..formats import Example
from ..pipeline import DataStep, KeyedRows, Tally
from ..splits import TRAIN

_CONFLICTS = "texts with different labels"
_HELD_OUT = "records whose text is held out"


@dataclass(frozen=True)
class Parameters:
    """Nothing to choose."""


def parameters(spec: Spec) -> Parameters | None:
    """None: the step is not enabled."""
    return Parameters() if spec.data.cleaning.exact_duplicates else None


def key(_: Parameters, example: Example) -> str:
    """The texts of the record, normalised; a line each, since line ends are white space."""
    return "\n".join(" ".join(unicodedata.normalize("NFC", text).split()) for text in example.content)


def apply(_: Parameters, rows: KeyedRows, tally: Tally) -> NDArray[np.bool_]:
    """Keep all records of held-out files; of training records with a text that none of these has, the first."""
    is_first = np.concatenate([[True], rows.keys[1:] != rows.keys[:-1]])
    first = np.flatnonzero(is_first)
    text = np.cumsum(is_first) - 1
    in_training = rows.splits == TRAIN
    training_records = np.add.reduceat(in_training, first, dtype=np.int64)
    is_held_out = training_records < np.diff([*first, len(text)])
    kept: NDArray[np.bool_] = ~in_training | (is_first & ~is_held_out[text])

    # Training files come first among equal keys, so the first record of a held-out file follows them.
    label_that_stays = rows.labels[np.where(is_held_out, first + training_records, first)]
    conflicts = ~kept & (rows.labels != label_that_stays[text])
    tally.counts[_CONFLICTS] += len(np.unique(text[conflicts]))
    tally.counts[_HELD_OUT] += int((~kept & is_held_out[text]).sum())
    return kept


def report(counts: Counter[str]) -> tuple[str, ...]:
    """What may be a mistake in the data."""
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
    on_keys=True,
    key=key,
    depends_on_file_order=True,
)
