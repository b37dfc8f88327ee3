"""`spec.data.train[].weight`: sources that are repeated or sampled in the training split."""

from collections import Counter
from typing import Any

import pytest

from finetune_trainer.data import build
from finetune_trainer.data.info import DATASET_FILE, WeightInfo, read_dataset_info
from finetune_trainer.errors import BadConfigError
from prepare_fixture import PrepareFixture
from rows import chats, classified, jsonl

SPLITS = {"validation": {"fraction": 0.2}, "test": {"fraction": 0.2}}


def rows_of(place: PrepareFixture, prepared: Any) -> dict[str, Counter[tuple[Any, ...]]]:
    found = {}
    for split in ("train", "validation", "test"):
        dataset = place.open(prepared, split)
        rows = (dataset[index] for index in range(len(dataset)))
        found[split] = Counter((tuple(row["input_ids"].tolist()), str(row["labels"])) for row in rows)
    return found


@pytest.fixture
def general(place) -> str:
    """Records with a text that is in no other record."""
    rows = [{**row, "text": f"general {number}"} for number, row in enumerate(classified(80))]
    return place.put("general.jsonl", jsonl(rows))


@pytest.fixture
def domain(place) -> str:
    rows = [{**row, "text": f"domain {number}"} for number, row in enumerate(classified(60))]
    return place.put("domain.jsonl", jsonl(rows))


def sources(domain: str, general: str, /, **weights: float) -> dict[str, Any]:
    entries = {"domain": {"uri": domain}, "general": {"uri": general}}
    return {
        "train": [entry | ({"weight": weights[name]} if name in weights else {}) for name, entry in entries.items()]
    }


def test_a_source_is_sampled_and_another_repeated_and_the_other_splits_are_unchanged(place, bert, domain, general):
    plain = place.prepare(bert, sources(domain, general) | SPLITS)
    mixed = place.prepare(bert, sources(domain, general, domain=2, general=0.3) | SPLITS)
    assert plain.dataset_digest != mixed.dataset_digest
    before, after = (rows_of(place, prepared) for prepared in (plain, mixed))
    for split in ("validation", "test"):
        assert after[split] == before[split] != Counter()
    info = read_dataset_info(place.store, mixed.dataset_uri)
    of_domain, of_general = info.weights
    assert of_domain == WeightInfo(uri=domain, weight=2, before=of_domain.before, after=2 * of_domain.before)
    assert of_general.after == int(0.3 * of_general.before + 0.5)
    assert of_domain.before + of_general.before == plain.counts.train
    assert mixed.counts.train == info.counts.train == of_domain.after + of_general.after
    assert Counter(after["train"].values()) == {2: of_domain.before, 1: of_general.after}
    assert set(after["train"]) < set(before["train"])
    for split in ("validation", "test"):
        assert not after["train"].keys() & after[split].keys()
    (rule,) = info.rules
    assert (rule.rule, rule.dropped, rule.added) == ("weights", of_general.before - of_general.after, 0)
    assert all(shown.place.startswith(f"{general} line ") for shown in rule.examples)
    assert any(
        note == f"weights in the training split: 2 of {domain}: {of_domain.before} -> {of_domain.after} records; "
        f"0.3 of {general}: {of_general.before} -> {of_general.after} records"
        for note in mixed.notes
    )


def test_weights_of_one_are_no_weights(place, bert, domain, general):
    plain = place.prepare(bert, sources(domain, general) | SPLITS)
    explicit = place.prepare(bert, sources(domain, general, domain=1, general=1.0) | SPLITS)
    assert explicit.dataset_digest == plain.dataset_digest
    assert explicit.reused
    assert b'"weights"' not in place.store.get(f"{plain.dataset_uri}/{DATASET_FILE}")


def test_a_larger_weight_adds_to_the_sample_of_a_smaller_one(place, bert, domain, general):
    small, large = (
        rows_of(place, place.prepare(bert, sources(domain, general, general=weight) | SPLITS))["train"]
        for weight in (0.2, 0.5)
    )
    assert small < large


def test_another_seed_draws_another_sample(place, bert, domain, general):
    data = sources(domain, general, general=0.3) | {"validation": {"fraction": 0.0}, "test": {"fraction": 0.0}}
    drawn = [place.prepare(bert, data, training={"learningRate": 1, "seed": seed}) for seed in (1, 2)]
    first, second = (rows_of(place, prepared)["train"] for prepared in drawn)
    assert first.total() == second.total()
    assert first != second


