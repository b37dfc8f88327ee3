"""The interface of an augmentation method, and the words of a text."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from finetune_api.v1alpha1 import AugmentationMethodName

from ...registry import Registry

_SPACES = re.compile(r"(\s+)")


class Draw:
    """Random numbers of one copy of one record, as a function of a 64-bit seed alone.

    SplitMix64 (G. Steele, D. Lea and C. Flood, OOPSLA 2014): unlike those of `random` and numpy, the numbers
    cannot change with a version, so a digest always has the same rows.
    """

    def __init__(self, seed: int) -> None:
        self._state = seed

    def below(self, limit: int) -> int:
        """An integer from 0 to `limit` - 1. The bias is at most `limit` / 2^64."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((self._state ^ (self._state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return (mixed ^ (mixed >> 31)) % limit

    def sample(self, population: Sequence[int], number: int) -> list[int]:
        """`number` different elements, or all if there are fewer, in random order."""
        rest, found = list(population), []
        for _ in range(min(number, len(rest))):
            found.append(rest.pop(self.below(len(rest))))
        return found


_MASK = 2**64 - 1


@dataclass(frozen=True)
class Words:
    """A text divided at white space."""

    parts: tuple[str, ...]
    """Words and the white space around them in turn; the first and the last part are words and may be empty."""

    @classmethod
    def of(cls, text: str) -> "Words":
        """Divide a text."""
        return cls(tuple(_SPACES.split(text)))

    @property
    def places(self) -> list[int]:
        """Indices of the words in `parts`."""
        return [index for index in range(0, len(self.parts), 2) if self.parts[index]]

    def replaced(self, changed: Mapping[int, str]) -> str:
        """The text with other words at some indices. An empty word is removed with the white space before it, or after
        it if no word is before it."""
        parts = [changed.get(index, part) for index, part in enumerate(self.parts)]
        is_first = True
        for index in self.places:
            if parts[index]:
                is_first = False
            else:
                parts[min(index + 1, len(parts) - 1) if is_first else index - 1] = ""
        return "".join(parts)


class AugmentationMethod(ABC):
    """One method. Pure: the copy depends on the arguments alone."""

    name: ClassVar[AugmentationMethodName]
    version: ClassVar[int] = 1
    """Increased when the same arguments would give another copy; part of the digest."""

    @abstractmethod
    def apply(self, text: str, changes: int, draw: Draw, synonyms: Mapping[str, Sequence[str]]) -> str:
        """A copy of the text with at most `changes` changes; the text itself if it cannot be changed."""


METHODS: Registry[AugmentationMethod] = Registry(__package__, "spec.data.augmentation.methods")
"""Method by name."""
