"""Compares examples by a step on features, as the prepare stage does with the rows of several blocks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune_api.v1alpha1 import Spec
from finetune_trainer.data.comparison import Comparison
from finetune_trainer.data.formats import Example
from finetune_trainer.data.pipeline import Phase, optional
from finetune_trainer.data.problems import Place
from finetune_trainer.data.runs import FeatureFile


def removed_rows(
    spec: Spec, texts: Sequence[str], folder: Path, *, held_out: Sequence[str] = (), blocks: int = 1
) -> list[int]:
    """The indexes of `texts`, the training records, that the only step on features removes."""
    (step,) = optional(spec, Phase.FEATURES)
    assert step.features is not None
    examples = [Example(text, Place("a", number)) for number, text in enumerate([*texts, *held_out])]
    files = []
    for number, part in enumerate(np.array_split(np.arange(len(examples)), blocks)):
        batches = np.array_split(part, max(1, len(part) // 150))
        parts = [step.features([examples[place] for place in batch]) for batch in batches]
        files.append(FeatureFile.write(folder / f"{blocks}-{number}", parts))
    in_training = np.arange(len(examples)) < len(texts)
    found = step.apply(Comparison(files, np.ones(len(examples), dtype=np.bool_), in_training))
    assert not found[len(texts) :].any()
    return np.flatnonzero(found).tolist()
