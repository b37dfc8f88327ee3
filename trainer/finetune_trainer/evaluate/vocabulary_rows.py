"""The test split for models with different vocabularies, so that their losses can be compared.

A loss per token depends on the tokenizer: fewer tokens are each harder to predict. With `spec.model.vocabulary`, the
losses of all models are therefore sums over the same text, divided by the number of tokens of the base model's
tokenizer. The base model itself reads these tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.base_tokens import BaseTokens, words_in
from ..data.shards import TokenDataset
from ..tasks import IGNORED, TrainingTask


class RowsWithNewTokens:
    """The rows as they are, for models with the new tokens."""

    def __init__(self, rows: TokenDataset, base: BaseTokens) -> None:
        self._rows, self._base = rows, base
        self.lengths = rows.lengths

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]

    def documents(self) -> npt.NDArray[np.int64]:
        """As in the dataset."""
        return self._rows.documents()

    def units(self) -> npt.NDArray[np.int64] | None:
        """Tokens of the base model that carry loss, shape (rows,)."""
        counts = [int(_in_base_tokens(self._rows[index], self._base)[1].sum()) for index in range(len(self))]
        return np.array(counts, dtype=np.int64)


@dataclass(frozen=True)
class _Part:
    """A range of an expanded row."""

    row: int
    begin: int
    end: int
    scored_from: int
    """Position in the expanded row; earlier tokens are context without loss."""


class RowsOfPieces:
    """The rows with each new token replaced by its pieces, for the base model.

    A row may then be longer than `positions`, which the model can read at once. For language models, the rest becomes
    another row, which begins with as many of the earlier tokens as fit, as context without loss. Texts of classifiers
    are truncated before their last token, as the tokenizer of the base model would do. If tokens have labels, the last
    pieces without one are left out, so that all models are asked for the same labels.
    """

    def __init__(self, rows: TokenDataset, base: BaseTokens, task: TrainingTask, positions: int | None) -> None:
        self._rows, self._base = rows, base
        self._is_language = not task.has_labels
        lengths = [len(self._expanded(index)[0]) for index in range(len(rows))]
        self._parts = [
            part for row, length in enumerate(lengths) for part in self._parts_of(row, length, positions or length)
        ]
        self.lengths = np.array([part.end - part.begin for part in self._parts], dtype=np.int32)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = self._parts[index]
        ids, labels = self._expanded(part.row)
        if self._is_language:
            labels = np.where(np.arange(len(ids)) >= part.scored_from, labels, IGNORED)
            return {"input_ids": ids[part.begin : part.end], "labels": labels[part.begin : part.end]}
        if isinstance(labels, int):
            return {"input_ids": ids[np.r_[0 : part.end - 1, len(ids) - 1]], "labels": labels}
        spare = np.flatnonzero(labels[1:-1] == IGNORED) + 1
        kept = np.delete(np.arange(len(ids)), spare[len(spare) - (len(ids) - part.end) :])
        return {"input_ids": ids[kept], "labels": labels[kept]}

    def documents(self) -> npt.NDArray[np.int64]:
        """As in the dataset; the parts of a row belong to the same text."""
        return self._rows.documents()[[part.row for part in self._parts]]

    def units(self) -> npt.NDArray[np.int64] | None:
        """None: every token that carries loss is one of the base model."""
        return None

    def _parts_of(self, row: int, length: int, positions: int) -> list[_Part]:
        first = _Part(row, 0, min(length, positions), 0)
        if not self._is_language:
            return [first]
        parts = [first]
        while parts[-1].end < length:
            # At least half of the row is context.
            end = min(length, parts[-1].end + max(1, positions // 2))
            parts.append(_Part(row, end - positions, end, parts[-1].end))
        return parts

    def _expanded(self, index: int) -> tuple[npt.NDArray[np.int64], Any]:
        row = self._rows[index]
        ids, labels = row["input_ids"], row["labels"]
        if self._is_language:
            found, carries_loss = _in_base_tokens(row, self._base)
            return found, np.where(carries_loss, found, IGNORED)
        pieces = [self._base.pieces.get(token, (token,)) for token in ids.tolist()]
        found = np.array([piece for each in pieces for piece in each], dtype=np.int64)
        if isinstance(labels, int):
            return found, labels
        counts = np.array([len(each) for each in pieces], dtype=np.int64)
        of_pieces = np.full(len(found), IGNORED, dtype=np.int64)
        of_pieces[np.cumsum(counts) - counts] = labels  # the first piece of a word has its label
        return found, of_pieces


def _in_base_tokens(row: dict[str, Any], base: BaseTokens) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The tokens of the base model, and which of them carry loss."""
    ids, carries_loss = row["input_ids"], row["labels"] != IGNORED
    if len(carries_loss):
        carries_loss[0] = False  # the first token is never predicted, nor is any of its pieces
    return base.row(ids, carries_loss)


def count_words(rows: TokenDataset, tokenizer: Any) -> int:
    """Words (runs of letters and digits) of the tokens that carry loss; the first token of a row does not."""
    texts = [row["labels"][1:] for row in (rows[index] for index in range(len(rows)))]
    ids = [labels[labels != IGNORED].tolist() for labels in texts]
    return sum(map(words_in, tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=True)))
