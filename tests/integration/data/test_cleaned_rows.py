"""`spec.data.cleaning` and groups in the prepare stage: counts, splits, reports, and independence of processes."""

import logging
import random
from collections.abc import Iterable
from typing import Any

import pytest

from finetune_api.trainer_config import Prepared
from finetune_trainer.data import build, comparison
from finetune_trainer.data.info import DATASET_FILE, read_dataset_info
from finetune_trainer.errors import BadConfigError, BadDataError
from finetune_trainer.model.tokenizer import load_tokenizer
from prepare_fixture import PrepareFixture
from rows import chats, classified, jsonl, tagged

NO_SPLITS = {"validation": {"fraction": 0}, "test": {"fraction": 0}}
EVERY_RULE = {
    "unicode": True,
    "whitespace": True,
    "redact": ["Email", "IpAddress"],
    "minChars": 2,
    "maxChars": 5_000,
    "exactDuplicates": True,
    "nearDuplicates": 0.7,
}


def sentences(count: int, seed: int = 1) -> list[str]:
    chosen = random.Random(seed)
    vocabulary = ["".join(chosen.choices("abcdefghij", k=chosen.randint(3, 8))) for _ in range(400)]
    return [" ".join(chosen.choices(vocabulary, k=25)) for _ in range(count)]


def dirty(count: int) -> list[dict[str, Any]]:
    """Two thirds of the rows are repeated, with changes that the rules undo or find."""
    rows = []
    for number, text in enumerate(sentences(count)):
        label = ("good", "bad", "mixed")[number % 3]
        rows += [
            {"text": f"{text} caf\u00e9", "label": label, "user": f"u{number % 10}"},
            {"text": f"{text}   caf\u00c3\u00a9\x00", "label": label, "user": f"u{number % 10}"},
            {"text": text.replace(text.split()[3], "someone"), "label": label, "user": f"u{number % 10}"},
        ]
    return rows


def test_rows_of_dirty_files_equal_those_of_clean_files(place: PrepareFixture, models) -> None:
    rows = dirty(40)
    uri = place.put("dirty.jsonl", jsonl([*rows, {"text": "jo@example.com", "label": "good"}]))
    cleaned = place.prepare(models["bert"], {"train": [{"uri": uri}], **NO_SPLITS, "cleaning": EVERY_RULE})
    clean = place.prepare(models["bert"], {"train": [{"uri": place.put("c.jsonl", jsonl(rows[::3]))}], **NO_SPLITS})
    one, other = (place.open(prepared) for prepared in (cleaned, clean))
    assert [one[index]["input_ids"].tolist() for index in range(len(one))] == [
        other[index]["input_ids"].tolist() for index in range(len(other))
    ]
    info = read_dataset_info(place.store, cleaned.dataset_uri)
    counts = {rule.rule: (rule.changed, rule.dropped, len(rule.examples)) for rule in info.rules}
    assert counts == {
        "unicode repair": (40, 0, 3),
        "white space": (40, 0, 0),
        "redaction": (0, 1, 1),
        "length": (0, 0, 0),
        "exact duplicates": (0, 40, 3),
        "near duplicates": (0, 40, 3),
    }
    assert info.dropped == {"redaction": 1, "exact duplicates": 40, "near duplicates": 40}
    shown = {rule.rule: rule.examples for rule in info.rules}
    assert shown["redaction"][0].text == "[EMAIL]"
    assert [example.place for example in shown["near duplicates"]] == [f"{uri} line {line}" for line in (3, 6, 9)]
    assert "jo@example.com" not in info.model_dump_json()


def same_dataset(place: PrepareFixture, results: Iterable[Prepared]) -> Prepared:
    """The last of some results of the prepare stage, each of which has built the same dataset anew."""
    found = set()
    for prepared in results:
        assert not prepared.reused
        uri = f"{prepared.dataset_uri}/{DATASET_FILE}"
        found.add(place.store.get(uri))
        place.store.delete(uri)
    assert len(found) == 1
    place.store.put(uri, found.pop())
    return prepared


