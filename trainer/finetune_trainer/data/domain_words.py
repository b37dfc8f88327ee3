"""Words of the training split that the tokenizer divides, and how many tokens a word takes."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .base_tokens import BaseTokens, words_in
from .shards import TokenDataset

if TYPE_CHECKING:  # imports torch
    from ..model.vocabulary import Forms

MIN_LETTERS = 4
"""Shorter words are often the beginning of words that are tokens."""
MAX_LETTERS = 64
MIN_COUNT = 3

_MOST_ROWS = 200_000
"""Rows that words are learned from, evenly spaced."""
_MEASURED_ROWS = 10_000
_ROWS_PER_CALL = 1000
_SPARE = 2
"""Candidates per token to learn, as many again as a reserve for forms that cannot be tokens."""
_WORD = re.compile(rf"( ?)(?<![^\W_])([^\W\d_]{{{MIN_LETTERS},{MAX_LETTERS}}})(?![^\W_])")
"""A run of letters that is not part of a longer run of letters and digits, and the space before it."""


def learned_forms(rows: TokenDataset, forms: "Forms", most: int) -> list[str]:
    """Forms of the rows' words that the tokenizer divides, those first that save most tokens.

    A form saves its number of pieces minus one at each occurrence. If tokens contain the space before a word, only
    words after a space are learned. Forms that occur less than MIN_COUNT times are left out, and those that a token of
    the vocabulary continues: a token for ` neuron` would divide ` neurons`.
    """
    counts: Counter[str] = Counter()
    for text in _texts(rows, forms.tokenizer, _MOST_ROWS):
        for space, word in _WORD.findall(text):
            if not forms.has_spaces:
                counts[word] += 1
            elif space:
                counts[space + word] += 1
    frequent = [form for form, count in counts.items() if count >= MIN_COUNT]
    pieces = dict(zip(frequent, forms.pieces(frequent), strict=True)) if frequent else {}
    saved = {
        form: counts[form] * (len(found) - 1)
        for form, found in pieces.items()
        if len(found) > 1 and forms.unknown not in found
    }
    ordered = sorted(saved, key=lambda form: (-saved[form], form))
    if forms.has_spaces:
        known = sorted(forms.backend.decode([token], skip_special_tokens=False) for token in _ids(forms))
        ordered = [form for form in ordered if not _is_continued(form, known)]
    return ordered[: _SPARE * most]


def _ids(forms: "Forms") -> list[int]:
    return sorted(forms.backend.get_vocab(with_added_tokens=True).values())


def _is_continued(form: str, known: list[str]) -> bool:
    """Whether a token begins with the form and another letter. `known` are the texts of all tokens, sorted."""
    for text in known[bisect_left(known, form) :]:
        if not text.startswith(form):
            return False
        if len(text) > len(form) and text[len(form)].isalpha():
            return True
    return False


def tokens_per_word(rows: TokenDataset, tokenizer: Any, base: BaseTokens) -> tuple[float, float]:
    """Tokens per word with the tokenizer of the base model and with the new tokens, of at most 10,000 rows.

    Special tokens do not count; a word is a run of letters and digits.
    """
    special = list(tokenizer.all_special_ids)
    before = after = 0
    for number in _spread(len(rows), _MEASURED_ROWS):
        ids = rows[int(number)]["input_ids"]
        ids = ids[~np.isin(ids, special)]
        after += len(ids)
        before += len(base.row(ids, np.ones(len(ids), dtype=np.bool_))[0])
    words = sum(words_in(text) for text in _texts(rows, tokenizer, _MEASURED_ROWS))
    return (before / words, after / words) if words else (0.0, 0.0)


def _texts(rows: TokenDataset, tokenizer: Any, most: int) -> Iterator[str]:
    numbers = _spread(len(rows), most)
    for start in range(0, len(numbers), _ROWS_PER_CALL):
        part = [rows[int(number)]["input_ids"].tolist() for number in numbers[start : start + _ROWS_PER_CALL]]
        yield from tokenizer.backend_tokenizer.decode_batch(part, skip_special_tokens=True)


def _spread(count: int, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """At most `most` evenly spaced numbers below `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
