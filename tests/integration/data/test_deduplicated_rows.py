"""`spec.data.cleaning.exactDuplicates`: the rows equal those of files from which duplicates were removed by hand."""

import json
import unicodedata
from typing import Any

import pytest

from finetune_trainer.data import build
from finetune_trainer.data.info import DATASET_FILE, read_dataset_info
from finetune_trainer.data.prepare import notes_of
from finetune_trainer.errors import BadDataError
from prepare_fixture import PrepareFixture
from rows import chats, classified, jsonl

CLEANED = {"cleaning": {"exactDuplicates": True}}
MORE = [(row["text"], row["label"], True) for row in classified(40)]
MORE_HELD_OUT = [(f"{text} again", label, True) for text, label, _ in MORE]
"""Records without duplicates: text, label, whether it is kept."""


def rows_of(place: PrepareFixture, prepared: Any) -> dict[str, list[tuple[list[int], Any]]]:
    """Split -> tokens and targets of each row, as training reads them."""
    found = {}
    for split in ("train", "validation", "test"):
        dataset = place.open(prepared, split)
        rows = [dataset[index] for index in range(len(dataset))]
        found[split] = [(row["input_ids"].tolist(), _plain(row["labels"])) for row in rows]
    return found


def _plain(labels: Any) -> Any:
    return labels if isinstance(labels, int) else labels.tolist()


Files = dict[str, list[tuple[str, str, bool]]]

