"""Synonym: replaces words by one of their synonyms in the file of `spec.data.augmentation.synonyms`.

Words are looked up in lower case, without punctuation around them, which is kept, like a capital at the beginning.
"""

import re
from collections.abc import Mapping, Sequence

from finetune_api.v1alpha1 import AugmentationMethodName

from .base import METHODS, AugmentationMethod, Draw, Words

_WORD_CHARACTER = re.compile(r"\w")


@METHODS.register
class Synonym(AugmentationMethod):
    """Synonym replacement of J. Wei and K. Zou, "EDA" (EMNLP 2019), with the user's own synonyms."""

    name = AugmentationMethodName.SYNONYM

    def apply(self, text: str, changes: int, draw: Draw, synonyms: Mapping[str, Sequence[str]]) -> str:
        """With synonyms of at most `changes` words."""
        words = Words.of(text)
        known = [place for place in words.places if without_punctuation(words.parts[place])[1].lower() in synonyms]
        return words.replaced(
            {place: _replaced(words.parts[place], draw, synonyms) for place in draw.sample(known, changes)}
        )


def without_punctuation(word: str) -> tuple[str, str, str]:
    """Punctuation, word, punctuation. A word without letters and digits is punctuation before an empty word.

    Two searches, because a pattern for all three parts takes time quadratic in the length of, say, `Chapter....12`.
    """
    first, last = _WORD_CHARACTER.search(word), _WORD_CHARACTER.search(word[::-1])
    if first is None or last is None:
        return word, "", ""
    end = len(word) - last.start()
    return word[: first.start()], word[first.start() : end], word[end:]


def _replaced(word: str, draw: Draw, synonyms: Mapping[str, Sequence[str]]) -> str:
    before, core, after = without_punctuation(word)
    choices = synonyms[core.lower()]
    chosen = choices[draw.below(len(choices))]
    if core[:1].isupper():
        chosen = chosen[:1].upper() + chosen[1:]
    return f"{before}{chosen}{after}"