@pytest.mark.parametrize("split", ["fraction", "files", "groups"])
def test_rows_are_the_same_with_any_number_of_processes_and_blocks(place, models, monkeypatch, split) -> None:
    rows = dirty(150)
    passages = [{"text": " ".join(row["text"].split()[:14]), "label": "good"} for row in rows[:90:9]]
    more = {
        "fraction": {},
        "files": {"test": {"sources": [{"uri": place.put("t.jsonl", jsonl(passages))}]}},
        "groups": {name: {"fraction": 0.2, "groupBy": "user"} for name in ("validation", "test")},
    }[split]
    uris = [{"uri": place.put(f"{name}.jsonl", jsonl(part))} for name, part in (("a", rows[:250]), ("b", rows[250:]))]
    data = {"train": uris, **more, "cleaning": {"nearDuplicates": 0.7, "testOverlap": True, "unicode": True}}

    def results():
        for workers, size in ((0, 3000), (2, 3000), (0, None)):
            with monkeypatch.context() as patch:
                if size is not None:
                    for name in ("BLOCK_BYTES", "_LARGEST_BLOCK", "_BUCKET_BYTES"):
                        patch.setattr(build, name, size)
                    patch.setattr(comparison, "_RANGE", 500)
                patch.setattr(build, "worker_count", lambda _, count=workers: count)
                prepared = place.prepare(models["bert"], data)
            yield prepared

    prepared = same_dataset(place, results())
    info = read_dataset_info(place.store, prepared.dataset_uri)
    assert info.dropped["near duplicates"] >= 290
    assert ("test overlap" in info.dropped) == (split == "files")


def test_training_records_that_overlap_a_drawn_split_are_dropped(place, models) -> None:
    """The held-out records themselves are kept, and so are training records that overlap each other only."""
    texts = sentences(100, seed=2)
    rows = [
        {"text": f"{text} {end}", "label": ("good", "bad")[number % 2]}
        for number, text in enumerate(texts)
        for end in "ab"
    ]
    uri = place.put("a.jsonl", jsonl(rows))
    data = {"train": [{"uri": uri}], "validation": {"fraction": 0}, "test": {"fraction": 0.2}}
    whole = place.prepare(models["bert"], data)
    cleaned = place.prepare(models["bert"], data | {"cleaning": {"testOverlap": True}})
    info = read_dataset_info(place.store, cleaned.dataset_uri)
    before, after = (
        {
            split: {tuple(row["input_ids"].tolist()[:-2]) for row in place.open(prepared, split)}
            for split in ("train", "test")
        }
        for prepared in (whole, cleaned)
    )
    assert after["test"] == before["test"]
    assert before["train"] & before["test"]
    assert not after["train"] & after["test"]
    assert info.dropped == {"test overlap": whole.counts.train - cleaned.counts.train}
    assert after["train"] == before["train"] - before["test"]


@pytest.mark.parametrize(("model", "data_format"), [("llama", "Chat"), ("bert", "TokenClassification")])
def test_every_rule_works_for_the_format(place, models, model, data_format) -> None:
    rows = chats(60) if data_format == "Chat" else tagged(60)
    uri = place.put("a.jsonl", jsonl([*rows, *rows[:5]]))
    data = {"train": [{"uri": uri}], "format": data_format, "cleaning": {**EVERY_RULE, "nearDuplicates": 1.0}}
    prepared = place.prepare(models[model], data)
    info = read_dataset_info(place.store, prepared.dataset_uri)
    assert info.dropped["exact duplicates"] >= 5
    assert len(info.rules) == 6


def test_a_rule_that_does_not_fit_the_detected_format_is_refused(place, models) -> None:
    uri = place.put("a.jsonl", jsonl(tagged(60)))
    with pytest.raises(BadConfigError) as caught:
        place.prepare(models["bert"], {"train": [{"uri": uri}], "cleaning": {"redact": ["Phone"]}})
    assert "spec.data.cleaning.redact must not have Phone with the format TokenClassification" in str(caught.value)


