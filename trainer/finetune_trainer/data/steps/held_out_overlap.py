"""`spec.data.cleaning.testOverlap`: trains on no record that contains a held-out one or has a long passage of one.

All runs of 13 words of two records, and whole records, are compared by their hashes, which are the features of the
step. Held-out records of 8 to 12 words are searched in the words of all training records. No two records are compared
with each other, so the time does not depend on how many have words in common. The step runs after fractions are held
out, so that it also applies to splits without their own files.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import Spec

from ..comparison import Comparison, EvidencePart
from ..formats import Example
from ..hashes import are_in, window_hashes
from ..pipeline import COMPARED, REMOVED, DataStep, Phase
from ..runs import Features

SHARED = 13
"""Words in a row that two records must not share, as in the decontamination of GPT-3."""
INDEXED = 8
"""Words in a row that may be common text. A held-out record with fewer words matches equal records only."""
MOST_HELD_OUT = 10
"""Eight words that more different held-out records have are common text, such as the instruction of a template."""
_MANY = 0.1
"""Share of the training records from which on a remark says that so many are removed."""
_WHOLE = 1 << 63
"""The highest bit is set in the feature of a whole record, and not set in those of runs of words."""
_HASHES = 1 << 20
"""Hashes of held-out records that are counted at a time."""

Mask = NDArray[np.bool_]
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


def features(_: Parameters, examples: Sequence[Example]) -> Features:
    """The runs of 13 words of each example, the example as a whole, and its words. None if it has no words."""
    texts = [words(example.own_texts) for example in examples]
    keys = [np.unique(np.append(_runs(each), _whole(each))) if len(each) else _runs(each) for each in texts]
    return Features(
        np.concatenate(keys),
        np.array([len(each) for each in keys], dtype=np.int64),
        np.concatenate(texts),
        np.array([len(each) for each in texts], dtype=np.int64),
    )


def _runs(found: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """The features of all runs of 13 words."""
    return window_hashes(found.astype(np.uint64), SHARED) & np.uint64(_WHOLE - 1)


def _whole(found: NDArray[np.uint32]) -> np.uint64:
    digest = hashlib.blake2b(found.astype("<u4").tobytes(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little") | _WHOLE)


def apply(_: Parameters, compared: Comparison) -> Mask:
    """Remove training rows that are equal to a held-out row, or have a passage of one."""
    held_out = compared.is_used & ~compared.in_training
    training = compared.is_used & compared.in_training
    _remove_equal(compared, held_out, training)
    common = _common_text(compared, held_out)
    _remove_shared(compared, held_out, training, common)
    _remove_short(compared, held_out, training, common)
    return compared.is_used & compared.in_training & ~training


def _remove_equal(compared: Comparison, held_out: Mask, training: Mask) -> None:
    """Remove training rows that are equal to a held-out row, and all but the first of equal held-out rows."""
    for found in compared.groups(compared.is_used, low=_WHOLE):
        is_first = np.zeros(len(found.rows), dtype=np.bool_)
        is_first[found.starts] = True
        in_training = compared.in_training[found.rows]
        is_held_out = np.repeat(found.held_out > 0, found.ends - found.starts)
        training[found.rows[in_training & is_held_out]] = False
        held_out[found.rows[~in_training & ~is_first]] = False


def _common_text(compared: Comparison, held_out: Mask) -> NDArray[np.uint64]:
    """The sorted hashes of eight words that more than ten of these rows have."""
    total = sum(len(part.evidence) for part in compared.parts(held_out))
    ranges = 1 + total // _HASHES
    found = [np.zeros(0, dtype=np.uint64)]
    for number in range(ranges):
        low, high = ((place << 64) // ranges for place in (number, number + 1))
        hashes, rows = found[:1], [np.zeros(0, dtype=np.int64)]
        for part in compared.parts(held_out):
            own_hashes, starts, _ = _windows(part)
            is_inside = (own_hashes >= np.uint64(low)) & (own_hashes <= np.uint64(high - 1))
            hashes.append(own_hashes[is_inside])
            rows.append(part.rows[_places(part)[starts[is_inside]]])
        found.append(_repeated(np.concatenate(hashes), np.concatenate(rows)))
    return np.concatenate(found)


def _repeated(hashes: NDArray[np.uint64], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The sorted hashes that more than ten rows have."""
    order = np.lexsort((rows, hashes))
    hashes, rows = hashes[order], rows[order]
    is_new = np.ones(len(hashes), dtype=np.bool_)
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1])
    different, counts = np.unique(hashes[is_new], return_counts=True)
    return different[counts > MOST_HELD_OUT]


