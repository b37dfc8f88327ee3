"""WordDropout: removes words. At least one word remains."""

from collections.abc import Mapping, Sequence

from finetune_api.v1alpha1 import AugmentationMethodName

from .base import METHODS, AugmentationMethod, Draw, Words


@METHODS.register
class WordDropout(AugmentationMethod):
    """Random deletion of J. Wei and K. Zou, "EDA" (EMNLP 2019), with a fixed number of words."""

    name = AugmentationMethodName.WORD_DROPOUT

    def apply(self, text: str, changes: int, draw: Draw, synonyms: Mapping[str, Sequence[str]]) -> str:
        """Without `changes` words."""
        del synonyms
        words = Words.of(text)
        places = words.places
        return words.replaced(dict.fromkeys(draw.sample(places, min(changes, len(places) - 1)), ""))