def test_held_out_records_that_redaction_empties_are_kept_with_a_remark(place, models) -> None:
    rows = classified(40)
    empty = [{"text": f"jo{number}@example.com", "label": rows[0]["label"]} for number in range(3)]
    data = {
        "train": [{"uri": place.put("a.jsonl", jsonl([*rows, *empty[:2]]))}],
        "validation": {"fraction": 0},
        "test": {"sources": [{"uri": place.put("t.jsonl", jsonl([*rows[:8], *empty]))}]},
        "cleaning": {"redact": ["Email"]},
    }
    prepared = place.prepare(models["bert"], data)
    info = read_dataset_info(place.store, prepared.dataset_uri)
    assert (info.dropped, info.counts.test) == ({"redaction": 2}, 11)
    remark = (
        "redaction left 3 records of the validation and test files with nothing but placeholders: they are kept, and "
        "make the metrics less reliable; remove them from the files"
    )
    assert remark in info.remarks
    assert remark in prepared.notes
    whole = place.prepare(
        models["bert"], data | {"test": {"sources": [{"uri": place.put("u.jsonl", jsonl(rows[:8]))}]}}
    )
    assert not any("placeholders" in text for text in read_dataset_info(place.store, whole.dataset_uri).remarks)


FILTERED = {
    "languages": ["en"],
    "quality": {"minWords": 8, "maxDuplicateLines": 0.9, "maxDuplicateLineChars": 0.9},
}
SENTENCES = {
    "en": "The library closes at {} in the evening, and nobody may stay inside after that.",
    "de": "Die Bibliothek schließt um {} Uhr abends, und danach darf niemand mehr im Gebäude bleiben.",
    "fr": "La bibliothèque ferme à {} heures du soir, et personne ne peut y rester après cette heure.",
}


def filtered_files(place: PrepareFixture) -> list[dict[str, str]]:
    """Two files: sentences in three languages, hash tags, and texts too short for a language."""
    rows = [{"text": sentence.format(number)} for number in range(60) for sentence in SENTENCES.values()]
    rows += [{"text": " ".join(f"#the #and of Thursday {number}" for _ in range(4))} for number in range(25)]
    rows += [{"text": "x of 1 the 2 y"} for _ in range(5)]
    return [{"uri": place.put(f"f{number}.jsonl", jsonl(part))} for number, part in enumerate((rows[:100], rows[100:]))]


def test_filters_count_reasons_and_give_the_same_rows_with_any_number_of_processes(place, models, monkeypatch) -> None:
    data = {"train": filtered_files(place), "format": "Text", **NO_SPLITS, "cleaning": FILTERED}

    def results():
        for workers in (0, 2):
            with monkeypatch.context() as patch:
                for name in ("BLOCK_BYTES", "_LARGEST_BLOCK"):
                    patch.setattr(build, name, 1000)
                patch.setattr(build, "worker_count", lambda _, count=workers: count)
                prepared = place.prepare(models["llama"], data)
            yield prepared

    prepared = same_dataset(place, results())
    info = read_dataset_info(place.store, prepared.dataset_uri)
    assert {rule.rule: rule.reasons for rule in info.rules} == {
        "languages": {"de": 60, "fr": 60},
        "quality": {"more than 0.1 # per word": 25, "fewer than 8 words": 5},
    }
    assert prepared.counts.train == 60
    assert info.remarks == (
        "languages: records without a certain language: 30. They are kept: they are short, or not in one language",
        "languages dropped 120 records (de 60, fr 60)",
        "quality dropped 30 records (more than 0.1 # per word 25, fewer than 8 words 5)",
    )
    assert set(info.remarks) <= set(prepared.notes)


def test_filters_that_leave_nothing_are_refused_with_the_reasons(place, models) -> None:
    data = {"train": filtered_files(place), "format": "Text", **NO_SPLITS}
    with pytest.raises(BadDataError) as caught:
        place.prepare(models["llama"], data | {"cleaning": {"languages": ["it"], "quality": {"minStopWords": 0}}})
    assert (
        "the training split is empty; the step 'languages' removed 180 records (de 60, en 60, fr 60); "
        "the step 'quality' removed 30 records (fewer than 50 words 30)"
    ) in str(caught.value)


