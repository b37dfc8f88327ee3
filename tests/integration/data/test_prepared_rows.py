"""Digests of rows and their order for all kinds of inputs, because they determine the losses of a run."""

import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.v1alpha1 import Task
from finetune_trainer.data.info import read_dataset_info
from finetune_trainer.errors import BadConfigError
from finetune_trainer.model.tokenizer import load_tokenizer
from finetune_trainer.tasks import IGNORED, TASKS
from finetune_trainer.train.rows import PackedRows
from prepare_fixture import PrepareFixture
from rows import chats, classified, jsonl


def labeled(rows: int, labels: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [
        {"text": f"text {i % 37} is a {'very ' * (i % 37 * 7 % 90)}good one", "label": labels[i % len(labels)]}
        for i in range(rows)
    ]


def documents(rows: int) -> list[dict[str, Any]]:
    return [{"text": f"Dokument {i}: " + f"größer {i} 東京 🙂 " * (i % 23) * (i % 5), "id": i} for i in range(rows)]


def instructions(rows: int) -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"add {i} and {i}",
            "input": "" if i % 3 else f"context {i}",
            "output": f"{2 * i} " * (i % 40 + 1),
        }
        for i in range(rows)
    ]


def with_system(rows: int) -> list[dict[str, Any]]:
    system = {"role": "system", "content": "Be brief."}
    return [{"messages": [system, *row["messages"]] if i % 2 else row["messages"]} for i, row in enumerate(chats(rows))]


def csv_of(rows: list[dict[str, Any]]) -> bytes:
    quoted = ['"' + str(row["text"]).replace('"', '""') + f'",{row["label"]}' for row in rows]
    return ("text,label\n" + "\n".join(quoted) + "\n").encode()


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream, row_group_size=7)
    return stream.getvalue()


BAD = b'{"text": "cut off\n{"text": "", "label": "a"}\n\n{"text": "no label"}\n{"text": "\xff", "label": "a"}\n'
THIRDS = {"validation": {"fraction": 0.3}, "test": {"fraction": 0.3}}

CASES: dict[str, tuple[str, dict[str, dict[str, bytes]], dict[str, Any]]] = {
    "labels": ("bert", {"train": {"a.jsonl": jsonl(classified(200))}}, {}),
    "equal texts, stratified validation only": (
        "bert",
        {"train": {"a.jsonl": jsonl(labeled(300, ("x", "y", "y", "z")))}},
        {"validation": {"fraction": 0.2, "stratify": True}, "test": {"fraction": 0.25, "stratify": False}},
    ),
    "stratified test only": (
        "bert",
        {"train": {"a.csv": csv_of(labeled(120, ("x", "y", "y", "z"))), "b.jsonl": jsonl(labeled(90, ("y", "w")))}},
        {"validation": {"fraction": 0.2, "stratify": False}, "test": {"fraction": 0.25, "stratify": True}},
    ),
    "spellings of labels": (
        "bert",
        {
            "train": {
                "a.csv": csv_of(labeled(100, ("1.0", "True", "0.0", "e\u0301"))),
                "b.jsonl": jsonl(labeled(90, (1, True, 0, "\xe9"))),
            }
        },
        THIRDS,
    ),
    "grades": (
        "bert",
        {
            "train": {
                "a.csv": csv_of(labeled(100, ("1.0", "1.5", "2.0"))),
                "b.jsonl": jsonl(labeled(90, ("2.0", "TRUE"))),
            }
        },
        THIRDS,
    ),
    "held-out files": (
        "bert",
        {
            "train": {"a.jsonl.gz": gzip.compress(jsonl(labeled(90, ("b", "a"))), mtime=0)},
            "validation": {"v.parquet": parquet_of(labeled(40, ("a", "b", "c")))},
            "test": {"t.csv": csv_of(labeled(33, ("d", "b"))), "u.csv": csv_of(labeled(12, ("a", "b")))},
        },
        {"onBadRecord": "Skip"},
    ),
    "bad records": (
        "bert",
        {"train": {"a.jsonl": jsonl(classified(50)) + BAD + jsonl(labeled(50, ("a", "b"))) + BAD}},
        {"onBadRecord": "Skip"},
    ),
    "documents": ("llama", {"train": {"a.jsonl": jsonl(documents(150)), "b.txt": b"one\ntwo\n\nthree " * 90}}, THIRDS),
    "array": ("llama", {"train": {"a.json": json.dumps(documents(80), indent=1).encode()}}, {}),
    "other encodings": (
        "llama",
        {
            "train": {
                "a.jsonl": jsonl(documents(60)).decode().encode("utf-16"),
                "b.jsonl": b"\xef\xbb\xbf" + jsonl(documents(30)).replace(b"\n", b"\r"),
            }
        },
        {},
    ),
    "instructions": ("plain", {"train": {"a.jsonl": jsonl(instructions(130))}}, THIRDS),
    "instructions with a template": ("llama", {"train": {"a.parquet": parquet_of(instructions(130))}}, THIRDS),
    "chats": ("llama", {"train": {"a.jsonl": jsonl(chats(140))}}, {"maxLength": 40}),
    "folded chats": ("gemma", {"train": {"a.parquet": parquet_of(with_system(140))}}, {"test": {"fraction": 0}}),
}

