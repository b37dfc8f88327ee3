"""The tokens that the base model's tokenizer would have made of rows with new tokens (`spec.model.vocabulary`)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..model.tokenizer import keeps_spaces

_WORD = re.compile(r"[^\W_]+")


def words_in(text: str) -> int:
    """Number of words: runs of letters and digits."""
    return len(_WORD.findall(text))


@dataclass(frozen=True)
class BaseTokens:
    """Replaces new tokens by tokens of the base model.

    A new token at the start of a longer word may divide it in another place than the tokenizer of the base model. If
    decoding is exact, texts with new tokens are therefore read again.
    """

    tokenizer: Tokenizer
    """That of the base model."""
    pieces: Mapping[int, tuple[int, ...]]
    """New token -> the tokens that it replaces."""

    def row(self, ids: NDArray[np.int64], flags: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The tokens of a row and their flags; both inputs have the shape (tokens,).

        Tokens of the result have the flag of the tokens that they replace. The first token is replaced on its own.
        """
        found: list[int] = []
        kept: list[bool] = []
        special = [token if token in self._special else -1 for token in ids.tolist()]
        keys = zip(np.arange(len(ids)) == 0, flags.tolist(), special, strict=True)
        for (_, flag, _), part in groupby(zip(keys, ids.tolist(), strict=True), lambda item: item[0]):
            tokens = self._of_run([token for _, token in part])
            found += tokens
            kept += [flag] * len(tokens)
        return np.array(found, dtype=np.int64), np.array(kept, dtype=np.bool_)

    def _of_run(self, ids: Sequence[int]) -> list[int]:
        found = [piece for token in ids for piece in self.pieces.get(token, (token,))]
        if self._keeps_spaces and not self.pieces.keys().isdisjoint(ids):
            text = self.tokenizer.decode(found, skip_special_tokens=False)
            again: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
            # Bytes of an incomplete character are not restored.
            if self.tokenizer.decode(again, skip_special_tokens=False) == text and "\ufffd" not in text:
                return again
        return found

    @cached_property
    def _keeps_spaces(self) -> bool:
        return keeps_spaces(self.tokenizer)

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_added_tokens_decoder())
