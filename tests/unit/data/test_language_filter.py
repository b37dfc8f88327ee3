"""`spec.data.cleaning.languages`: which records are dropped, for real lines in 17 languages."""

import random
from functools import cache
from typing import Any

import pytest
from ruamel.yaml import YAML

from finetune_api.v1alpha1 import BadRecordAction, DataFormat, Spec
from finetune_api.v1alpha1.data import LANGUAGES
from finetune_trainer.data.formats import Example
from finetune_trainer.data.pipeline import Phase, Tally, optional
from finetune_trainer.data.problems import BadRecords, Place
from finetune_trainer.data.steps import languages
from real_models import package_folder

FOLDERS = {
    "bengali": "bn", "chinese": "zh", "dutch": "nl", "english": "en", "french": "fr", "german": "de", "hebrew": "he",
    "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko", "persian": "fa", "portuguese": "pt",
    "russian": "ru", "spanish": "es", "turkish": "tr", "ukrainian": "uk",
}  # fmt: skip
"""Folder of chatterbot-corpus -> language. The other folders are small, or have many lines in English."""
SENTENCES = {
    "en": "The library closes at eight in the evening, and nobody may stay inside after that.",
    "de": "Die Bibliothek schließt um acht Uhr abends, und danach darf niemand mehr im Gebäude bleiben.",
    "fr": "La bibliothèque ferme à huit heures du soir, et personne ne peut y rester après cette heure.",
    "ja": "図書館は午後八時に閉まり、その後は誰も館内に残ることができません。",
}


@cache
def lines_of(folder: str) -> tuple[str, ...]:
    """The distinct lines of the conversations of a language."""
    found: dict[str, None] = {}
    for path in sorted((package_folder("chatterbot_corpus", "chatterbot-corpus") / "data" / folder).glob("*.yml")):
        for turns in YAML(typ="safe").load(path).get("conversations") or ():
            found |= dict.fromkeys(str(line).strip() for line in turns)
    return tuple(line for line in found if line)


def texts_of(folder: str, count: int, size: int) -> list[str]:
    """Texts of about `size` characters, of randomly drawn lines."""
    draw, lines = random.Random(size), lines_of(folder)
    texts = []
    for _ in range(count):
        text = ""
        while len(text) < size:
            text = f"{text} {draw.choice(lines)}".strip()
        texts.append(text[:size])
    return texts


def examples_of(texts: list[str]) -> list[Example]:
    return [Example(text=text, place=Place("a", number)) for number, text in enumerate(texts, start=1)]


def filtered(examples: list[Example], *wanted: str, training: bool = True) -> tuple[list[str], Tally]:
    """The texts that are left, and what the step counts."""
    (step,) = optional(spec_of({"languages": [*wanted]}), Phase.EXAMPLES)
    tally = Tally(BadRecords(BadRecordAction.FAIL), in_training=training)
    return [example.text for example in step.apply(iter(examples), tally)], tally


def spec_of(cleaning: dict[str, Any]) -> Spec:
    return Spec.model_validate(
        {
            "model": {"uri": "s3://bucket/model"},
            "data": {"train": [{"uri": "s3://bucket/a.jsonl"}], "format": DataFormat.TEXT, "cleaning": cleaning},
            "training": {"learningRate": 1e-3},
            "output": {"uri": "s3://bucket/out"},
        }
    )


def test_records_in_other_languages_are_dropped_and_counted_by_language() -> None:
    left, tally = filtered(examples_of([*SENTENCES.values(), SENTENCES["fr"]]), "en", "de")
    assert left == [SENTENCES["en"], SENTENCES["de"]]
    assert (tally.dropped, tally.reasons) == (3, {"fr": 2, "ja": 1})
    assert [shown.place for shown in tally.examples] == ["a line 3", "a line 4", "a line 5"]
    assert tally.examples[0].text.startswith("fr (100%): La bibliothèque")


