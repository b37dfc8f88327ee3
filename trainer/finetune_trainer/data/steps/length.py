"""`spec.data.cleaning.minChars` and `.maxChars`: drops training records that are too short or too long."""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.v1alpha1 import Spec

from ..formats import Example
from ..pipeline import DataStep, Tally
from ..shown_records import shown_text


@dataclass(frozen=True)
class Parameters:
    """Bounds in characters; None: no bound."""

    fewest: int | None
    most: int | None


def parameters(spec: Spec) -> Parameters | None:
    """None: the step is not enabled."""
    cleaning = spec.data.cleaning
    if cleaning.min_chars is None and cleaning.max_chars is None:
        return None
    return Parameters(cleaning.min_chars, cleaning.max_chars)


def apply(parameters: Parameters, examples: Iterator[Example], tally: Tally) -> Iterator[Example]:
    """The examples within the bounds, and all of held-out files."""
    fewest, most = parameters.fewest or 0, parameters.most
    for example in examples:
        length = sum(map(len, example.own_texts))
        if tally.in_training and (length < fewest or (most is not None and length > most)):
            tally.dropped += 1
            tally.show(example.place, f"{length:,} characters: {shown_text(example.own_texts[0])}")
        else:
            yield example


STEP = DataStep("length", version=1, order=10, parameters=parameters, apply=apply)
