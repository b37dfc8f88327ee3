"""`spec.data.augmentation`: copies of training records in the training split alone."""

import json
import random
import re
from typing import Any

import pytest

from finetune_trainer.data import build
from finetune_trainer.data.augmentation.step import augmentation_of
from finetune_trainer.data.info import DATASET_FILE, read_dataset_info
from finetune_trainer.data.sources import listing_digest
from finetune_trainer.errors import BadConfigError, BadDataError
from finetune_trainer.model.tokenizer import load_tokenizer
from prepare_fixture import PrepareFixture
from rows import classified, jsonl

SPLITS = {"validation": {"fraction": 0.2}, "test": {"fraction": 0.2}}
SWAPS: dict[str, Any] = {"augmentation": {"copies": 2, "methods": ["WordSwap", "WordDropout"], "rate": 0.3}}
Row = tuple[tuple[int, ...], str]


def rows_of(place: PrepareFixture, prepared: Any) -> dict[str, list[Row]]:
    found = {}
    for split in ("train", "validation", "test"):
        dataset = place.open(prepared, split)
        rows = (dataset[index] for index in range(len(dataset)))
        found[split] = [(tuple(row["input_ids"].tolist()), str(row["labels"])) for row in rows]
    return found


def records() -> list[dict[str, Any]]:
    """Different texts of several words."""
    return [{**row, "text": f"{row['text']} and {number} more"} for number, row in enumerate(classified(90))]


@pytest.fixture
def uri(place):
    return place.put("a.jsonl", jsonl(records()))


def test_copies_of_training_records_are_in_no_other_split_and_the_rows_of_all_splits_stay(place, bert, uri):
    data = {"train": [{"uri": uri}], **SPLITS}
    plain, augmented = place.prepare(bert, data), place.prepare(bert, data | SWAPS)
    before, after = rows_of(place, plain), rows_of(place, augmented)
    assert (before["validation"], before["test"]) == (after["validation"], after["test"])
    count = len(before["train"])
    assert after["train"][:count] == before["train"]

    augmentation = augmentation_of(place.config(bert, data | SWAPS).spec, {}, "")
    assert augmentation is not None
    tokenizer = load_tokenizer(bert)
    copies_of: dict[tuple[int, ...], set[tuple[int, ...]]] = {
        tuple(tokenizer(row["text"])["input_ids"]): {
            tuple(tokenizer(copy)["input_ids"]) for copy in augmentation.copies_of(row["text"])
        }
        for row in records()
    }
    added = after["train"][count:]
    expected = set().union(*(copies_of[tokens] for tokens, _ in before["train"]))
    assert {tokens for tokens, _ in added} == expected
    held_out = set().union(*(copies_of[tokens] for name in ("validation", "test") for tokens, _ in before[name]))
    assert held_out - expected, "the held-out records have copies that could leak"
    assert not {tokens for tokens, _ in added} & (held_out - expected)
    labels = {copy: label for tokens, label in before["train"] for copy in copies_of[tokens]}
    assert all(labels[tokens] == label for tokens, label in added)


def test_copies_are_counted_and_some_are_shown(place, bert, uri):
    data = {"train": [{"uri": uri}], **SPLITS}
    prepared = place.prepare(bert, data | SWAPS)
    info = read_dataset_info(place.store, prepared.dataset_uri)
    (rule,) = info.rules
    assert (rule.rule, rule.changed, rule.dropped) == ("augmentation", 0, 0)
    assert 54 < rule.added == prepared.counts.train - 54 <= 108
    assert [(each.rule, each.added) for each in prepared.rules] == [("augmentation", rule.added)]
    assert len(rule.examples) == 3
    texts = {f"{uri} line {number}": row["text"] for number, row in enumerate(records(), 1)}
    for shown in rule.examples:
        before, after = re.fullmatch("'(.*)' is now '(.*)'", shown.text).groups()
        assert " ".join(texts[shown.place].split()).endswith(before)
        assert before != after
    assert f"augmentation added {rule.added} copies of training records" in prepared.notes
    assert sum(info.label_counts["train"].values()) == prepared.counts.train


