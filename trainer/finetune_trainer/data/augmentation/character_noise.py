"""CharacterNoise: typing errors. In each chosen word, one character is doubled, removed or exchanged with the next."""

from collections.abc import Mapping, Sequence

from finetune_api.v1alpha1 import AugmentationMethodName

from .base import METHODS, AugmentationMethod, Draw, Words


@METHODS.register
class CharacterNoise(AugmentationMethod):
    """Words of one character are only doubled."""

    name = AugmentationMethodName.CHARACTER_NOISE

    def apply(self, text: str, changes: int, draw: Draw, synonyms: Mapping[str, Sequence[str]]) -> str:
        """One error in each of `changes` words."""
        del synonyms
        words = Words.of(text)
        return words.replaced({place: _noisy(words.parts[place], draw) for place in draw.sample(words.places, changes)})


def _noisy(word: str, draw: Draw) -> str:
    kind = draw.below(3) if len(word) > 1 else 0
    if kind == 2:
        place = draw.below(len(word) - 1)
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    place = draw.below(len(word))
    return word[:place] + word[place] * (2 if kind == 0 else 0) + word[place + 1 :]