def test_records_of_held_out_files_are_kept_in_any_language() -> None:
    left, tally = filtered(examples_of([*SENTENCES.values()]), "en", training=False)
    assert (left, tally.dropped, tally.examples) == ([*SENTENCES.values()], 0, [])


NUMBERS = " ".join(str(number**3) for number in range(99))


@pytest.mark.parametrize(
    "text", ["ok", "Hallo", "12 345 67.8", NUMBERS, "x = [f(i) for i in range(9)]", "[EMAIL] [URL]", "\U0001f600", ""]
)
def test_texts_without_a_certain_language_are_kept_and_counted(text: str) -> None:
    (step,) = optional(spec_of({"languages": ["th"]}), Phase.EXAMPLES)
    left, tally = filtered(examples_of([text, SENTENCES["en"]]), "th")
    assert (left, tally.dropped) == ([text], 1)
    assert step.report(tally.counts) == (
        "languages: records without a certain language: 1. They are kept: they are short, or not in one language",
    )


def test_without_uncertain_records_there_is_no_remark() -> None:
    (step,) = optional(spec_of({"languages": ["en"]}), Phase.EXAMPLES)
    _, tally = filtered(examples_of([SENTENCES["en"], SENTENCES["ja"]]), "en")
    assert step.report(tally.counts) == ()


def test_a_conversation_is_judged_by_its_messages_and_not_by_its_template() -> None:
    template = f"<|im_start|>system\n{SENTENCES['en'] * 9}<|im_end|>"
    chat = Example(text=template, place=Place("a", 1), parts=(template,), messages=(SENTENCES["de"], SENTENCES["de"]))
    assert filtered([chat], "de")[1].dropped == 0
    assert filtered([chat], "en")[1].reasons == {"de": 1}


def test_a_long_text_is_judged_by_its_beginning_middle_and_end() -> None:
    german, french = SENTENCES["de"] * 9, SENTENCES["fr"] * 200
    for parts in (
        (german, "12 " * 900, german),
        ("12 " * 900, german * 3),
        (german * 3, "12 " * 900),
        (german, french, german, french, german),
    ):
        assert filtered(examples_of(["\n".join(parts)]), "en")[1].reasons == {"de": 1}


PRECISION, RECALL = 0.98, {25: 0.65, 50: 0.9, 100: 0.97, 300: 0.99}
"""Required share of the dropped records that are in another language; characters of a text -> required share of the
records in another language that are dropped."""


@pytest.mark.parametrize("size", RECALL)
def test_precision_and_recall_for_real_lines_in_seventeen_languages(size: int) -> None:
    texts = {code: texts_of(folder, 40, size) for folder, code in FOLDERS.items()}
    kept = sum(len(filtered(examples_of(found), code)[0]) for code, found in texts.items())
    assert kept >= 0.99 * 40 * len(FOLDERS)
    right = dropped = 0
    for wanted in ("en", "de", "ja"):
        wrongly_dropped = filtered(examples_of(texts[wanted]), wanted)[1].dropped
        rightly_dropped = sum(
            filtered(examples_of(found), wanted)[1].dropped for code, found in texts.items() if code != wanted
        )
        dropped += wrongly_dropped + rightly_dropped
        right += rightly_dropped
    assert right / dropped >= PRECISION
    assert right / (3 * 40 * (len(FOLDERS) - 1)) >= RECALL[size]


def test_the_digest_depends_on_the_set_of_languages_and_the_version_of_the_library() -> None:
    (one,), (other,), (third,) = (
        optional(spec_of({"languages": wanted}), Phase.EXAMPLES) for wanted in (["en", "de"], ["de", "en"], ["en"])
    )
    assert one.parameters == other.parameters != third.parameters
    assert one.parameters["py3langid"].count(".") == 2


def test_the_codes_of_the_api_are_those_of_the_library() -> None:
    assert set(LANGUAGES) == set(languages._identifier().labels) - {"zxx"}
