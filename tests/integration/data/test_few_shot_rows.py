"""`spec.data.fewShot`: a balanced subset of the training split; the other splits are unchanged."""

from typing import Any

import pytest

from finetune_trainer.data import build
from finetune_trainer.data.info import DATASET_FILE, read_dataset_info
from finetune_trainer.errors import BadConfigError
from prepare_fixture import PrepareFixture
from rows import chats, classified, jsonl

SPLITS = {"validation": {"fraction": 0.2}, "test": {"fraction": 0.2}}


def rows_of(place: PrepareFixture, prepared: Any) -> dict[str, list[tuple[Any, ...]]]:
    found = {}
    for split in ("train", "validation", "test"):
        dataset = place.open(prepared, split)
        rows = (dataset[index] for index in range(len(dataset)))
        found[split] = [(tuple(row["input_ids"].tolist()), str(row["labels"])) for row in rows]
    return found


@pytest.fixture
def uri(place):
    return place.put("a.jsonl", jsonl(classified(120)))


def test_a_balanced_subset_of_the_training_split_is_used_and_the_other_splits_are_unchanged(place, bert, uri):
    data = {"train": [{"uri": uri}], **SPLITS}
    whole = place.prepare(bert, data)
    few = place.prepare(bert, data | {"fewShot": {"perClass": 7}})
    fewer = place.prepare(bert, data | {"fewShot": {"perClass": 3}})
    assert len({prepared.dataset_digest for prepared in (whole, few, fewer)}) == 3
    rows, rows_of_few, rows_of_fewer = (rows_of(place, prepared) for prepared in (whole, few, fewer))
    for split in ("validation", "test"):
        assert rows_of_few[split] == rows[split] != []
    assert set(rows_of_fewer["train"]) < set(rows_of_few["train"]) < set(rows["train"])
    info = read_dataset_info(place.store, few.dataset_uri)
    assert set(info.label_counts["train"].values()) == {7}
    assert info.dropped["few-shot"] == whole.counts.train - few.counts.train
    assert info.counts == few.counts
    (rule,) = info.rules
    assert (rule.rule, rule.changed, rule.dropped) == ("few-shot", 0, info.dropped["few-shot"])
    assert len(rule.examples) == 3
    assert all(shown.place.startswith(f"{uri} line ") for shown in rule.examples)


def test_records_that_cleaning_removes_do_not_count(place, bert):
    rows = [{**row, "text": f"{row['text']} {number} {'again ' * 4}"} for number, row in enumerate(classified(120))]
    held_out = place.put("test.jsonl", jsonl(rows[::4]))
    data = {"test": {"sources": [{"uri": held_out}]}, "validation": {"fraction": 0.2}}
    data |= {"cleaning": {"exactDuplicates": True, "testOverlap": True}}
    clean = {"train": [{"uri": place.put("a.jsonl", jsonl(rows))}], **data}
    twice = {"train": [{"uri": place.put("b.jsonl", jsonl([*rows, *rows]))}], **data}
    few = [place.prepare(bert, each | {"fewShot": {"perClass": 6}}) for each in (clean, twice)]
    one, other = (rows_of(place, prepared) for prepared in few)
    assert one == other
    assert {tokens for tokens, _ in one["train"]}.isdisjoint(tokens for tokens, _ in one["test"])
    whole = rows_of(place, place.prepare(bert, clean))
    assert set(one["train"]) < set(whole["train"])
    for prepared in few:
        info = read_dataset_info(place.store, prepared.dataset_uri)
        assert set(info.label_counts["train"].values()) == {6}
        assert [rule.rule for rule in info.rules] == ["exact duplicates", "test overlap", "few-shot"]
        assert sum(rule.dropped for rule in info.rules) == sum(info.dropped.values())