def test_only_rare_classes_get_copies_and_only_as_many_as_they_lack(place, bert):
    """Of 60, 12 and 2 training records, for a minimum of 20: a record of the last class has only 4 copies."""
    classes = {"often": 60, "seldom": 12, "hardly": 2}
    rows = [
        {"text": f"red green blue {label} {number}", "label": label}
        for label, count in classes.items()
        for number in range(count)
    ]
    data = {
        "train": [{"uri": place.put("a.jsonl", jsonl(rows))}],
        "validation": {"fraction": 0},
        "test": {"sources": [{"uri": place.put("b.jsonl", jsonl(rows[:3]).replace(b"red", b"pink"))}]},
    }
    rare = {"augmentation": {"copies": 4, "methods": ["CharacterNoise"], "rate": 0.5, "minPerClass": 20}}
    plain, augmented = place.prepare(bert, data), place.prepare(bert, data | rare)
    info = read_dataset_info(place.store, augmented.dataset_uri)
    assert info.label_counts["train"] == {"often": 60, "seldom": 20, "hardly": 10}
    before, after = rows_of(place, plain)["train"], rows_of(place, augmented)["train"]
    assert after[: len(before)] == before
    (note,) = (note for note in augmented.notes if "minPerClass" in note)
    assert note.startswith("1 classes have fewer than spec.data.augmentation.minPerClass (20) training records, ")
    assert note.endswith("raise copies: hardly (10)")


def test_without_augmentation_the_file_is_as_in_earlier_versions(place, bert, uri):
    prepared = place.prepare(bert, {"train": [{"uri": uri}], **SPLITS})
    assert "rules" not in json.loads(place.store.get(f"{prepared.dataset_uri}/{DATASET_FILE}"))


def test_no_example_shows_personal_data_that_a_copy_has_changed(place, bert):
    rows = [{**row, "text": f"write to jo{number}@example.com today"} for number, row in enumerate(records())]
    rows[0]["text"] = "a text without an address"
    data = {
        "train": [{"uri": place.put("a.jsonl", jsonl(rows))}],
        "validation": {"fraction": 0},
        "test": {"fraction": 0},
    }
    noise = {"augmentation": {"copies": 3, "methods": ["CharacterNoise"], "rate": 0.5}}
    prepared = place.prepare(bert, data | noise)
    (rule,) = read_dataset_info(place.store, prepared.dataset_uri).rules
    assert rule.added > len(rows)
    assert [shown.place.rpartition(" ")[2] for shown in rule.examples] == ["1"]


def test_copies_are_made_of_clean_records_and_only_of_those_that_are_left(place, bert):
    """The rules compare records and not their copies, and the copies have the repaired text."""
    chosen = random.Random(1)
    words = ["".join(chosen.choices("abcdefgh", k=3)) for _ in range(300)]
    texts = [" ".join(chosen.choices(words, k=9)) for _ in range(90)]
    rows = [{"text": f"{text}  caf\u00c3\u00a9", "label": "ab"[number % 2]} for number, text in enumerate(texts)]
    near = [{**row, "text": f"{row['text']} end"} for row in rows]
    held_out = place.put("test.jsonl", jsonl(rows[::5]))
    cleaning = {"unicode": True, "whitespace": True, "minChars": 10, "exactDuplicates": True, "nearDuplicates": 0.8}
    data = {
        "train": [{"uri": place.put("a.jsonl", jsonl([*rows, *near, {"text": "short", "label": rows[0]["label"]}]))}],
        "test": {"sources": [{"uri": held_out}]},
        "validation": {"fraction": 0.2},
        "cleaning": {**cleaning, "testOverlap": True},
    }
    plain, augmented = place.prepare(bert, data), place.prepare(bert, data | SWAPS)
    before, after = rows_of(place, plain), rows_of(place, augmented)
    count = len(before["train"])
    assert after["train"][:count] == before["train"] != []
    assert (after["validation"], after["test"]) == (before["validation"], before["test"])
    found = [read_dataset_info(place.store, prepared.dataset_uri) for prepared in (plain, augmented)]
    assert found[0].dropped == found[1].dropped
    rules = {rule.rule: rule for rule in found[1].rules}
    assert {rule.rule: rule for rule in found[0].rules} == {
        name: rule for name, rule in rules.items() if name != "augmentation"
    }
    assert min(rules[name].dropped for name in ("length", "near duplicates")) > 0
    assert rules["augmentation"].added == len(after["train"]) - count > count
    tokenizer = load_tokenizer(bert)
    found = [sorted(tokenizer.decode(tokens, skip_special_tokens=True).split()) for tokens, _ in after["train"]]
    assert all("caf\u00e9" in each for each in found[:count])
    swapped = [each for each in found[count:] if each in found[:count]]
    assert len(swapped) == count, "copies of WordSwap have the words of a clean record that is trained on"


