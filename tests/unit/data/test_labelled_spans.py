"""Labels of words become labels of tokens."""

import pytest

import tiny_models
from finetune_trainer.data.formats import Example
from finetune_trainer.data.problems import Place
from finetune_trainer.data.tokenize import FastTokenizer, encode_labeled_spans, first_tokens


@pytest.mark.parametrize(
    ("offsets", "spans", "expected"),
    [
        ([(0, 0), (0, 3), (3, 5), (6, 8), (0, 0)], [(0, 5), (6, 8)], [1, 3]),
        ([(0, 3), (3, 8), (8, 9)], [(0, 3), (4, 8), (8, 9)], [0, 1, 2]),  # the space belongs to the second token
        ([(0, 8)], [(0, 3), (4, 8)], [0, None]),
        ([(0, 3), (6, 8)], [(0, 3), (4, 5), (6, 8)], [0, None, 1]),
        ([(0, 3)], [(0, 3), (4, 8)], [0, None]),
        ([], [(0, 3)], [None]),
        ([(0, 0), (2, 4), (5, 8), (0, 0)], [(0, 4), (5, 8)], [None, 2]),
        ([(0, 8), (8, 9)], [(0, 3), (4, 9)], [0, None]),
    ],
    ids=["pieces", "leading space", "one token for two", "removed", "cut", "nothing", "cut on the left", "shared"],
)
def test_the_first_token_of_a_span(offsets, spans, expected):
    assert first_tokens(offsets, spans) == expected


def example(words: str, labels: tuple[str, ...]) -> Example:
    spans, start = [], 0
    for word in words.split():
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return Example(words, Place("a.jsonl", 1), spans=tuple(spans), span_labels=labels)


def test_each_word_has_its_label_at_its_first_token():
    tokenizer = tiny_models.tiny_tokenizer()
    examples = [example("Ada wrote", ("PER", "O")), example("great good bad", ("O", "O", "X"))]
    batch = encode_labeled_spans(examples, FastTokenizer.of(tokenizer), 64)
    assert batch.token_labels is not None
    row = 0
    for one, length in zip(examples, batch.row_lengths, strict=True):
        ids = batch.tokens[row : row + length].tolist()
        assert ids == tokenizer(one.text).input_ids
        encoding = tokenizer(one.text).encodings[0]
        labels = batch.token_labels[row : row + length]
        found = [
            (one.text[encoding.offsets[place][0] :].split()[0], batch.token_label_names[label])
            for place, label in enumerate(labels)
            if label >= 0
        ]
        assert found == list(zip(one.text.split(), one.span_labels, strict=True))
        row += length


def test_an_example_without_a_labeled_token_gives_no_row():
    tokenizer = FastTokenizer.of(tiny_models.tiny_tokenizer())
    batch = encode_labeled_spans([Example("good", Place("a", 1), spans=((9, 12),), span_labels=("O",))], tokenizer, 8)
    assert (batch.rows.tolist(), len(batch.tokens), int(batch.dropped[0]) > 0) == ([0], 0, True)
