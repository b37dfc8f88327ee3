"""The step `augmentation`: adds changed copies to each example.

The copies belong to their example until it is written: they have no key and no features of their own, so rules of
cleaning compare records and not their copies. Only the copies of rows that are left in the training split are written.
So no copy of a training record can get into another split, and no copy of a held-out record into training.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import AugmentationMethodName, Spec

from ..formats import Example
from ..pipeline import Tally
from .base import METHODS, Draw, Words

NAME = "augmentation"


@dataclass(frozen=True)
class Augmentation:
    """The parameters of the step. Pickled for worker processes."""

    copies: int
    methods: tuple[AugmentationMethodName, ...]
    rate: float
    seed: int
    synonyms: Mapping[str, tuple[str, ...]]
    synonyms_digest: str
    min_per_class: int | None = None
    """Only classes with fewer training records get copies."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What the copies depend on, for the digest of the dataset."""
        return {
            "copies": self.copies,
            "methods": [[name, METHODS[name].version] for name in self.methods],
            "rate": self.rate,
            "seed": self.seed,
            "synonyms": self.synonyms_digest,
        } | ({} if self.min_per_class is None else {"minPerClass": self.min_per_class})

    def copies_of(self, text: str) -> list[str]:
        """Different changed copies, at most `copies`. They depend on the text and the parameters alone."""
        changes = max(1, int(self.rate * len(Words.of(text).places) + 0.5))
        found = {text: None}
        first = self._draw(text, 0).below(len(self.methods))
        for number in range(self.copies):
            method = METHODS[self.methods[(first + number) % len(self.methods)]]
            copy = method.apply(text, changes, self._draw(text, number + 1), self.synonyms)
            if copy.strip():
                found.setdefault(copy)
        return list(found)[1:]

    def _draw(self, text: str, number: int) -> Draw:
        key = self.seed.to_bytes(8, "little")
        digest = hashlib.blake2b(f"{number}\0{text}".encode(), digest_size=8, key=key, person=b"augment")
        return Draw(int.from_bytes(digest.digest(), "little"))


def augmentation_of(spec: Spec, synonyms: Mapping[str, tuple[str, ...]], synonyms_digest: str) -> Augmentation | None:
    """None: nothing is added."""
    wanted = spec.data.augmentation
    if wanted is None:
        return None
    return Augmentation(
        wanted.copies,
        wanted.methods,
        wanted.rate,
        spec.training.seed,
        synonyms,
        synonyms_digest,
        wanted.min_per_class,
    )


class CopiesPerClass:
    """Selects copies until each class has enough training records, the same number of each record of a class.

    `counts`: training records of each class, shape (classes,).
    """

    def __init__(self, counts: NDArray[np.int64], min_per_class: int) -> None:
        self._left = np.maximum(min_per_class - counts, 0)
        self._of_each = -(-self._left // np.maximum(counts, 1))

    def take(self, records: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the next copies to use. `records` has the record of each, ascending; `classes` its class."""
        starts = np.flatnonzero(np.diff(records, prepend=-1))
        number = np.arange(len(records)) - np.repeat(starts, np.diff(starts, append=len(records)))
        taken = number < self._of_each[classes]
        for each in np.unique(classes[taken]).tolist():
            places = np.flatnonzero(taken & (classes == each))
            taken[places[self._left[each] :]] = False
            self._left[each] -= min(len(places), self._left[each])
        return taken


def augment_examples(augmentation: Augmentation, examples: Iterator[Example], tally: Tally) -> Iterator[Example]:
    """Add copies to every example of a training file. Begin and end tokens around the text are kept."""
    for example in examples:
        if not tally.in_training:
            yield dataclasses.replace(example, copies=())
            continue
        (content,) = example.content
        start = example.text.find(content)
        copies = augmentation.copies_of(content) if start >= 0 else []
        before, after = example.text[:start], example.text[start + len(content) :]
        yield dataclasses.replace(
            example, copies=tuple(_with_text(example, f"{before}{copy}{after}") for copy in copies)
        )


def _with_text(example: Example, text: str) -> Example:
    spans = ((-1, len(text)),) if example.spans else ()
    return dataclasses.replace(example, text=text, spans=spans, parts=(), copies=None)