def test_copies_of_groups_stay_in_training(place, bert):
    rows = [{**row, "user": f"u{number % 12}"} for number, row in enumerate(records())]
    grouped = {name: {"fraction": 0.2, "groupBy": "user"} for name in ("validation", "test")}
    data = {"train": [{"uri": place.put("a.jsonl", jsonl(rows))}], **grouped}
    before, after = (rows_of(place, place.prepare(bert, data | more)) for more in ({}, SWAPS))
    assert (before["validation"], before["test"]) == (after["validation"], after["test"])
    assert after["train"][: len(before["train"])] == before["train"]
    assert len(after["train"]) > len(before["train"])


def test_a_few_shot_subset_is_augmented_after_it_is_drawn(place, bert, uri):
    few = {"train": [{"uri": uri}], **SPLITS, "fewShot": {"perClass": 4}}
    subset = rows_of(place, place.prepare(bert, few))["train"]
    augmented = rows_of(place, place.prepare(bert, few | SWAPS))["train"]
    assert augmented[: len(subset)] == subset
    assert len(subset) < len(augmented) <= 3 * len(subset)


def test_long_texts_and_their_copies_are_divided(place, llama):
    texts = [{"text": " ".join(row["text"] for row in classified(60)[at : at + 12])} for at in range(48)]
    data = {"train": [{"uri": place.put("t.jsonl", jsonl(texts))}], "format": "Text", "maxLength": 16, **SPLITS}
    plain, augmented = place.prepare(llama, data), place.prepare(llama, data | SWAPS)
    before, after = rows_of(place, plain), rows_of(place, augmented)
    assert after["train"][: len(before["train"])] == before["train"]
    assert (before["validation"], before["test"]) == (after["validation"], after["test"])
    info = read_dataset_info(place.store, augmented.dataset_uri)
    of_plain = read_dataset_info(place.store, plain.dataset_uri).documents
    assert info.documents["train"] == of_plain["train"] + info.rules[0].added
    assert info.documents["test"] == of_plain["test"]


@pytest.mark.parametrize("workers", [1, 8])
def test_the_rows_are_the_same_with_any_number_of_processes(place, bert, uri, monkeypatch, workers):
    data = {"train": [{"uri": uri}], **SPLITS, **SWAPS}
    for name in ("BLOCK_BYTES", "_LARGEST_BLOCK", "_BUCKET_BYTES"):
        monkeypatch.setattr(build, name, 1500)
    found = []
    for number in (0, workers):
        monkeypatch.setattr(build, "worker_count", lambda _, number=number: number)
        prepared = place.prepare(bert, data)
        assert not prepared.reused
        found.append((prepared.dataset_digest, rows_of(place, prepared)))
        place.store.delete(f"{prepared.dataset_uri}/{DATASET_FILE}")
    assert found[0] == found[1]


def test_the_digest_depends_on_the_content_of_the_synonyms(place, bert, uri):
    digests = set()
    for name, word in (("a", "nice"), ("b", "nice"), ("c", "fine")):
        file = place.put(f"{name}.csv", f"word,synonyms\nand,{word}\n".encode())
        augmentation = {"methods": ["Synonym"], "synonyms": {"uri": file}}
        prepared = place.prepare(bert, {"train": [{"uri": uri}], "augmentation": augmentation})
        digests.add(prepared.dataset_digest)
    assert len(digests) == 2


def test_a_poll_observes_the_file_of_synonyms(place, bert, uri):
    digests = set()
    for content in (b"word,synonyms\nand,or\n", b"word,synonyms\nand,nor\n"):
        augmentation = {"methods": ["Synonym"], "synonyms": {"uri": place.put("synonyms.csv", content)}}
        config = place.config(bert, {"train": [{"uri": uri}], "augmentation": augmentation})
        digests.add(listing_digest(config.spec.data, place.store))
    assert len(digests) == 2


def test_more_than_one_file_of_synonyms_is_refused(place, bert, uri):
    for name in "ab":
        place.put(f"synonyms-{name}.csv", b"word,synonyms\nand,or\n")
    synonyms = {"uri": f"{place.uri}/data/synonyms-*.csv"}
    with pytest.raises(BadDataError, match="names 2 files"):
        place.prepare(bert, {"train": [{"uri": uri}], "augmentation": {"methods": ["Synonym"], "synonyms": synonyms}})


def test_formats_whose_texts_have_parts_are_refused(place, llama):
    rows = [{"prompt": row["label"], "completion": row["text"]} for row in classified(30)]
    uri = place.put("i.jsonl", jsonl(rows))
    with pytest.raises(BadConfigError, match=r"spec.data.augmentation must be absent for the format Instruction"):
        place.prepare(llama, {"train": [{"uri": uri}], **SWAPS})
