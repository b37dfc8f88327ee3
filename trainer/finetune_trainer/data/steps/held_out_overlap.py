"""`spec.data.cleaning.testOverlap`: trains on no record that contains a held-out one or has a long passage of one.

Records with the same eight words in a row are candidates. The step runs after fractions are held out, so that it also
applies to splits without their own files.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import Spec

from ..comparison import FeatureGroup
from ..formats import Example
from ..hashes import window_hashes
from ..pipeline import DataStep, Phase
from ..runs import Features

SHARED = 13
"""Words in a row that two records must not share, as in the decontamination of GPT-3."""
INDEXED = 8
"""Words in a row by which candidates are found. A held-out record with fewer words matches equal records only."""
MOST_HELD_OUT = 10
"""Eight words that more held-out records have are common text, such as the instruction of a template."""
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")
"""A word, or a character of a language that is written without spaces."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of words."""

    shared: int
    indexed: int
    most_held_out: int


def parameters(spec: Spec) -> Parameters | None:
    """None: the step is not enabled."""
    return Parameters(SHARED, INDEXED, MOST_HELD_OUT) if spec.data.cleaning.test_overlap else None


def words(texts: Sequence[str]) -> NDArray[np.uint32]:
    """The hash of each word of a record, in order, without regard to case and punctuation."""
    found = _WORD.findall("\n".join(texts).casefold())
    known = {word: hashlib.blake2b(word.encode(), digest_size=4).digest() for word in set(found)}
    return np.frombuffer(b"".join(known[word] for word in found), dtype="<u4").astype(np.uint32)


def indexed(found: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Hashes of all runs of eight words, or of all words if there are fewer."""
    return window_hashes(found.astype(np.uint64), min(INDEXED, max(1, len(found))))


def features(_: Parameters, examples: Sequence[Example]) -> Features:
    """The runs of eight words of each example, and its words."""
    texts = [words(example.own_texts) for example in examples]
    keys = [np.unique(indexed(each)) for each in texts]
    return Features(
        np.concatenate(keys),
        np.array([len(each) for each in keys], dtype=np.int64),
        np.concatenate(texts),
        np.array([len(each) for each in texts], dtype=np.int64),
    )


def passages(held_out: NDArray[np.uint32], common: NDArray[np.uint64]) -> tuple[int, NDArray[np.uint64]]:
    """What a training record must not have of a held-out one: the number of words in a row, and the hashes of such
    runs, except runs with common text."""
    size = min(SHARED, len(held_out))
    runs = window_hashes(held_out.astype(np.uint64), size)
    if size < INDEXED:
        return size, runs
    is_common = np.isin(indexed(held_out), common)
    parts = np.lib.stride_tricks.sliding_window_view(is_common, size - INDEXED + 1)
    return size, runs[~parts.any(axis=1)]


def apply(_: Parameters, group: FeatureGroup) -> list[int]:
    """Remove training rows that have a passage of a held-out row of the group."""
    searched = [passages(group.evidence(row), group.common) for row in group.rows[: group.held_out].tolist()]
    return [
        row
        for row in group.rows[group.held_out :].tolist()
        if any(_has(group.evidence(row), size, runs) for size, runs in searched)
    ]


def _has(text: NDArray[np.uint32], size: int, runs: NDArray[np.uint64]) -> bool:
    if size < INDEXED and len(text) != size:
        return False
    return bool(np.isin(window_hashes(text.astype(np.uint64), size), runs).any())


STEP = DataStep(
    "test overlap",
    version=1,
    order=20,
    parameters=parameters,
    apply=apply,
    phase=Phase.FEATURES,
    features=features,
    after_split=True,
    most_held_out=MOST_HELD_OUT,
)