CASES: dict[str, tuple[dict[str, Files], dict[str, Any], list[str]]] = {
    "within a file": (
        {"train": {"a": [("a good film", "good", True), *MORE, ("a good film", "good", False)]}},
        {},
        [],
    ),
    "across files": (
        {
            "train": {
                "a": [("a good film", "good", True), *MORE[:20], ("a book", "bad", True)],
                "b": [("a good film", "good", False), *MORE[20:], (*MORE[3][:2], False)],
                "c": [("a book", "bad", False)] * 3,
            }
        },
        {"validation": {"fraction": 0.3}, "test": {"fraction": 0.2, "stratify": False}},
        [],
    ),
    "white space and accents": (
        {
            "train": {
                "a": [
                    (" a good\t\tfilm\n", "good", True),
                    ("a good film", "good", False),
                    ("a\u00a0good film", "good", False),
                    ("a goodfilm", "good", True),
                    ("a caf\u00e9", "good", True),
                    ("a cafe\u0301", "good", False),
                    *MORE,
                ]
            }
        },
        {},
        [],
    ),
    "different labels": (
        {
            "train": {
                "a": [("a film", "good", True), ("a film", "bad", False), ("a film", "mixed", False), *MORE],
                "b": [("a book", "bad", True), ("a book", "good", False), ("a film ", "good", False)],
            }
        },
        {"validation": {"fraction": 0}},
        ["texts with different labels: 2. The label of the first record is used, or that of a held-out file"],
    ),
    "spellings of one label": (
        {
            "train": {
                "a": [
                    ("a film", "1.0", True),
                    *[(text, str(number % 3), True) for number, (text, *_) in enumerate(MORE)],
                ],
                "b": [("a  film", "1", False), ("a book", "TRUE", True), ("a book", "true", False)],
            }
        },
        {},
        [],
    ),
    "held-out files": (
        {
            "train": {"a": [("a film", "good", False), *MORE, ("a\nbook", "bad", False), (" a  book", "good", False)]},
            "validation": {"v": [("a film", "good", True), *MORE_HELD_OUT[:5]]},
            "test": {"t": [("a book", "bad", True), ("a book", "bad", True), ("a film", "good", True)]},
        },
        {},
        [
            "texts with different labels: 1. The label of the first record is used, or that of a held-out file",
            "training records whose text is held out: 3. They are in a file of spec.data.validation or spec.data.test "
            "and are not trained on",
        ],
    ),
    "a held-out record that is skipped": (
        {
            "train": {"a": [("a film", "good", True), *MORE, ("a film", "good", False)]},
            "test": {"t": [("a film", "unknown", True), ("a book", "bad", True)]},
        },
        {"onBadRecord": "Skip"},
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_labeled_rows_equal_those_of_files_without_duplicates(place, models, case):
    splits, data, remarks = CASES[case]

    def prepared(folder: str, *, by_hand: bool) -> Any:
        uris = {
            split: [
                {
                    "uri": place.put(
                        f"{folder}/{split}/{name}.jsonl",
                        jsonl([{"text": text, "label": label} for text, label, stays in rows if stays or not by_hand]),
                    )
                }
                for name, rows in files.items()
                if not by_hand or any(stays for *_, stays in rows)
            ]
            for split, files in splits.items()
        }
        held_out = {split: {"sources": uris[split]} for split in ("validation", "test") if split in uris}
        cleaning = {} if by_hand else CLEANED
        return place.prepare(models["bert"], {"train": uris["train"]} | held_out | data | cleaning)

    cleaned, expected = prepared("all", by_hand=False), prepared("unique", by_hand=True)
    assert rows_of(place, cleaned) == rows_of(place, expected)
    info, other = (read_dataset_info(place.store, each.dataset_uri) for each in (cleaned, expected))
    removed = sum(not stays for files in splits.values() for rows in files.values() for *_, stays in rows)
    assert info.dropped == {**other.dropped, "exact duplicates": removed}
    assert (info.counts, info.labels, info.label_counts) == (other.counts, other.labels, other.label_counts)
    assert [remark for remark in info.remarks if remark not in other.remarks] == remarks
    (first, *_) = notes_of(info, (), 1024)
    assert first.startswith(f"dropped {sum(info.dropped.values())} records: exact duplicates {removed}")
    assert set(remarks) <= set(cleaned.notes)


INSTRUCTIONS = [{"prompt": f"add {number} and {number}", "completion": f"it is {2 * number}"} for number in range(30)]
LANGUAGE: dict[str, tuple[str, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "Text": (
        "plain",
        [{"text": f"document {number}\n\nof words"} for number in range(30)],
        [
            {"text": "document 3 of words\n"},
            {"text": " document 4\nof  words </s>\n"},
            {"text": " document 5 of words"},
        ],
    ),
    "Instruction": (
        "plain",
        [*INSTRUCTIONS, INSTRUCTIONS[0] | {"completion": "nothing"}, INSTRUCTIONS[0] | {"input": "now"}],
        [{"prompt": "add 3 and 3 ", "completion": "it is 6\n"}, INSTRUCTIONS[4], INSTRUCTIONS[0] | {"input": " "}],
    ),
    "Instruction with a template": (
        "llama",
        [*INSTRUCTIONS, INSTRUCTIONS[0] | {"completion": "nothing"}],
        [{"prompt": "add 3 and 3 ", "completion": "\nit is 6\n"}, INSTRUCTIONS[4], INSTRUCTIONS[4]],
    ),
    "Chat": (
        "llama",
        [*chats(30), {"messages": chats(1)[0]["messages"] * 2}],
        [
            chats(5)[3],
            {"messages": [{**m, "content": m["content"].replace(" ", "  ")} for m in chats(7)[6]["messages"]]},
        ],
    ),
}


@pytest.mark.parametrize("case", LANGUAGE)
def test_rows_of_language_models_equal_those_of_files_without_duplicates(place, models, case):
    model, unique, duplicates = LANGUAGE[case]
    data = {"format": case.split()[0], "test": {"fraction": 0.2}}
    every = place.put("all.jsonl", jsonl([*unique[:20], *duplicates[:1], *unique[20:], *duplicates[1:]]))
    cleaned = place.prepare(models[model], {"train": [{"uri": every}], **data, **CLEANED})
    by_hand = place.prepare(models[model], {"train": [{"uri": place.put("unique.jsonl", jsonl(unique))}], **data})
    assert rows_of(place, cleaned) == rows_of(place, by_hand)
    assert read_dataset_info(place.store, cleaned.dataset_uri).dropped == {"exact duplicates": len(duplicates)}


def test_other_rows_keep_their_order(place, models):
    rows = classified(60)
    uri = place.put("a.jsonl", jsonl([*rows, *rows[:30], *rows[10:20]]))
    data = {"train": [{"uri": uri}], "validation": {"fraction": 0}, "test": {"fraction": 0}}
    cleaned, whole = (rows_of(place, place.prepare(models["bert"], data | more))["train"] for more in (CLEANED, {}))
    assert len(whole) == 100
    assert cleaned == [row for index, row in enumerate(whole) if row not in whole[:index]]


def test_a_spelled_out_default_gives_the_same_data_set(place, models):
    data = {"train": [{"uri": place.put("a.jsonl", jsonl(classified(60)))}]}
    digest = place.prepare(models["bert"], data).dataset_digest
    again = place.prepare(models["bert"], data | {"cleaning": {"exactDuplicates": False}})
    assert (again.dataset_digest, again.reused) == (digest, True)
    assert place.prepare(models["bert"], data | CLEANED).dataset_digest != digest


def test_renamed_files_whose_first_records_change_give_another_data_set(place, models):
    """Without the step, they do not."""
    rows = classified(60)
    contents = [jsonl([*rows[:30], {"text": "a film", "label": label}]) for label in ("good", "bad")]
    found = []
    for folder, (one, other) in {"x": contents, "y": contents[::-1]}.items():
        data = {
            "train": [{"uri": place.put(f"{folder}/{name}.jsonl", each)} for name, each in (("a", one), ("b", other))]
        }
        data |= {"validation": {"fraction": 0}, "test": {"fraction": 0}}
        found.append([place.prepare(models["bert"], data | more) for more in (CLEANED, {})])
    (cleaned, whole), (cleaned_renamed, whole_renamed) = found
    assert whole_renamed.dataset_digest == whole.dataset_digest
    assert cleaned_renamed.dataset_digest != cleaned.dataset_digest
    assert len(rows_of(place, cleaned)["train"]) == 31
    assert rows_of(place, cleaned) != rows_of(place, cleaned_renamed)


def many(rows: int) -> list[dict[str, Any]]:
    """Every text three times with different spelling, some with another label, far from each other."""
    spellings = ("{}", "  {}\n", "{}\t")
    texts = [f"caf\u00e9 {number % (rows // 3)} is good" for number in range(rows)]
    return [
        {
            "text": unicodedata.normalize("NFD" if number % 2 else "NFC", spellings[number % 3].format(text)),
            "label": ("1.0", "2.0", "1", "3.0")[number * 7 % 4],
        }
        for number, text in enumerate(texts)
    ]


def test_rows_are_the_same_with_any_number_of_processes_and_blocks(place, models, monkeypatch):
    rows, held_out = many(602), many(602)[:20:5]
    uris = [{"uri": place.put(f"{name}.jsonl", jsonl(part))} for name, part in (("a", rows[:350]), ("b", rows[350:]))]
    data = {"train": uris, "test": {"sources": [{"uri": place.put("t.jsonl", jsonl(held_out))}]}}
    with monkeypatch.context() as small:
        for name, size in (("BLOCK_BYTES", 2000), ("_LARGEST_BLOCK", 2000), ("_BUCKET_BYTES", 3000)):
            small.setattr(build, name, size)
        found = set()
        for workers in (0, 1, 2):
            small.setattr(build, "worker_count", lambda _, count=workers: count)
            prepared = place.prepare(models["bert"], data | CLEANED)
            assert not prepared.reused
            uri = f"{prepared.dataset_uri}/{DATASET_FILE}"
            found.add(place.store.get(uri))
            place.store.delete(uri)
    whole = place.prepare(models["bert"], data | CLEANED)
    found.add(place.store.get(f"{whole.dataset_uri}/{DATASET_FILE}"))
    assert len(found) == 1

    def compared(row: dict[str, Any]) -> str:
        return " ".join(unicodedata.normalize("NFC", row["text"]).split())

    first = {compared(row): row for row in reversed(rows)}
    held_out_texts = {compared(row) for row in held_out}
    unique = [row for row in rows if first[compared(row)] is row and compared(row) not in held_out_texts]
    by_hand = place.prepare(models["bert"], data | {"train": [{"uri": place.put("unique.jsonl", jsonl(unique))}]})
    assert rows_of(place, whole) == rows_of(place, by_hand)
    assert json.loads(found.pop())["dropped"] == {"exact duplicates": len(rows) - len(unique)}


def test_a_split_or_label_that_the_step_empties_is_reported(place, models):
    rows = [{"text": f"text {number}", "label": "good"} for number in range(20)]
    twice = [{**row, "label": "bad"} for row in rows]
    uri = place.put("a.jsonl", jsonl([*rows, *twice]))
    with pytest.raises(BadDataError) as caught:
        place.prepare(models["bert"], {"train": [{"uri": uri}], **CLEANED})
    assert "have the label 'good'; a classifier needs two; the step 'exact duplicates' removed 20" in str(caught.value)

    other = place.put("reversed.jsonl", jsonl([*twice, *rows]))
    test = {"test": {"sources": [{"uri": other}]}, "validation": {"fraction": 0}}
    with pytest.raises(BadDataError) as caught:
        place.prepare(models["bert"], {"train": [{"uri": uri}], **test, **CLEANED})
    assert "the training split is empty; the step 'exact duplicates' removed 40 records" in str(caught.value)

    uri = place.put("b.jsonl", jsonl([*classified(30), *twice[:2], *({**row, "label": "new"} for row in twice[:2])]))
    prepared = place.prepare(models["bert"], {"train": [{"uri": uri}], **CLEANED})
    info = read_dataset_info(place.store, prepared.dataset_uri)
    assert "1 labels have no training records left and are not learned: new" in info.remarks
    assert info.labels == ("bad", "good", "mixed", "new")
