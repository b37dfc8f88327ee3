"""Augmentation methods: (text, changes, seed) -> copy, and the copies of a record."""

import dataclasses
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.v1alpha1 import AugmentationMethodName, BadRecordAction
from finetune_trainer.data.augmentation import METHODS, Augmentation, Draw
from finetune_trainer.data.augmentation import synonyms as synonyms_file
from finetune_trainer.data.augmentation.step import CopiesPerClass, augment_examples
from finetune_trainer.data.augmentation.synonym import without_punctuation
from finetune_trainer.data.augmentation.synonyms import read_synonyms
from finetune_trainer.data.formats import Example
from finetune_trainer.data.pipeline import Tally
from finetune_trainer.data.problems import BadRecords, Place
from finetune_trainer.data.sources import SourceFile
from finetune_trainer.errors import BadDataError

NOISE, DROPOUT, SWAP, SYNONYM = AugmentationMethodName
TEXT = "The  quick brown fox, they say,\njumps over a lazy dog"
SYNONYMS = {"quick": ("fast",), "fox": ("vixen", "reynard"), "dog": ("hound",)}
SEEDS = range(40)


def copies(method: AugmentationMethodName, text: str, changes: int) -> list[str]:
    """A copy for each seed."""
    return [METHODS[method].apply(text, changes, Draw(seed), SYNONYMS) for seed in SEEDS]


def test_every_method_is_implemented() -> None:
    assert set(METHODS) == set(AugmentationMethodName)


@pytest.mark.parametrize("changes", [1, 3])
def test_noise_changes_one_character_of_some_words_and_no_white_space(changes: int) -> None:
    for copy in copies(NOISE, TEXT, changes):
        changed = [pair for pair in zip(TEXT.split(), copy.split(), strict=True) if pair[0] != pair[1]]
        assert len(changed) <= changes
        assert all(abs(len(one) - len(other)) <= 1 for one, other in changed)
        assert "\n" in copy
        assert "  " in copy
    assert len(set(copies(NOISE, TEXT, changes))) > 20


@pytest.mark.parametrize(("text", "changes", "left"), [(TEXT, 1, 10), (TEXT, 4, 7), ("two words", 9, 1), ("one", 3, 1)])
def test_dropout_removes_words_but_never_all(text: str, changes: int, left: int) -> None:
    for copy in copies(DROPOUT, text, changes):
        assert len(copy.split()) == left
        assert not Counter(copy.split()) - Counter(text.split())
        assert copy == copy.strip()


@pytest.mark.parametrize("changes", [1, 4])
def test_swap_keeps_the_words(changes: int) -> None:
    for copy in copies(SWAP, TEXT, changes):
        assert sorted(copy.split()) == sorted(TEXT.split())
    assert METHODS[SWAP].apply("a b c d e", 3, Draw(5), {}) == "a d c b e"  # a digest must always have the same rows
    moved = [one != other for one, other in zip(TEXT.split(), copies(SWAP, TEXT, 1)[0].split(), strict=True)]
    assert sum(moved) == 2


def test_synonyms_keep_punctuation_and_capitals() -> None:
    assert set(copies(SYNONYM, "Fox, said the cat", 3)) == {"Vixen, said the cat", "Reynard, said the cat"}
    assert set(copies(SYNONYM, '"dog" or cat', 1)) == {'"hound" or cat'}
    assert set(copies(SYNONYM, "nothing known", 2)) == {"nothing known"}


@pytest.mark.parametrize("method", AugmentationMethodName)
@pytest.mark.parametrize("text", ["", "a", "...", "\u00e9\u00e8", "\u4f60\u597d", " x "])
def test_every_text_has_a_copy(method: AugmentationMethodName, text: str) -> None:
    assert all(isinstance(copy, str) for copy in copies(method, text, 2))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("fox", ("", "fox", "")),
        ('("it\'s!")', ('("', "it's", '!")')),
        ("...", ("...", "", "")),
        ("", ("", "", "")),
        ("\u00ab\u00e9t\u00e9\u00bb", ("\u00ab", "\u00e9t\u00e9", "\u00bb")),
        ("a", ("", "a", "")),
    ],
)
def test_a_word_is_looked_up_without_the_punctuation_around_it(word: str, expected: tuple[str, str, str]) -> None:
    assert without_punctuation(word) == expected


def seconds(method: AugmentationMethodName, text: str, changes: int) -> float:
    """Of CPU time: the least of three, because other processes delay a single one."""
    found = []
    for _ in range(3):
        started = time.process_time()
        METHODS[method].apply(text, changes, Draw(1), SYNONYMS)
        found.append(time.process_time() - started)
    return min(found)


