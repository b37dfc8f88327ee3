"""Files that several sources name: under the same address, another spelling of it, or as a copy."""

import os

import pytest

from finetune_trainer.data.info import read_dataset_info
from finetune_trainer.errors import BadConfigError
from rows import classified, jsonl

NO_SPLITS = {"validation": {"fraction": 0.0}, "test": {"fraction": 0.0}}
ROWS = classified(60)
OTHER = [{**row, "text": f"{row['text']} again"} for row in ROWS[:12]]


def sources(*uris: str) -> list[dict[str, str]]:
    return [{"uri": uri} for uri in uris]


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("other", ["a.jsonl", "folder/../a.jsonl", "link.jsonl", "copy.csv.jsonl", "[ab].jsonl"])
def test_a_training_file_is_not_held_out_under_any_name(place, bert, tmp_path, split, other):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "b.jsonl").write_bytes(jsonl(OTHER))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    (tmp_path / "copy.csv.jsonl").write_bytes(jsonl(ROWS))
    uris = {name: f"file://{tmp_path}/{name}" for name in ("a.jsonl", "b.jsonl", other)}
    data = NO_SPLITS | {"train": sources(uris["a.jsonl"]), split: {"sources": sources(uris["b.jsonl"], uris[other])}}
    with pytest.raises(BadConfigError) as refusal:
        place.prepare(bert, data)
    assert str(refusal.value).startswith(
        f"spec.data.{split}.sources[1].uri must not name a file of spec.data.train[0].uri, because the model learns "
    )
    assert tmp_path.name in str(refusal.value)
    assert f"write spec.data.{split}: {{fraction: 0.1}}" in refusal.value.advice


def test_a_glob_of_training_files_must_not_have_a_test_file(place, bert):
    place.put("all/a.jsonl", jsonl(ROWS))
    test = place.put("all/test.jsonl", jsonl(OTHER))
    data = NO_SPLITS | {"train": sources(f"{place.uri}/data/all/*.jsonl"), "test": {"sources": sources(test)}}
    with pytest.raises(BadConfigError) as refusal:
        place.prepare(bert, data)
    assert str(refusal.value) == (
        "spec.data.test.sources[0].uri must not name a file of spec.data.train[0].uri, because the model learns its "
        f"records: {test}"
    )


def test_files_without_records_may_be_equal(place, bert):
    train = sources(place.put("a.csv", b"text,label\na,x\nb,y\n"), place.put("none.csv", b"text,label\n"))
    test = sources(place.put("t.csv", b"text,label\nc,x\nd,y\n"), place.put("nothing.csv", b"text,label\n"))
    data = {"train": train, "validation": {"fraction": 0.0}, "test": {"sources": test}}
    counts = place.prepare(bert, data).counts
    assert (counts.train, counts.test) == (2, 2)
    weighted = [train[0], {**train[1], "weight": 2}, {"uri": place.put("c.csv", b"text,label\n"), "weight": 3}]
    assert place.prepare(bert, data | {"train": weighted}).counts.train == 2


def test_one_file_for_validation_and_test_is_a_warning(place, bert):
    held_out = sources(place.put("held-out.jsonl", jsonl(OTHER)))
    data = {"validation": {"sources": held_out}, "test": {"sources": held_out}}
    prepared = place.prepare(bert, {"train": sources(place.put("a.jsonl", jsonl(ROWS)))} | data)
    (warning,) = [text for text in prepared.warnings if "validation" in text]
    assert warning == (
        f"validation and test have the same file, {held_out[0]['uri']}: a checkpoint that is chosen by the validation "
        "split does better on this test split than on new records"
    )


@pytest.mark.parametrize("kind", ["local", "hard link", "copy in storage", "repeated"])
def test_equal_files_are_read_once_and_have_one_weight(place, bert, tmp_path, kind):
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "b").mkdir()
    os.link(tmp_path / "a.jsonl", tmp_path / "b" / "a.jsonl")
    stored = place.put("a.jsonl", jsonl(ROWS))
    one, other = {
        "local": (f"file://{tmp_path}/a.jsonl", f"file://{tmp_path}/b/../[a].jsonl"),
        "hard link": (f"file://{tmp_path}/a.jsonl", f"file://{tmp_path}/b/a.jsonl"),
        "copy in storage": (stored, place.put("b/a.jsonl", jsonl(ROWS))),
        "repeated": (stored, stored),
    }[kind]
    prepared = place.prepare(bert, {"train": sources(one, other)} | NO_SPLITS)
    assert prepared.counts.train == len(ROWS)
    assert len(read_dataset_info(place.store, prepared.dataset_uri).sources) == 1
    said = [
        text for text in prepared.warnings if text.endswith("is read once; to train more often on it, set a weight")
    ]
    assert len(said) == (kind in ("hard link", "copy in storage")), prepared.warnings
    with pytest.raises(BadConfigError) as refusal:
        place.prepare(bert, {"train": [{"uri": one}, {"uri": other, "weight": 0.5}]} | NO_SPLITS)
    assert str(refusal.value).startswith(
        "spec.data.train[1].uri must not name files of spec.data.train[0].uri, because a file has one weight: "
    )