EXPECTED = {
    "labels": "8441a9cbe3a9a52a",
    "equal texts, stratified validation only": "429c629f11d35b4e",
    "stratified test only": "d5a73c7f1d1a3c71",
    "spellings of labels": "ceb7434da3fa1ab7",
    "grades": "75a9eb76c9181567",
    "held-out files": "3c03c11de9c900f9",
    "bad records": "dfe7c03ef9e3676d",
    "documents": "d9ecd163b2ed2638",
    "array": "2557e22e3fb79cee",
    "other encodings": "7a6e0a751e6b9fdf",
    "instructions": "91a29d95a11268ce",
    "instructions with a template": "0c057e02b24dd03e",
    "chats": "76dd5ae2976a60c7",
    "folded chats": "a0425801d80b33c9",
}


def rows_digest(place: PrepareFixture, prepared: Any, model: Path) -> str:
    """Digest of the rows as training reads them (texts, targets, document numbers) and of the counts in
    dataset.json."""
    tokenizer = load_tokenizer(model)
    info = read_dataset_info(place.store, prepared.dataset_uri)
    counted = {
        "labels",
        "label_counts",
        "lengths",
        "dropped",
        "truncated",
        "divided",
        "documents",
        "tokens",
        "dropped_tokens",
        "remarks",
    }
    found: list[Any] = [
        info.model_dump(mode="json", include=counted),
        [(source.split, source.rows) for source in info.sources],
    ]
    for split in ("train", "validation", "test"):
        dataset = place.open(prepared, split)
        for index in range(len(dataset)):
            row = dataset[index]
            labels = row["labels"]
            target = labels if isinstance(labels, int) else [int(label) != -100 for label in labels]
            found.append((split, tokenizer.decode(row["input_ids"]), row["input_ids"].tolist(), target))
        found.append(dataset.documents().tolist())
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


@pytest.mark.parametrize("case", CASES)
def test_rows_and_their_order_do_not_change(place, models, case):
    model, files, data = CASES[case]
    uris = {
        split: [{"uri": place.put(f"{split}/{name}", content)} for name, content in contents.items()]
        for split, contents in files.items()
    }
    held_out = {split: {"sources": uris[split]} for split in ("validation", "test") if split in uris}
    prepared = place.prepare(models[model], {"train": uris["train"]} | held_out | data)
    assert rows_digest(place, prepared, models[model]) == EXPECTED[case]


def test_training_on_inputs_changes_the_digest_and_the_labels_of_padded_and_packed_rows(place, models):
    """The digests of the other cases show that the default changes nothing."""
    uri = place.put("c.jsonl", jsonl(chats(24)))
    tokenizer = load_tokenizer(models["llama"])
    digests, texts = set(), {}
    for wanted in (None, False, True):
        data = {"train": [{"uri": uri}]} | ({} if wanted is None else {"trainOnInputs": wanted})
        prepared = place.prepare(models["llama"], data)
        digests.add(prepared.dataset_digest)
        rows = place.open(prepared)
        padded = TASKS[Task.CAUSAL_LM].collate([rows[0], rows[1]], pad_token_id=0)["labels"]
        packed = TASKS[Task.CAUSAL_LM].collate([PackedRows(rows, Task.CAUSAL_LM)[(0, 1)]], pad_token_id=0)["labels"]
        texts[wanted] = [
            tokenizer.decode([label for label in labels.flatten().tolist() if label != IGNORED])
            for labels in (padded, packed)
        ]
        whole = tokenizer.decode([token for row in (rows[0], rows[1]) for token in row["input_ids"].tolist()])
    assert len(digests) == 2
    assert texts[None] == texts[False] != texts[True]
    assert texts[True][0] == whole
    assert "<|im_start|>user" in whole
    assert "<|im_start|>user" not in texts[False][0]


def test_training_on_inputs_is_refused_for_a_format_that_is_detected(place, bert):
    uri = place.put("a.jsonl", jsonl(classified(30)))
    with pytest.raises(BadConfigError, match=r"spec.data.trainOnInputs must be absent or false for the format Classif"):
        place.prepare(bert, {"train": [{"uri": uri}], "trainOnInputs": True})
