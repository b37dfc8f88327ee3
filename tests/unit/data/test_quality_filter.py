"""`spec.data.cleaning.quality`: the rules of Gopher, on made texts and on a dirtied copy of a real corpus."""

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from pydantic.alias_generators import to_camel
from ruamel.yaml import YAML

from finetune_api.v1alpha1 import BadRecordAction, DataFormat, Spec
from finetune_api.v1alpha1.data import LANGUAGES, UNSPACED_LANGUAGES
from finetune_trainer.data.formats import Example
from finetune_trainer.data.pipeline import Phase, Tally, optional
from finetune_trainer.data.problems import BadRecords, Place
from finetune_trainer.data.steps import quality
from real_models import package_folder

STOPS = "to the"
LONG = "abcdefghijklmnop"


def prose(lines: int = 8, seed: int = 1) -> str:
    """Lines of eleven words, most of which occur once."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(LONG, k=draw.randint(3, 9))) for _ in range(2_000)]
    return "\n".join(f"{STOPS} {' '.join(draw.sample(words, 9))}." for _ in range(lines))


def marked(mark: str, lines: int) -> str:
    """Prose with a template such as `- {}` applied to so many of its ten lines."""
    return "\n".join(mark.format(line) if number < lines else line for number, line in enumerate(prose(10).split("\n")))


def filtered(
    texts: list[str], thresholds: dict[str, Any] | None = None, *, training: bool = True
) -> tuple[list[str], Tally]:
    """The texts that are left, and what the step counts."""
    (step,) = optional(spec_of(thresholds or {}), Phase.EXAMPLES)
    tally = Tally(BadRecords(BadRecordAction.FAIL), in_training=training)
    examples = (Example(text=text, place=Place("a", number)) for number, text in enumerate(texts, start=1))
    return [example.text for example in step.apply(examples, tally)], tally


def spec_of(thresholds: dict[str, Any]) -> Spec:
    cleaning = {"quality": thresholds}
    return Spec.model_validate(
        {
            "model": {"uri": "s3://bucket/model"},
            "data": {"train": [{"uri": "s3://bucket/a.jsonl"}], "format": DataFormat.TEXT, "cleaning": cleaning},
            "training": {"learningRate": 1e-3},
            "output": {"uri": "s3://bucket/out"},
        }
    )


def spread(phrase: str, count: int) -> str:
    """Prose that ends with a phrase several times, between words that occur once."""
    return f"{prose()} {' '.join(f'{phrase} {number}th' for number in range(count))}"


def top_ngrams(*shares: float) -> dict[str, Any]:
    return {"maxTopNgrams": [*shares]}


def paragraphs(*parts: str) -> str:
    return "\n\n".join(parts)


TWICE = f"{prose()} {prose(2).replace(chr(10), ' ')}"
"""The words of two lines are repeated, without the line end."""
ANY_NGRAMS = {"maxTopNgrams": [1] * 3, "maxDuplicateNgrams": [1] * 6}
ANY_LINES = {"maxDuplicateLines": 1, "maxDuplicateLineChars": 1}
TOP, REPEATED = "characters in the most frequent sequence of", "characters in repeated sequences of"
FOUR_WORDS = f"more than 16% {TOP} 4 words"


@pytest.mark.parametrize(
    ("good", "bad", "reason", "thresholds"),
    [
        (prose(5), prose(4), "fewer than 50 words", {}),
        (prose(5), prose(6), "more than 60 words", {"maxWords": 60}),
        (prose(), f"a of to {STOPS} " * 20, "mean word length below 3", {}),
        (f"{prose()} {LONG}", f"{prose()} {LONG * 50}", "mean word length above 10", {}),
        (prose() + " #" * 8, prose() + " #" * 12, "more than 0.1 # per word", {}),
        (prose() + " a...b" * 9, prose() + " a...b…c" * 9, "more than 0.1 ellipses per word", ANY_NGRAMS),
        (marked("- {}", 9), marked("- {}", 10), "more than 90% lines with a bullet", {}),
        (marked("  • {}", 9), marked("  * {}", 10), "more than 90% lines with a bullet", {}),
        (marked("{}..", 3), marked("{}.. ", 4), "more than 30% lines with an ellipsis", {"maxSymbols": 1}),
        (marked("1{} 2 3", 9), marked("1{} 22 (33) 44 55", 10), "less than 80% words with a letter", ANY_LINES),
        (prose(), prose().replace("to the", "a then"), "fewer than 2 stop words", {}),
        (prose().replace("to the", '"The", TO'), prose().replace("to the", "to to"), "fewer than 2 stop words", {}),
        (prose() + "\nof" * 4, prose() + "\nof" * 5, "more than 30% repeated lines", {}),
        (f"{prose()}\n{prose(1)}", f"{prose()}\n{prose(3)}", "more than 20% characters in repeated lines", ANY_NGRAMS),
        (
            paragraphs(prose(), prose(8, seed=2), "so", "so"),
            paragraphs(prose(), "so", "so", "so"),
            "more than 30% repeated paragraphs",
            {},
        ),
        (
            paragraphs(prose(), prose(8, seed=2), prose(1, seed=3), prose(1, seed=3)),
            paragraphs(prose(), prose(1), "so", prose(4, seed=3), prose(4, seed=3)),
            "more than 20% characters in repeated paragraphs",
            ANY_LINES,
        ),
        (spread("nice day", 4), spread("nice day", 24), f"more than 20% {TOP} 2 words", {}),
        (spread("a nice day", 4), spread("a nice day", 24), f"more than 18% {TOP} 3 words", top_ngrams(1, 0.18, 1)),
        (spread("so a nice day", 4), spread("so a nice day", 24), FOUR_WORDS, top_ngrams(1, 1, 0.16)),
        (prose(), TWICE, f"more than 15% {REPEATED} 5 words", {}),
        (prose(), TWICE, f"more than 10% {REPEATED} 10 words", {"maxDuplicateNgrams": [1, 1, 1, 1, 1, 0.1]}),
    ],
)  # fmt: skip
def test_a_text_is_dropped_for_the_rule_that_it_breaks(
    good: str, bad: str, reason: str, thresholds: dict[str, Any]
) -> None:
    left, tally = filtered([good, bad], thresholds)
    assert (tally.reasons, left) == ({reason: 1}, [good])
    assert tally.dropped == 1
    (shown,) = tally.examples
    assert shown.place == "a line 2"
    assert shown.text.startswith(f"{reason}: ")


def test_a_rule_with_a_bound_that_every_text_meets_drops_nothing() -> None:
    least = dict.fromkeys(("minMeanWordLength", "minAlphabeticWords", "minStopWords"), 0) | {"minWords": 1}
    names = [field.name for field in dataclasses.fields(quality.Parameters) if field.name.startswith("max_")]
    most: dict[str, Any] = dict.fromkeys(map(to_camel, names), 1)
    most |= {"maxWords": 10**9, "maxMeanWordLength": 1000, "maxTopNgrams": [1] * 3, "maxDuplicateNgrams": [1] * 6}
    texts = ["#", "...", "- 1\n- 1\n\n- 1\n\n- 1", "x" * 999, "so " * 99, "\x0b1\x0c"]
    assert filtered(texts, least | most)[0] == texts


def test_sequences_that_overlap_count_once() -> None:
    """The last 4 of 9 equal words are in no sequence of 5 words that begins within the first."""
    bounds = quality.parameters(spec_of({}))
    assert bounds is not None
    text = " ".join(["ab"] * 9 + [f"{number:02}" for number in range(10)])
    found = [reason for reason, _ in quality._repeated_sequences(bounds, text.split())]
    assert found[-1] == "more than 12% characters in repeated sequences of 8 words"
    for share, applies in ((8 / 19 - 0.01, True), (8 / 19 + 0.01, False)):
        at = dataclasses.replace(bounds, max_duplicate_ngrams=(share, *[1.0] * 5))
        rules = dict(quality._repeated_sequences(at, text.split()))
        assert rules[f"more than {share:.0%} characters in repeated sequences of 5 words"] is applies


def test_records_of_held_out_files_are_kept() -> None:
    left, tally = filtered(["too short"], training=False)
    assert (left, tally.dropped, tally.reasons) == (["too short"], 0, {})


def test_the_first_broken_rule_counts() -> None:
    _, tally = filtered(["#", "# #", "word " * 60])
    assert tally.reasons == {"fewer than 50 words": 2, "fewer than 2 stop words": 1}
    assert tally.dropped == 3


def documents(*, of_code: bool) -> list[str]:
    """Lines of English conversations, joined to documents of 200 words; those about programming have little prose."""
    found = []
    for path in sorted((package_folder("chatterbot_corpus", "chatterbot-corpus") / "data/english").glob("*.yml")):
        if (path.name == "coding.yml") is not of_code:
            continue
        turns = YAML(typ="safe").load(path)["conversations"]
        lines: list[str] = []
        for line in dict.fromkeys(str(line).strip() for conversation in turns for line in conversation):
            lines.append(line)
            if sum(len(line.split()) for line in lines) >= 200:
                found.append("\n".join(lines))
                lines = []
    return found


def each_word(text: str, change: Callable[[int, str], str], join: str = " ") -> str:
    return join.join(change(number, word) for number, word in enumerate(text.split()))


DIRT: dict[str, Callable[[str], str]] = {
    "cut off": lambda text: " ".join(text.split()[:30]),
    "without spaces": lambda text: each_word(text, lambda number, word: word if number % 3 else f" {word}", join=""),
    "menu": lambda text: each_word(text, lambda number, word: word if number % 6 else f"\n- {word}"),
    "teasers": lambda text: re.sub(r"((\S+\s+){7}\S+)\s+", r"\1...\n", text) + "...",
    "hash tags": lambda text: each_word(text, lambda number, word: f"#{word}" if number % 4 == 0 else word),
    "table": lambda text: each_word(text, lambda number, word: f"{word} {number * 37}" if number % 3 == 0 else word),
    "keywords": lambda text: " ".join(word for word in text.split() if len(word) > 4),
    "banner": lambda text: "\n".join(f"{line}\nSubscribe to our newsletter today" for line in text.split("\n")),
    "twice": lambda text: f"{text}\n\n{text}",
    "loop": lambda text: f"{text} {' '.join(text.split()[-6:])}" + f" {' '.join(text.split()[-6:])}" * 9,
}  # fmt: skip
"""Name -> what makes a document one that the rules are meant to drop."""


def test_precision_and_recall_for_a_dirtied_copy_of_real_documents() -> None:
    clean = documents(of_code=False)
    dirty = [(name, change(text)) for name, change in DIRT.items() for text in clean]
    left, tally = filtered([*clean, *(text for _, text in dirty)])
    missed = Counter(name for name, text in dirty if text in set(left))
    wrong = len(clean) - len(set(left) & set(clean))
    assert len(clean) >= 45
    assert wrong <= 0.03 * len(clean)
    assert missed.total() <= 0.02 * len(dirty), missed
    assert len(tally.reasons) >= len(DIRT)


def test_most_documents_about_programming_are_dropped() -> None:
    found = documents(of_code=True)
    _, tally = filtered(found)
    assert tally.dropped >= 0.75 * len(found)
    assert tally.reasons.most_common(1)[0][0] == "less than 80% words with a letter"


def test_languages_without_spaces_are_known_languages() -> None:
    assert set(UNSPACED_LANGUAGES) < set(LANGUAGES)
