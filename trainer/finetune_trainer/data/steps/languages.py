"""`spec.data.cleaning.languages`: drops training records in other languages.

py3langid identifies the language by frequent sequences of bytes. Its model is a part of the package. A record is
dropped only if the probability of another language is high, so that short texts and texts without a language, such as
numbers and source code, are kept.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import py3langid
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from finetune_api.v1alpha1 import Spec

from ..formats import Example
from ..pipeline import DataStep, Tally
from ..shown_records import shown_text

CONFIDENCE = 0.7
"""Probability from which on a language is certain. Of 17 languages, 98 % of texts of 100 characters have one, and 24 %
of those of 6; of the latter, 98 % are identified correctly."""
PART = 400
"""Characters at the beginning, in the middle and at the end of a text by which it is identified: bounds the time for
long texts, whose language is certain after fewer characters."""
_NO_LANGUAGE = "zxx"
_UNCERTAIN = "records without a certain language"


@dataclass(frozen=True)
class Parameters:
    """Codes of the languages that are kept, sorted, and what the decision depends on."""

    languages: tuple[str, ...]
    confidence: float
    part: int
    py3langid: str


def parameters(spec: Spec) -> Parameters | None:
    """None: the step is not enabled."""
    languages = tuple(sorted(set(spec.data.cleaning.languages)))
    return Parameters(languages, CONFIDENCE, PART, py3langid.__version__) if languages else None


@functools.cache
def _identifier() -> LanguageIdentifier:
    """The model: a second of CPU time and 100 MiB, once per process."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identified(parameters: Parameters, text: str) -> tuple[str, float] | None:
    """Code and probability of the language of a text; None if it is not certain."""
    size = parameters.part
    if len(text) > 3 * size:
        middle = (len(text) - size) // 2
        text = "\n".join((text[:size], text[middle : middle + size], text[-size:]))
    code, probability = _identifier().classify(text)
    return None if code == _NO_LANGUAGE or probability < parameters.confidence else (code, probability)


def apply(parameters: Parameters, examples: Iterator[Example], tally: Tally) -> Iterator[Example]:
    """The examples in the languages and those without a certain one, and all of held-out files."""
    for example in examples:
        if not tally.in_training:
            yield example
            continue
        found = identified(parameters, "\n".join(example.own_texts))
        if found is not None and found[0] not in parameters.languages:
            language, probability = found
            tally.drop(example.place, language, f"{language} ({probability:.0%}): {shown_text(example.own_texts[0])}")
            continue
        tally.counts[_UNCERTAIN] += found is None
        yield example


def report(counts: Counter[str]) -> tuple[str, ...]:
    """How many records are kept although their language is not certain."""
    if not counts[_UNCERTAIN]:
        return ()
    return (f"languages: {_UNCERTAIN}: {counts[_UNCERTAIN]:,}. They are kept: they are short, or not in one language",)


STEP = DataStep("languages", version=1, order=20, parameters=parameters, apply=apply, report=report)