def test_the_quality_rule_is_refused_for_a_detected_format_other_than_text(place, models) -> None:
    uri = place.put("a.jsonl", jsonl(classified(60)))
    with pytest.raises(BadConfigError) as caught:
        place.prepare(models["bert"], {"train": [{"uri": uri}], "cleaning": {"quality": {}}})
    assert "spec.data.cleaning.quality must be absent with the format Classification" in str(caught.value)


def test_the_log_has_counts_and_examples(place, models, caplog) -> None:
    uri = place.put("a.jsonl", jsonl([*classified(60), {"text": "caf\u00c3\u00a9", "label": "good"}]))
    with caplog.at_level(logging.INFO, "finetune"):
        place.prepare(models["bert"], {"train": [{"uri": uri}], "cleaning": {"unicode": True}})
    lines = [record.getMessage() for record in caplog.records]
    assert "unicode repair: changed 1 record, dropped 0 records" in lines
    assert f"  {uri} line 61: 'caf\u00c3\u00a9' is now 'caf\u00e9'" in lines


GROUPED = {name: {"fraction": 0.2, "groupBy": "user"} for name in ("validation", "test")}


def users_of(place: PrepareFixture, prepared: Any, tokens: dict[tuple[int, ...], str]) -> dict[str, set[str]]:
    return {
        split: {tokens[tuple(row["input_ids"].tolist()[:40])] for row in place.open(prepared, split)}
        for split in ("train", "validation", "test")
    }


def test_all_records_of_a_group_are_in_the_same_split(place, models) -> None:
    rows = [
        {"text": text, "label": ("good", "bad")[number % 2], "user": number % 30}
        for number, text in enumerate(sentences(300, seed=3))
    ]
    uri = place.put("a.jsonl", jsonl(rows))
    prepared = place.prepare(models["bert"], {"train": [{"uri": uri}], **GROUPED})
    tokenizer = load_tokenizer(models["bert"])
    tokens = {tuple(tokenizer(row["text"]).input_ids[:40]): str(row["user"]) for row in rows}
    users = users_of(place, prepared, tokens)
    assert {split: len(found) for split, found in users.items()} == {"train": 18, "validation": 6, "test": 6}
    assert len(set.union(*users.values())) == 30
    again = place.prepare(models["bert"], {"train": [{"uri": uri}], **GROUPED})
    assert (again.dataset_digest, again.reused) == (prepared.dataset_digest, True)
    other = place.prepare(models["bert"], {"train": [{"uri": uri}], **GROUPED}, training={"learningRate": 1, "seed": 5})
    assert users_of(place, other, tokens)["test"] != users["test"]
    whole = place.prepare(models["bert"], {"train": [{"uri": uri}]})
    assert whole.dataset_digest != prepared.dataset_digest


def test_groups_that_cannot_be_divided_are_refused_or_reported(place, models) -> None:
    rows = classified(60)
    one = place.put("one.jsonl", jsonl([{**row, "user": "a"} for row in rows]))
    with pytest.raises(BadDataError) as caught:
        place.prepare(models["bert"], {"train": [{"uri": one}], **GROUPED})
    assert "the training records have the same value in the column 'user' of groupBy" in str(caught.value)
    missing = place.put(
        "missing.jsonl", jsonl([*({**row, "user": "a"} for row in rows), rows[0], {**rows[1], "user": None}])
    )
    with pytest.raises(BadDataError) as caught:
        place.prepare(models["bert"], {"train": [{"uri": missing}], **GROUPED})
    assert "no column 'user'" in str(caught.value)
    assert "column 'user' is empty" in str(caught.value)
    three = place.put("three.jsonl", jsonl([{**row, "user": number // 20} for number, row in enumerate(rows)]))
    prepared = place.prepare(models["bert"], {"train": [{"uri": three}], **GROUPED})
    assert (prepared.counts.train, prepared.counts.validation, prepared.counts.test) == (20, 20, 20)
    info = read_dataset_info(place.store, prepared.dataset_uri)
    assert any("the test split has 33.3% of the records instead of 20.0%" in remark for remark in info.remarks)
