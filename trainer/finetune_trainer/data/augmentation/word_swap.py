"""WordSwap: exchanges two words, once for each change."""

from collections.abc import Mapping, Sequence

from finetune_api.v1alpha1 import AugmentationMethodName

from .base import METHODS, AugmentationMethod, Draw, Words


@METHODS.register
class WordSwap(AugmentationMethod):
    """Random swap of J. Wei and K. Zou, "EDA" (EMNLP 2019)."""

    name = AugmentationMethodName.WORD_SWAP

    def apply(self, text: str, changes: int, draw: Draw, synonyms: Mapping[str, Sequence[str]]) -> str:
        """After `changes` exchanges."""
        del synonyms
        words = Words.of(text)
        places = words.places
        if len(places) < 2:
            return text
        found = {place: words.parts[place] for place in places}
        for _ in range(changes):
            one, other = draw.below(len(places)), draw.below(len(places) - 1)
            first, second = places[one], places[other + (other >= one)]  # `sample` would copy all places
            found[first], found[second] = found[second], found[first]
        return words.replaced(found)
