"""Synonym: replaces words by one of their synonyms in the file of `spec.data.augmentation.synonyms`.

Words are looked up in lower case, without punctuation around them, which is kept, like a capital at the beginning.
"""

import re
from collections.abc import Mapping, Sequence

from finetune_api.v1alpha1 import AugmentationMethodName

from .base import METHODS, AugmentationMethod, Draw, Words

_CORE = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)


@METHODS.register
class Synonym(AugmentationMethod):
    """Synonym replacement of J. Wei and K. Zou, "EDA" (EMNLP 2019), with the user's own synonyms."""

    name = AugmentationMethodName.SYNONYM

    def apply(self, text: str, changes: int, draw: Draw, synonyms: Mapping[str, Sequence[str]]) -> str:
        """With synonyms of at most `changes` words."""
        words = Words.of(text)
        known = [place for place in words.places if _core(words.parts[place])[1].lower() in synonyms]
        return words.replaced(
            {place: _replaced(words.parts[place], draw, synonyms) for place in draw.sample(known, changes)}
        )


def _core(word: str) -> tuple[str, str, str]:
    """Punctuation, word, punctuation."""
    found = _CORE.match(word)
    assert found is not None, "the pattern matches every text"
    return found[1], found[2], found[3]


def _replaced(word: str, draw: Draw, synonyms: Mapping[str, Sequence[str]]) -> str:
    before, core, after = _core(word)
    choices = synonyms[core.lower()]
    chosen = choices[draw.below(len(choices))]
    if core[:1].isupper():
        chosen = chosen[:1].upper() + chosen[1:]
    return f"{before}{chosen}{after}"