@pytest.mark.parametrize("workers", [1, 8])
def test_the_rows_are_the_same_with_any_number_of_processes(place, bert, domain, general, monkeypatch, workers):
    data = sources(domain, general, domain=1.5, general=0.3) | SPLITS
    for name in ("BLOCK_BYTES", "_LARGEST_BLOCK", "_BUCKET_BYTES"):
        monkeypatch.setattr(build, name, 1000)
    found = []
    for number in (0, workers):
        monkeypatch.setattr(build, "worker_count", lambda _, number=number: number)
        prepared = place.prepare(bert, data)
        assert not prepared.reused
        info = read_dataset_info(place.store, prepared.dataset_uri)
        found.append((prepared.dataset_digest, info.shards, info.weights))
        place.store.delete(f"{prepared.dataset_uri}/{DATASET_FILE}")
    assert found[0] == found[1]


def test_records_that_cleaning_removes_are_not_part_of_a_sample(place, bert, domain, general):
    rows = [{**row, "text": f"general {number}"} for number, row in enumerate(classified(80))]
    twice = place.put("twice.jsonl", jsonl([*rows, *rows]))
    cleaning = {"cleaning": {"exactDuplicates": True}, **SPLITS}
    once, deduplicated = (
        rows_of(place, place.prepare(bert, sources(domain, uri, general=0.3) | cleaning)) for uri in (general, twice)
    )
    assert once == deduplicated


def test_copies_of_a_record_are_repeated_and_left_out_with_it(place, bert, domain, general):
    augmentation = {"augmentation": {"methods": ["WordSwap"]}, **SPLITS}
    prepared = place.prepare(bert, sources(domain, general, domain=2, general=0.5) | augmentation)
    of_domain, of_general = read_dataset_info(place.store, prepared.dataset_uri).weights
    found = Counter(rows_of(place, prepared)["train"].values())
    assert found == {2: 2 * of_domain.before, 1: 2 * of_general.after}


def test_weights_apply_to_a_glob_as_one_source_and_to_chats(place, llama):
    rows = chats(60)
    for name, part in (("a", rows[:20]), ("b", rows[20:40])):
        place.put(f"many/{name}.jsonl", jsonl(part))
    single = place.put("single.jsonl", jsonl(rows[40:]))
    train = [{"uri": f"{place.uri}/data/many/*.jsonl", "weight": 0.5}, {"uri": single, "weight": 1.5}]
    prepared = place.prepare(
        llama,
        {"train": train, "validation": {"fraction": 0.0}, "test": {"fraction": 0.0}},
        training={"batching": "Packed"},
    )
    weights = read_dataset_info(place.store, prepared.dataset_uri).weights
    assert [(source.before, source.after) for source in weights] == [(40, 20), (20, 30)]
    assert prepared.counts.train == 50


def test_a_label_of_which_no_record_is_left_is_noted(place, bert, domain):
    rare = place.put(
        "rare.jsonl", jsonl([{"text": f"rare {number}", "label": f"rare {number}"} for number in range(4)])
    )
    train = [{"uri": domain}, {"uri": rare, "weight": 0.25}]
    prepared = place.prepare(bert, {"train": train, "validation": {"fraction": 0.0}, "test": {"fraction": 0.0}})
    remarks = read_dataset_info(place.store, prepared.dataset_uri).remarks
    assert any("3 labels have no training records left and are not learned: rare" in remark for remark in remarks)


@pytest.mark.parametrize(("weight", "is_refused"), [({}, False), ({"weight": 0.5}, True)])
def test_a_file_with_a_weight_belongs_to_one_source(place, bert, domain, general, weight, is_refused):
    train = [{"uri": domain}, {"uri": f"{place.uri}/data/*.jsonl", **weight}]
    data = {"train": train, **SPLITS}
    if not is_refused:
        assert place.prepare(bert, data).counts.train > 0
        return
    with pytest.raises(BadConfigError) as refusal:
        place.prepare(bert, data)
    assert str(refusal.value) == (
        "spec.data.train[1].uri must not name files of spec.data.train[0].uri, because a file has one weight: "
        f"{place.uri}/data/*.jsonl and {domain} both name {domain}"
    )
    assert "set the weight of the other" in refusal.value.advice


def test_a_local_file_is_the_same_under_another_spelling(place, bert, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jsonl").write_bytes(jsonl(classified(40)))
    train = [{"uri": f"file://{tmp_path}/a.jsonl"}, {"uri": f"file://{tmp_path}/folder/../*.jsonl", "weight": 2}]
    with pytest.raises(BadConfigError, match="both name file://"):
        place.prepare(bert, {"train": train, **SPLITS})
