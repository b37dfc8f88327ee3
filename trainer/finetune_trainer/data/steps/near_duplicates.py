"""`spec.data.cleaning.nearDuplicates`: trains on one of several similar texts, and on no text like a held-out one.

Similarity is the Jaccard index of the sets of runs of five letters. Candidates are found by MinHash signatures, which
are divided into bands: texts with an equal band are compared. The comparison is exact for texts of less than 1,024
different runs. Of longer texts, the 1,024 runs with the smallest hashes are compared, with a standard error of at most
0.016.
"""

import functools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from finetune_api.v1alpha1 import Spec

from ..comparison import Comparison, FeatureGroup
from ..formats import Example
from ..hashes import mixed, window_hashes
from ..pipeline import DataStep, Phase
from ..runs import Features

SHINGLE = 5
"""Letters of a run: works for languages without spaces, and a changed word changes few runs also in short texts."""
SKETCH = 1_024
"""Runs of a text that are compared."""
_PERMUTATIONS = 128
_RECALL = 0.99
"""Probability that two texts with exactly the similarity of the threshold have a band in common."""
_SEED = 1
_MOST_HELD_OUT = 256
_MOST_TRAINING = 64
"""Texts of a band with which further ones are compared: bounds the time for texts that share a band but are not
similar, such as those made from a template."""
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Parameters:
    """The similarity from which on texts are duplicates, and the version of the library that computes signatures."""

    threshold: float
    minhash: int


def parameters(spec: Spec) -> Parameters | None:
    """None: the step is not enabled."""
    threshold = spec.data.cleaning.near_duplicates
    return None if threshold is None else Parameters(threshold, int(RMinHash.ALGORITHM_VERSION))


def bands_of(threshold: float) -> tuple[int, int]:
    """Number of bands and permutations per band: the longest bands that find enough of the similar texts."""
    for rows in range(_PERMUTATIONS, 0, -1):
        found = threshold**rows
        bands = 1 if found == 1 else math.ceil(math.log(1 - _RECALL) / math.log1p(-found))
        if bands * rows <= _PERMUTATIONS:
            return bands, rows
    raise AssertionError("one permutation per band always fits")


def shingles(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Sorted hashes of the runs of letters of a record, without regard to case and white space."""
    text = " ".join("\n".join(unicodedata.normalize("NFC", text) for text in texts).casefold().split())
    letters = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    return np.unique(window_hashes(letters, min(SHINGLE, max(1, len(letters)))))


def features(parameters: Parameters, examples: Sequence[Example]) -> Features:
    """The bands of the signature of each example, and its runs of letters."""
    bands, rows = bands_of(parameters.threshold)
    found = [shingles(example.own_texts) for example in examples]
    ends = np.cumsum([0, *map(len, found)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(found), ends, bands * rows, _SEED)
    signatures = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(found), bands, rows)
    keys = np.broadcast_to(np.arange(bands, dtype=np.uint64), signatures.shape[:2])
    for number in range(rows):
        keys = mixed(keys ^ signatures[:, :, number])
    sketches = [np.unique((each >> np.uint64(32)).astype(np.uint32))[:SKETCH] for each in found]
    counts = np.array([len(each) for each in sketches], dtype=np.int64)
    return Features(keys.ravel(), np.full(len(found), bands, dtype=np.int64), np.concatenate(sketches), counts)


def similarity(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """The Jaccard index of two sketches: of the sets, or, if they are not complete, of their smallest hashes."""
    if max(len(one), len(other)) < SKETCH:
        shared = _shared(one, other)
        return shared / max(1, len(one) + len(other) - shared)
    union = np.union1d(one, other)[:SKETCH]
    return _shared(one, other[other <= union[-1]]) / len(union)


def _shared(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> int:
    if not len(one):
        return 0
    places = np.minimum(np.searchsorted(one, other), len(one) - 1)
    return int((one[places] == other).sum())


def apply(parameters: Parameters, compared: Comparison) -> NDArray[np.bool_]:
    """Remove training rows that are similar to a held-out row or to an earlier training row."""
    return compared.removed(functools.partial(_similar, parameters))


def _similar(parameters: Parameters, group: FeatureGroup) -> list[int]:
    least = parameters.threshold - _TOLERANCE
    compared = [group.evidence(row) for row in group.rows[: min(group.held_out, _MOST_HELD_OUT)]]
    most = len(compared) + _MOST_TRAINING
    removed = []
    for row in group.rows[group.held_out :].tolist():
        own = group.evidence(row)
        if any(similarity(own, other) >= least for other in compared):
            removed.append(row)
        elif len(compared) < most:
            compared.append(own)
    return removed


STEP = DataStep(
    "near duplicates",
    version=1,
    order=10,
    parameters=parameters,
    apply=apply,
    phase=Phase.FEATURES,
    features=features,
    depends_on_file_order=True,
)
