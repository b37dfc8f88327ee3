"""Tokenizes examples in batches, with a fast tokenizer.

Workers use the library `tokenizers` directly, with the settings of transformers: importing transformers would take
half a second and 50 MiB in each of them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from .formats import Example
from .formats.base import everywhere

BATCH = 200
"""Examples per call of the tokenizer: their encodings fit into the processor's cache."""

BATCH_CHARACTERS = 2**19
"""Characters per call. Bounds the memory for the encodings of long texts: about 100 bytes per token."""


@dataclass(frozen=True)
class FastTokenizer:
    """A tokenizer that does not need transformers."""

    backend: Tokenizer
    truncation_side: str
    split_special_tokens: bool
    special_tokens: frozenset[int] = frozenset()
    """Ids of tokens that no text consists of."""

    @classmethod
    def of(cls, tokenizer: Any) -> "FastTokenizer":
        """Create it from a fast tokenizer of transformers, with the same settings."""
        return cls(
            tokenizer.backend_tokenizer,
            tokenizer.truncation_side,
            bool(tokenizer.split_special_tokens),
            special_tokens(tokenizer),
        )

    def encode_full(self, texts: list[str], *, with_offsets: bool) -> list[Encoding]:
        """Encode the complete texts without special tokens. Without `with_offsets`, which is faster, all offsets are
        zero."""
        self.backend.no_truncation()
        self._prepare()
        encode = self.backend.encode_batch if with_offsets else self.backend.encode_batch_fast
        return list(encode(texts, add_special_tokens=False))

    def encode_truncated(self, texts: list[str], max_length: int, *, with_offsets: bool = False) -> list[Encoding]:
        """Encode up to `max_length` tokens, special tokens included; `overflowing` has the rest."""
        self.backend.enable_truncation(max_length, stride=0, strategy="longest_first", direction=self.truncation_side)
        self._prepare()
        encode = self.backend.encode_batch if with_offsets else self.backend.encode_batch_fast
        return list(encode(texts, add_special_tokens=True))

    def encode_divided(self, texts: list[str], max_length: int) -> list[list[Encoding]]:
        """Encode each text as parts of up to `max_length` tokens, each with its own special tokens, in their order."""
        self.backend.enable_truncation(max_length, stride=0, strategy="longest_first", direction="right")
        self._prepare()
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=True)
        return [[encoding, *encoding.overflowing] for encoding in encodings]

    def is_picklable(self) -> bool:
        """Whether it can be sent to other processes: false for tokenizers with parts written in Python."""
        try:
            self.backend.to_str()
        except Exception:  # noqa: BLE001 - `tokenizers` raises nothing more specific
            return False
        return True

    def _prepare(self) -> None:
        self.backend.no_padding()
        self.backend.encode_special_tokens = self.split_special_tokens


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids of the special tokens of a tokenizer of transformers, such as the ends of a text, unknown, pad and mask."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {number for number, token in added if token.special}


@dataclass(frozen=True)
class EncodedBatch:
    """Examples and their rows: T tokens in R rows of N examples."""

    examples: list[Example]
    tokens: NDArray[np.int32]
    """(T,): the tokens of all rows, concatenated."""
    loss: NDArray[np.bool_] | None
    """(T,): which tokens carry loss. None: the targets are labels, of rows or of tokens."""
    row_lengths: NDArray[np.int32]
    """(R,): number of tokens of each row."""
    rows: NDArray[np.int32]
    """(N,): number of rows of each example. 0: no token carries loss, usually because the answer begins beyond the
    maximum length."""
    truncated: NDArray[np.bool_]
    """(N,): whether the example was truncated to the maximum length."""
    dropped: NDArray[np.int64]
    """(N,): number of tokens of each example that are in no row."""
    token_labels: NDArray[np.int32] | None = None
    """(T,): the label of each token as an index into `token_label_names`; -1: none. None: tokens have no labels."""
    token_label_names: tuple[str, ...] = ()
    first_lengths: NDArray[np.int32] | None = None
    """(R,): of rows that are pairs of texts, the tokens of the first one. None: each row is one text."""
    copies: "tuple[EncodedBatch, ...] | None" = None
    """The copies of all examples, in their order. None: without augmentation."""


Encode = Callable[[list[Example], FastTokenizer, int], EncodedBatch]
"""(examples, tokenizer, maximum length of a row) -> their rows."""


def batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Batches of at most BATCH examples and at most BATCH_CHARACTERS characters, unless a single one is longer."""
    batch: list[Example] = []
    characters = 0
    for example in examples:
        if batch and (len(batch) == BATCH or characters + len(example.text) > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(example)
        characters += len(example.text)
    if batch:
        yield batch


def encode_classified(examples: list[Example], tokenizer: FastTokenizer, max_length: int) -> EncodedBatch:
    """One row per example, with the tokenizer's own special tokens, truncated to the maximum length. A text of which
    the tokenizer keeps nothing gives no row: a model has no output for it."""
    encodings = tokenizer.encode_truncated([example.text for example in examples], max_length)
    ids: list[int] = []
    lengths, dropped = [], []
    for encoding in encodings:
        tokens = encoding.ids
        ids += tokens
        lengths.append(len(tokens))
        # Every overflowing part has its own special tokens, which are not part of the text.
        dropped.append(sum(len(piece.ids) - sum(piece.special_tokens_mask) for piece in encoding.overflowing))
    return EncodedBatch(
        examples,
        np.array(ids, dtype=np.int32),
        None,
        np.array([length for length in lengths if length], dtype=np.int32),
        np.array([bool(length) for length in lengths], dtype=np.int32),
        np.array([bool(encoding.overflowing) for encoding in encodings], dtype=np.bool_),
        np.array(dropped, dtype=np.int64),
    )


def encode_labeled_spans(examples: list[Example], tokenizer: FastTokenizer, max_length: int) -> EncodedBatch:
    """One row per example, with the tokenizer's own special tokens, truncated to the maximum length. The first token of
    each span has its label, the others have none. An example without labeled tokens gives no row."""
    encodings = tokenizer.encode_truncated([example.text for example in examples], max_length, with_offsets=True)
    names: dict[str, int] = {}
    ids: list[int] = []
    labels: list[NDArray[np.int32]] = []
    lengths, rows, dropped = [], [], []
    for example, encoding in zip(examples, encodings, strict=True):
        numbers = [names.setdefault(label, len(names)) for label in example.span_labels]
        found = np.full(len(encoding.ids), -1, dtype=np.int32)
        for token, number in zip(first_tokens(encoding.offsets, example.spans), numbers, strict=True):
            if token is not None:
                found[token] = number
        is_used = bool((found >= 0).any())
        rows.append(int(is_used))
        cut = sum(len(piece.ids) - sum(piece.special_tokens_mask) for piece in encoding.overflowing)
        if is_used:
            ids += encoding.ids
            labels.append(found)
            lengths.append(len(found))
        else:
            cut += len(encoding.ids) - sum(encoding.special_tokens_mask)
        dropped.append(cut)
    return EncodedBatch(
        examples,
        np.array(ids, dtype=np.int32),
        None,
        np.array(lengths, dtype=np.int32),
        np.array(rows, dtype=np.int32),
        np.array([bool(encoding.overflowing) for encoding in encodings], dtype=np.bool_),
        np.array(dropped, dtype=np.int64),
        np.concatenate([np.zeros(0, dtype=np.int32), *labels]),
        tuple(names),
    )


def first_tokens(offsets: list[tuple[int, int]], spans: Iterable[tuple[int, int]]) -> list[int | None]:
    """The index of the first token of each span: the first one that contains a character of it.

    None for a span whose first character is in no token of its own: it was truncated, the tokenizer removes it, or the
    token begins in an earlier span. Special tokens have no characters. `spans` are sorted.
    """
    found: list[int | None] = []
    token = 0
    for start, _ in spans:
        while token < len(offsets) and (offsets[token][1] <= start or offsets[token][0] == offsets[token][1]):
            token += 1
        if token < len(offsets) and offsets[token][0] <= start:
            found.append(token)
            token += 1
        else:  # no token, or one in the middle of the span, whose first token is shared or truncated
            found.append(None)
    return found


def encode_language(examples: list[Example], tokenizer: FastTokenizer, max_length: int) -> EncodedBatch:
    """Rows whose tokens are the targets, where they carry loss. A divisible text gives as many rows as it needs, others
    are truncated. The text already has its begin and end tokens; the tokenizer must not add them again."""
    with_offsets = any(not _carries_loss_everywhere(example) for example in examples)
    encodings = tokenizer.encode_full([example.text for example in examples], with_offsets=with_offsets)
    ids: list[int] = []
    flags: list[NDArray[np.bool_]] = []
    lengths, rows, truncated, dropped = [], [], [], []
    for example, encoding in zip(examples, encodings, strict=True):
        tokens = encoding.ids
        total = len(tokens)
        whole = _carries_loss_everywhere(example)
        loss = np.ones(total, dtype=np.bool_) if whole else loss_flags(encoding.offsets, example.spans)
        parts = chunks(total, max_length) if example.divisible else [(0, min(total, max_length))]
        # The first token is never predicted: a row in which only that one carries loss is useless.
        if not any(loss[begin + 1 : end].any() for begin, end in parts):
            parts = []
        end = parts[-1][1] if parts else 0
        ids += tokens if end == total else tokens[:end]
        flags.append(loss[:end])
        lengths += [stop - begin for begin, stop in parts]
        rows.append(len(parts))
        truncated.append(total > max_length and not example.divisible)
        dropped.append(total - end)
    return EncodedBatch(
        examples,
        np.array(ids, dtype=np.int32),
        np.concatenate(flags),
        np.array(lengths, dtype=np.int32),
        np.array(rows, dtype=np.int32),
        np.array(truncated, dtype=np.bool_),
        np.array(dropped, dtype=np.int64),
    )


def encode_masked(examples: list[Example], tokenizer: FastTokenizer, max_length: int) -> EncodedBatch:
    """Rows of which tokens are masked later: a text gives as many as it needs, each between the tokenizer's own special
    tokens. All other tokens may be masked, so they carry loss; rows without any are left out."""
    special = np.array(sorted(tokenizer.special_tokens), dtype=np.int32)
    ids: list[NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
    flags: list[NDArray[np.bool_]] = [np.zeros(0, dtype=np.bool_)]
    rows, dropped = [], []
    # Without begin and end tokens, which `text` may have.
    for parts in tokenizer.encode_divided([example.content[0] for example in examples], max_length):
        used = unused = 0
        for part in parts:
            tokens = np.array(part.ids, dtype=np.int32)
            loss = ~np.isin(tokens, special)
            if loss.any():
                ids.append(tokens)
                flags.append(loss)
                used += 1
            else:
                unused += len(tokens) - sum(part.special_tokens_mask)
        rows.append(used)
        dropped.append(unused)
    return EncodedBatch(
        examples,
        np.concatenate(ids),
        np.concatenate(flags),
        np.array([len(tokens) for tokens in ids[1:]], dtype=np.int32),
        np.array(rows, dtype=np.int32),
        np.zeros(len(examples), dtype=np.bool_),
        np.array(dropped, dtype=np.int64),
    )


def encode_pairs(examples: list[Example], tokenizer: FastTokenizer, max_length: int) -> EncodedBatch:
    """One row per example: the tokens of the text, then those of its `rejected` text, each truncated to the maximum
    length. An example gives no row if no token of either text carries loss, or if the truncated texts are the same."""
    others = [example.rejected for example in examples if example.rejected is not None]
    assert len(others) == len(examples), "the format makes pairs"
    texts = [text for pair in zip(examples, others, strict=True) for text in pair]
    encodings = tokenizer.encode_full([example.text for example in texts], with_offsets=True)
    ids: list[int] = []
    flags: list[NDArray[np.bool_]] = [np.zeros(0, dtype=np.bool_)]
    lengths, firsts, rows, truncated, dropped = [], [], [], [], []
    for place in range(0, len(texts), 2):
        pair = encodings[place : place + 2]
        loss = [
            loss_flags(encoding.offsets, text.spans)[:max_length]
            for encoding, text in zip(pair, texts[place : place + 2], strict=True)
        ]
        kept = [encoding.ids[:max_length] for encoding in pair]
        # The first token is never predicted.
        is_used = all(one[1:].any() for one in loss) and kept[0] != kept[1]
        rows.append(int(is_used))
        total = sum(len(encoding.ids) for encoding in pair)
        truncated.append(any(len(encoding.ids) > max_length for encoding in pair))
        dropped.append(total - (sum(map(len, kept)) if is_used else 0))
        if is_used:
            ids += [*kept[0], *kept[1]]
            flags += loss
            lengths.append(sum(map(len, kept)))
            firsts.append(len(kept[0]))
    return EncodedBatch(
        examples,
        np.array(ids, dtype=np.int32),
        np.concatenate(flags),
        np.array(lengths, dtype=np.int32),
        np.array(rows, dtype=np.int32),
        np.array(truncated, dtype=np.bool_),
        np.array(dropped, dtype=np.int64),
        first_lengths=np.array(firsts, dtype=np.int32),
    )


def _carries_loss_everywhere(example: Example) -> bool:
    """Whether every token carries loss, so that offsets are not needed."""
    return example.spans == everywhere(example.text)


def chunks(length: int, max_length: int) -> list[tuple[int, int]]:
    """Start and end of the ceil(length / max_length) rows of a text; the last row may be shorter.

    The first token of a row is never predicted, so a last row of one token would be useless: it gets another token from
    the row before it, if that keeps two.
    """
    starts = list(range(0, length, max_length))
    if len(starts) > 1 and length - starts[-1] == 1 and max_length > 2:
        starts[-1] -= 1
    return list(pairwise([*starts, length]))


def loss_flags(offsets: list[tuple[int, int]], spans: Iterable[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which tokens carry loss: those that end within a span.

    A token that begins before a span and ends in it counts, one that ends after the span does not, and a token of zero
    width (a space that the tokenizer trimmed) is treated like the characters before it.
    """
    ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
    flags = np.zeros(len(ends), dtype=np.bool_)
    for start, end in spans:
        flags |= (ends > start) & (ends <= end)
    return flags