@pytest.mark.parametrize(
    ("method", "part", "size"),
    [(SYNONYM, "Chapter{}12", 1_000), (SYNONYM, "{}", 1_000), (SWAP, "{}", 2_000)],
    ids=["dots within a word", "dots alone", "many words"],
)
def test_the_time_is_linear_in_the_length_of_the_text(method: AugmentationMethodName, part: str, size: int) -> None:
    """A quadratic method needs 64 times as long for a text that is eight times as long."""
    texts = [part.format((". " if method is SWAP else ".") * length) for length in (size, 8 * size)]
    short, long = (seconds(method, text, len(text) // 4) for text in texts)
    assert long < 24 * max(short, 1e-3), (short, long)


AUGMENTATION = Augmentation(4, (NOISE, DROPOUT, SWAP, SYNONYM), 0.2, 42, SYNONYMS, "d")


def test_copies_differ_from_the_text_and_from_each_other_and_never_change() -> None:
    made = AUGMENTATION.copies_of(TEXT)
    assert made == [
        "The  fast brown fox, they say,\njumps over a lazy hound",
        "Th  quick brown fox, they say,\njumps over a laz dog",
        "The  quick brown fox, say,\njumps over lazy dog",
        "The  over lazy fox, they say,\njumps quick a brown dog",
    ]  # written out, because a digest must always have the same rows
    assert dataclasses.replace(AUGMENTATION, seed=43).copies_of(TEXT) != made


def test_a_copy_that_cannot_differ_is_left_out() -> None:
    assert dataclasses.replace(AUGMENTATION, methods=(SWAP, DROPOUT)).copies_of("word") == []
    assert len(dataclasses.replace(AUGMENTATION, copies=10, methods=(SWAP,)).copies_of("two words")) == 1


def test_begin_and_end_tokens_stay_where_they_are() -> None:
    place = Place("s3://b/a.jsonl", 1)
    text = f"<s>{TEXT}</s>"
    example = Example(text, place, spans=((-1, len(text)),), divisible=True, parts=(TEXT,))
    (augmented,) = augment_examples(AUGMENTATION, iter([example]), Tally(BadRecords(BadRecordAction.FAIL)))
    assert augmented == example
    assert augmented.copies is not None
    assert [copy.text for copy in augmented.copies] == [f"<s>{copy}</s>" for copy in AUGMENTATION.copies_of(TEXT)]
    assert all(copy.spans == ((-1, len(copy.text)),) and copy.divisible for copy in augmented.copies)


def test_records_of_held_out_files_have_no_copies() -> None:
    tally = Tally(BadRecords(BadRecordAction.FAIL), in_training=False)
    (example,) = augment_examples(AUGMENTATION, iter([Example(TEXT, Place("s3://b/a.jsonl", 1))]), tally)
    assert example.copies == ()


def file_of(folder: Path, name: str, content: bytes) -> SourceFile:
    path = folder / name
    path.write_bytes(content)
    return SourceFile(f"s3://b/{name}", path, "0" * 64, len(content))


def lines(*records: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, records)).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "a.jsonl",
            lines({"word": "Fox", "synonyms": ["vixen", "fox", " reynard"]}, {"word": "a", "synonyms": ["the"]}),
        ),
        ("a.csv", b"word,synonyms\nfox,vixen|reynard\na,the\n"),
    ],
)
def test_synonyms_are_read_from_json_lines_and_csv(tmp_path: Path, name: str, content: bytes) -> None:
    assert read_synonyms(file_of(tmp_path, name, content)) == {"fox": ("vixen", "reynard"), "a": ("the",)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fox", "synonyms must be in JSON Lines or CSV"),
        ("a.jsonl", lines({"word": "fox"}), "column 'synonyms' must be a list of texts"),
        ("a.jsonl", lines({"word": "fox", "synonyms": [7]}), "must have texts of 1 to 100 characters"),
        ("a.jsonl", lines({"word": "f" * 101, "synonyms": ["a"]}), "must have texts of 1 to 100 characters"),
        ("a.jsonl", lines({"word": "red fox", "synonyms": ["a"]}), "column 'word' must be one word"),
        ("a.jsonl", lines({"word": "fox", "synonyms": ["fox"]}), "must have 1 to 50 synonyms, not 0"),
        ("a.jsonl", lines({"word": "fox", "synonyms": list(map(str, range(51)))}), "1 to 50 synonyms, not 51"),
        ("a.jsonl", lines(*({"word": f"w{n}", "synonyms": ["a"]} for n in range(6))), "at most 5 words"),
        ("a.jsonl", b" " * 1001, "must have at most 1,000 bytes, not 1,001"),
        ("a.jsonl", b"\n", "has no words"),
    ],
)
def test_a_file_that_is_too_large_or_wrong_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    monkeypatch.setattr(synonyms_file, "MAX_WORDS", 5)
    monkeypatch.setattr(synonyms_file, "MAX_FILE_BYTES", 1000)
    with pytest.raises(BadDataError, match=message):
        read_synonyms(file_of(tmp_path, name, content))


@pytest.mark.parametrize(
    ("counts", "least", "copies", "expected"),
    [
        ([4], 6, [3, 3, 3, 3], [1, 1, 0, 0]),
        ([2], 6, [3, 3], [2, 2]),
        ([2], 7, [3, 3], [3, 2]),
        ([2], 20, [3, 3], [3, 3]),
        ([5], 5, [3, 3, 3, 3, 3], [0, 0, 0, 0, 0]),
        ([2], 6, [1, 3], [1, 2]),
    ],
    ids=["fewer than records", "equal", "one more", "too few", "enough", "a record with one copy"],
)
def test_copies_are_taken_from_all_records_of_a_rare_class_alike(
    counts: list[int], least: int, copies: list[int], expected: list[int]
) -> None:
    selection = CopiesPerClass(np.array(counts), least)
    records = np.repeat(np.arange(len(copies)), copies)
    taken = []
    for half in np.array_split(records, [len(records) - copies[-1]]):  # the last record is in another bucket
        taken += half[selection.take(half, np.zeros_like(half))].tolist()
    assert np.bincount(np.array(taken, dtype=np.int64), minlength=len(copies)).tolist() == expected