def test_a_subset_of_groups_is_taken_from_the_training_groups(place, bert):
    rows = [{**row, "user": f"u{number % 12}"} for number, row in enumerate(classified(120))]
    grouped = {name: {"fraction": 0.2, "groupBy": "user"} for name in ("validation", "test")}
    data = {"train": [{"uri": place.put("a.jsonl", jsonl(rows))}], **grouped}
    whole, few = (rows_of(place, place.prepare(bert, data | more)) for more in ({}, {"fewShot": {"perClass": 4}}))
    assert (few["validation"], few["test"]) == (whole["validation"], whole["test"])
    assert set(few["train"]) < set(whole["train"])


def test_records_without_loss_are_counted_as_such_and_not_as_left_out(place, llama):
    rows = [{"prompt": f"{'why ' * (80 if number % 3 else 1)}{number}", "completion": "yes"} for number in range(60)]
    data = {"train": [{"uri": place.put("i.jsonl", jsonl(rows))}], "maxLength": 32, **SPLITS}
    whole, few = (place.prepare(llama, data | more) for more in ({}, {"fewShot": {"examples": 5}}))
    before, after = (read_dataset_info(place.store, prepared.dataset_uri) for prepared in (whole, few))
    assert after.counts.train == 5
    assert before.dropped[build.WITHOUT_LOSS] == after.dropped[build.WITHOUT_LOSS] > 0
    assert after.dropped["few-shot"] == before.counts.train - 5


def test_another_seed_draws_other_examples(place, bert, uri):
    test = place.put("test.jsonl", jsonl(classified(9)))
    data = {"train": [{"uri": uri}], "test": {"sources": [{"uri": test}]}, "validation": {"fraction": 0.0}}
    drawn = [
        place.prepare(bert, data | {"fewShot": {"perClass": 5}}, training={"learningRate": 1, "seed": seed})
        for seed in (1, 2)
    ]
    first, second = (rows_of(place, prepared) for prepared in drawn)
    assert set(first["train"]) != set(second["train"])
    assert first["test"] == second["test"]


def test_all_examples_of_a_label_with_fewer_are_used_with_a_remark(place, bert, uri):
    rare = place.put("rare.jsonl", jsonl([{"text": f"rare {number}", "label": "rare"} for number in range(3)]))
    data = {"train": [{"uri": uri}, {"uri": rare}], "validation": {"fraction": 0.0}, "test": {"fraction": 0.0}}
    prepared = place.prepare(bert, data | {"fewShot": {"perClass": 5}})
    info = read_dataset_info(place.store, prepared.dataset_uri)
    assert info.label_counts["train"]["rare"] == 3
    assert any("perClass, 5; all of them are used: rare (3)" in remark for remark in info.remarks)


def test_records_without_labels_are_counted_in_total(place, llama):
    data = {"train": [{"uri": place.put("chats.jsonl", jsonl(chats(60)))}], **SPLITS}
    whole, few = (place.prepare(llama, data | more) for more in ({}, {"fewShot": {"examples": 9}}))
    assert few.counts.train == 9
    assert (few.counts.validation, few.counts.test) == (whole.counts.validation, whole.counts.test)


@pytest.mark.parametrize("workers", [1, 8])
def test_the_subset_is_the_same_with_any_number_of_processes(place, bert, uri, monkeypatch, workers):
    data = {"train": [{"uri": uri}], **SPLITS, "fewShot": {"perClass": 7}}
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


@pytest.mark.parametrize(
    ("few_shot", "rows", "message"),
    [
        ({"examples": 5}, classified(30), "spec.data.fewShot.examples must be absent for SequenceClassification"),
        ({"perClass": 5}, chats(30), "spec.data.fewShot.perClass must be absent for CausalLM"),
    ],
)
def test_a_field_that_does_not_fit_the_detected_format_is_refused(place, models, few_shot, rows, message):
    model = models["bert"] if "examples" in few_shot else models["llama"]
    with pytest.raises(BadConfigError, match=message):
        place.prepare(model, {"train": [{"uri": place.put("a.jsonl", jsonl(rows))}], "fewShot": few_shot})
