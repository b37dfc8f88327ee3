"""Words with labels, from files to the rows that training reads."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.v1alpha1 import DataFormat, Task
from finetune_trainer.data.info import read_dataset_info
from finetune_trainer.errors import BadDataError
from finetune_trainer.model.tokenizer import load_tokenizer
from prepare_fixture import PrepareFixture
from rows import jsonl, tagged


def tags_of(place: PrepareFixture, prepared: Any, split: str, model: Path) -> list[tuple[str, list[str]]]:
    """Stored text and labels of each row; labels are at the first token of a word."""
    tokenizer = load_tokenizer(model)
    found = []
    dataset = place.open(prepared, split)
    for index in range(len(dataset)):
        row = dataset[index]
        text = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
        found.append((text, [prepared.labels[label] for label in row["labels"] if label >= 0]))
    return found


def test_rows_have_the_labels_of_their_records(place, bert):
    rows = tagged(40)
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"tokens": r["tokens"], "ner_tags": r["tags"]} for r in rows[20:]]), stream)
    train = [place.put("a.jsonl", jsonl(rows[:20])), place.put("b.parquet", stream.getvalue())]
    prepared = place.prepare(bert, {"train": [{"uri": uri} for uri in train]})
    assert (prepared.format, prepared.task) == (DataFormat.TOKEN_CLASSIFICATION, Task.TOKEN_CLASSIFICATION)
    assert prepared.labels == ("B-LOC", "B-PER", "I-PER", "O")
    found = [row for split in ("train", "validation", "test") for row in tags_of(place, prepared, split, bert)]
    assert sorted(found) == sorted((" ".join(row["tokens"]), row["tags"]) for row in rows)
    counts = read_dataset_info(place.store, prepared.dataset_uri).label_counts
    assert sum(split["B-PER"] for split in counts.values()) == 40


def test_a_held_out_record_with_an_unknown_label_is_reported_or_dropped(place, bert):
    other = [{"tokens": ["Ada", "sang"], "tags": ["B-PER", "B-ART"]}, *tagged(6)]
    data = {
        "train": [{"uri": place.put("train.jsonl", jsonl(tagged(40)))}],
        "validation": {"sources": [{"uri": place.put("validation.jsonl", jsonl(other))}]},
    }
    with pytest.raises(BadDataError, match=r"validation\.jsonl line 1: label 'B-ART' is not among the 4 labels"):
        place.prepare(bert, data)
    prepared = place.prepare(bert, data | {"onBadRecord": "Skip"})
    expected = [(" ".join(row["tokens"]), row["tags"]) for row in tagged(6)]
    assert tags_of(place, prepared, "validation", bert) == expected
    assert read_dataset_info(place.store, prepared.dataset_uri).dropped == {"unknown label": 1}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "must be equally long, not 2 words and 1 labels"),
        ({"tokens": "a b", "tags": ["O"]}, "column 'tokens' must be a list, not str"),
        ({"tokens": [], "tags": []}, "column 'tokens' is empty"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, r"tokens\[1\] is empty"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, r"tokens\[1\] must be text, not int 3"),
        ({"tokens": ["a"], "tags": [None]}, "the label is empty"),
    ],
)
def test_an_unusable_record_is_reported(place, bert, record, message):
    uri = place.put("train.jsonl", jsonl([*tagged(20), record]))
    with pytest.raises(BadDataError, match=message):
        place.prepare(bert, {"train": [{"uri": uri}]})
