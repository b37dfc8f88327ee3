"""`spec.data.cleaning.quality`: drops training records that do not look like text for people.

The rules and their default values are those of Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A.1 and table A1).
Words are separated by white space, and their characters are counted without it. Of repeated lines, paragraphs and
sequences of 5 to 10 words, those that occur earlier in the text are counted, as in datatrove, whose filters are not
used, because they need spaCy or NLTK to divide a text into words.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from finetune_api.v1alpha1 import Spec

from ..formats import Example
from ..hashes import window_hashes
from ..pipeline import DataStep, Tally
from ..shown_records import shown_text

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_BULLETS = ("•", "-", "*")
_ELLIPSES = ("...", "…")
_PUNCTUATION = ".,;:!?()[]\"'“”‘’"

Reasons = Iterator[tuple[str, bool]]
"""Why a text is dropped, and whether it applies. In order of the time that it takes to find out."""


@dataclass(frozen=True)
class Parameters:
    """Bounds; the field of the same name in `spec.data.cleaning.quality` describes each."""

    min_words: int
    max_words: int
    min_mean_word_length: float
    max_mean_word_length: float
    max_symbols: float
    max_bullet_lines: float
    max_ellipsis_lines: float
    min_alphabetic_words: float
    min_stop_words: int
    max_duplicate_lines: float
    max_duplicate_line_chars: float
    max_duplicate_paragraphs: float
    max_duplicate_paragraph_chars: float
    max_top_ngrams: tuple[float, ...]
    max_duplicate_ngrams: tuple[float, ...]


def parameters(spec: Spec) -> Parameters | None:
    """None: the step is not enabled."""
    quality = spec.data.cleaning.quality
    if quality is None:
        return None
    return Parameters(**{field.name: getattr(quality, field.name) for field in dataclasses.fields(Parameters)})


def reason_to_drop(bounds: Parameters, text: str) -> str | None:
    """The first rule that the text breaks; None if it breaks none."""
    words = text.split()
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    rules = chain(_size(bounds, words), _symbols(bounds, words, lines, text), _repetition(bounds, words, lines, text))
    return next((reason for reason, applies in rules if applies), None)


def _size(bounds: Parameters, words: Sequence[str]) -> Reasons:
    yield f"fewer than {bounds.min_words:,} words", len(words) < bounds.min_words
    yield f"more than {bounds.max_words:,} words", len(words) > bounds.max_words
    mean = sum(map(len, words)) / len(words)
    yield f"mean word length below {bounds.min_mean_word_length:g}", mean < bounds.min_mean_word_length
    yield f"mean word length above {bounds.max_mean_word_length:g}", mean > bounds.max_mean_word_length


def _symbols(bounds: Parameters, words: Sequence[str], lines: Sequence[str], text: str) -> Reasons:
    most = bounds.max_symbols * len(words)
    yield f"more than {bounds.max_symbols:g} # per word", text.count("#") > most
    yield f"more than {bounds.max_symbols:g} ellipses per word", sum(map(text.count, _ELLIPSES)) > most
    bullets = sum(line.startswith(_BULLETS) for line in lines)
    yield f"more than {bounds.max_bullet_lines:.0%} lines with a bullet", bullets > bounds.max_bullet_lines * len(lines)
    ellipses = sum(line.endswith(_ELLIPSES) for line in lines)
    yield (
        f"more than {bounds.max_ellipsis_lines:.0%} lines with an ellipsis",
        ellipses > bounds.max_ellipsis_lines * len(lines),
    )
    alphabetic = sum(any(map(str.isalpha, word)) for word in words)
    yield (
        f"less than {bounds.min_alphabetic_words:.0%} words with a letter",
        alphabetic < bounds.min_alphabetic_words * len(words),
    )
    stop_words = {word.strip(_PUNCTUATION).lower() for word in words} & STOP_WORDS if bounds.min_stop_words else ()
    yield f"fewer than {bounds.min_stop_words} stop words", len(stop_words) < bounds.min_stop_words


def _repetition(bounds: Parameters, words: Sequence[str], lines: Sequence[str], text: str) -> Reasons:
    paragraphs = [part for part in map(str.strip, "\n".join(map(str.strip, text.splitlines())).split("\n\n")) if part]
    for parts, name, most, most_chars in (
        (lines, "lines", bounds.max_duplicate_lines, bounds.max_duplicate_line_chars),
        (paragraphs, "paragraphs", bounds.max_duplicate_paragraphs, bounds.max_duplicate_paragraph_chars),
    ):
        repeated = _repeated(parts)
        yield f"more than {most:.0%} repeated {name}", len(repeated) > most * len(parts)
        chars, total = sum(map(len, repeated)), sum(map(len, parts))
        yield f"more than {most_chars:.0%} characters in repeated {name}", chars > most_chars * total
    yield from _repeated_sequences(bounds, words)


def _repeated(parts: Sequence[str]) -> list[str]:
    """The parts that occur earlier."""
    seen: set[str] = set()
    return [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]


def _repeated_sequences(bounds: Parameters, words: Sequence[str]) -> Reasons:
    numbers: dict[str, int] = {}
    values = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.uint64)
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    total = int(lengths.sum())
    for size, most in enumerate(bounds.max_top_ngrams, start=2):
        hashes = window_hashes(values, size)
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        if not len(counts) or counts.max() == 1:  # then no longer sequence is repeated either
            return
        top = np.sort(first[counts == counts.max()])
        longest = top[np.argmax(np.add.reduce(sliding_window_view(lengths, size)[top], axis=1))]
        chars = _chars(lengths, hashes == hashes[longest])
        yield f"more than {most:.0%} characters in the most frequent sequence of {size} words", chars > most * total
    for size, most in enumerate(bounds.max_duplicate_ngrams, start=5):
        is_repeated = _are_repeated(window_hashes(values, size))
        if not is_repeated.any():
            return
        chars = _chars(lengths, is_repeated)
        yield f"more than {most:.0%} characters in repeated sequences of {size} words", chars > most * total


def _chars(lengths: NDArray[np.int64], is_start: NDArray[np.bool_]) -> int:
    """Characters of the words in the sequences that begin at these words; overlapping sequences count once."""
    size = len(lengths) - len(is_start) + 1
    changes = np.zeros(len(lengths) + 1, dtype=np.int64)
    changes[:-size] += is_start
    changes[size:] -= is_start
    return int(lengths[np.cumsum(changes)[:-1] > 0].sum())


def _are_repeated(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the hashes occur earlier."""
    found = np.ones(len(hashes), dtype=np.bool_)
    found[np.unique(hashes, return_index=True)[1]] = False
    return found


def apply(parameters: Parameters, examples: Iterator[Example], tally: Tally) -> Iterator[Example]:
    """The examples that break no rule, and all of held-out files."""
    for example in examples:
        text = "\n".join(example.own_texts)
        reason = reason_to_drop(parameters, text) if tally.in_training else None
        if reason is None:
            yield example
        else:
            tally.drop(example.place, reason, f"{reason}: {shown_text(text)}")


STEP = DataStep("quality", version=1, order=30, parameters=parameters, apply=apply)