def _remove_shared(compared: Comparison, held_out: Mask, training: Mask, common: NDArray[np.uint64]) -> None:
    """Remove training rows that have 13 words in a row of a held-out row, without common text among them."""
    chosen = held_out | training
    for found in compared.groups(chosen, high=_WHOLE):
        is_shared = (found.held_out > 0) & (found.held_out < found.ends - found.starts)
        if len(common):
            is_shared &= found.held_out <= MOST_HELD_OUT
            groups = np.flatnonzero(is_shared)
            starts = found.starts[groups]
            is_shared[groups] = ~_have_common_text(compared, found.rows[starts], found.keys[starts], common)
        rows = found.rows[np.repeat(is_shared, found.ends - found.starts)]
        rows = rows[compared.in_training[rows]]
        training[rows] = chosen[rows] = False


def _have_common_text(
    compared: Comparison, rows: NDArray[np.int64], keys: NDArray[np.uint64], common: NDArray[np.uint64]
) -> Mask:
    """Whether the 13 words of each key have common text among them; `rows` has a row with the key for each."""
    result = np.zeros(len(rows), dtype=np.bool_)
    order = np.argsort(rows, kind="stable")
    for places in np.split(order, 1 + np.flatnonzero(np.diff(rows[order]))) if len(order) else ():
        found = compared.evidence(int(rows[places[0]]))
        is_common = are_in(window_hashes(found.astype(np.uint64), INDEXED), common)
        has_common = np.lib.stride_tricks.sliding_window_view(is_common, SHARED - INDEXED + 1).any(axis=1)
        result[places] = are_in(keys[places], np.unique(_runs(found)[has_common]))
    return result


def _remove_short(compared: Comparison, held_out: Mask, training: Mask, common: NDArray[np.uint64]) -> None:
    """Remove training rows that contain a held-out row of 8 to 12 words without common text."""
    first, whole = _short(compared, held_out, common)
    if not len(first):
        return
    for part in compared.parts(training):
        hashes, starts, ends = _windows(part)
        is_possible = are_in(hashes, first)
        starts, ends = starts[is_possible], ends[is_possible]
        if not len(starts):
            continue
        for size, known in whole.items():
            fits = starts + size <= ends
            hashes = window_hashes(part.evidence.astype(np.uint64), size)[starts[fits]]
            training[part.rows[_places(part)[starts[fits][are_in(hashes, known)]]]] = False


def _short(
    compared: Comparison, held_out: Mask, common: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], dict[int, NDArray[np.uint64]]]:
    """The sorted hashes of the first eight words of all held-out rows of 8 to 12 words without common text; and number
    of words -> sorted hashes of such rows."""
    first: list[NDArray[np.uint64]] = [np.zeros(0, dtype=np.uint64)]
    whole: dict[int, list[NDArray[np.uint64]]] = {}
    for part in compared.parts(held_out):
        sizes = np.diff(part.ends)
        values = part.evidence.astype(np.uint64)
        hashes = window_hashes(values, INDEXED)
        before = np.concatenate([[0], np.cumsum(are_in(hashes, common))])
        for size in np.unique(sizes[(sizes >= INDEXED) & (sizes < SHARED)]).tolist():
            starts = part.ends[:-1][sizes == size]
            starts = starts[before[starts + size - INDEXED + 1] == before[starts]]
            first.append(hashes[starts])
            whole.setdefault(size, []).append(window_hashes(values, size)[starts])
    return np.unique(np.concatenate(first)), {size: np.unique(np.concatenate(each)) for size, each in whole.items()}


def _places(part: EvidencePart) -> NDArray[np.int64]:
    """For each word of a part, the place of its row in the part."""
    return np.repeat(np.arange(len(part.rows)), np.diff(part.ends))


def _windows(part: EvidencePart) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """The hashes of all runs of eight words within a row, the place of the first word of each, and the end of its
    row."""
    hashes = window_hashes(part.evidence.astype(np.uint64), INDEXED)
    starts = np.arange(len(hashes))
    ends = part.ends[1:][_places(part)[: len(hashes)]]
    is_inside = starts + INDEXED <= ends
    return hashes[is_inside], starts[is_inside], ends[is_inside]


def report(counts: Counter[str]) -> tuple[str, ...]:
    """A remark if so many training records are removed that they probably have an instruction in common."""
    compared, removed = counts[COMPARED], counts[REMOVED]
    if removed <= _MANY * compared:
        return ()
    return (
        f"testOverlap removed {removed / compared:.1%} of the training records ({removed:,} of {compared:,}), because "
        f"they have {SHARED} words in a row of a held-out record, contain one or are equal to one. If that is an "
        "instruction that the records share, write it as a system message of Chat records, hold out more than "
        f"{MOST_HELD_OUT} different records that have it, or set spec.data.cleaning.testOverlap: false",
    )


STEP = DataStep(
    "test overlap",
    version=2,
    order=20,
    parameters=parameters,
    apply=apply,
    report=report,
    phase=Phase.FEATURES,
    features=features,
    after_split=True,
)
