"""Entities in rows of labeled words, and how many of them a model finds. Pure, and importable without torch.

An entity is a run of words of one row with a type. It is found if the prediction has an entity with the same first
word, last word and type (E. F. Tjong Kim Sang and F. De Meulder, "Introduction to the CoNLL-2003 Shared Task", 2003).

A label is `O`, a prefix with a hyphen and the type (`B-PER`), a prefix alone, whose type is empty, or a type alone:

    O                    no entity
    B-                   the first word of an entity
    I-, or a type alone  a further word of the entity before it, if that has the same type and has not ended; otherwise
                         the first word of an entity
    E- or L-             as I-; the entity ends with this word
    S- or U-             an entity of this word

This covers BIO (IOB2), IOB1, BIOES, BILOU (L. Ratinov and D. Roth, CoNLL 2009) and types without prefixes (IO). It is
what `get_entities` of seqeval 1.2.2 does in its default mode, and for BIO conlleval; seqeval knows neither L and U nor
types without prefixes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from finetune_api.v1alpha1 import ENTITY_PREFIXES

_BEGINS, _ENDS = ("B-", "S-", "U-"), ("E-", "L-", "S-", "U-")


@dataclass(frozen=True)
class EntityLabels:
    """What each label says of a word; arrays of shape (classes,)."""

    is_outside: npt.NDArray[np.bool_]
    begins: npt.NDArray[np.bool_]
    """Whether an entity begins at the word in any case."""
    ends: npt.NDArray[np.bool_]
    """Whether the entity ends with the word in any case."""
    types: npt.NDArray[np.int64]
    """Number of the type."""

    @classmethod
    def of(cls, labels: Sequence[str]) -> Self:
        """Labels in the order of their ids."""
        prefixes, types = zip(*map(_parts, labels), strict=True)
        return cls(
            np.array([label == "O" for label in labels]),
            np.isin(prefixes, _BEGINS),
            np.isin(prefixes, _ENDS),
            np.unique(types, return_inverse=True)[1],
        )

    def entities(self, ids: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """First word, last word (places in `ids`) and type of each entity, shape (3, entities), by first word.

        `ids` are label ids of words, shape (words,), and `rows` the row of each; the words of a row must be adjacent.
        """
        is_inside, types = ~self.is_outside[ids], self.types[ids]
        continues = (rows[1:] == rows[:-1]) & is_inside[1:] & is_inside[:-1] & (types[1:] == types[:-1])
        continues &= ~self.begins[ids[1:]] & ~self.ends[ids[:-1]]
        first = np.flatnonzero(is_inside & ~np.concatenate([[False], continues]))
        last = np.flatnonzero(is_inside & ~np.concatenate([continues, [False]]))
        return np.stack([first, last, types[first]])


def entity_counts(
    predictions: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    labels: EntityLabels,
    number_of_rows: int,
) -> npt.NDArray[np.int64]:
    """Entities of each row that were found, that are in the targets, and that are in the predictions: (3, rows).

    `predictions` and `targets` are label ids of shape (words,), `rows` the row of each word; the words of a row must be
    adjacent and in order.
    """
    expected, predicted = labels.entities(targets, rows), labels.entities(predictions, rows)
    _, in_expected, in_predicted = np.intersect1d(expected[0], predicted[0], assume_unique=True, return_indices=True)
    is_found = (expected[1:, in_expected] == predicted[1:, in_predicted]).all(axis=0)
    places = (expected[0, in_expected[is_found]], expected[0], predicted[0])
    return np.stack([np.bincount(rows[first], minlength=number_of_rows) for first in places])


def entity_f1(found: float, expected: float, predicted: float) -> float:
    """F1 over all entities, whatever their type; 0 where neither targets nor predictions have one, as in conlleval."""
    return 2 * found / max(1, expected + predicted)


def _parts(label: str) -> tuple[str, str]:
    """Prefix and type."""
    letter, _, type_ = label.partition("-")
    prefix = f"{letter}-"
    return (prefix, type_) if prefix in ENTITY_PREFIXES else ("I-", label)
