import functools
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import BadRecordAction, Source
from finetune_trainer.data.problems import BadRecords
from finetune_trainer.data.readers import Record, read
from finetune_trainer.data.sources import SourceFile, fetch_sources
from finetune_trainer.errors import BadDataError
from finetune_trainer.store import ObjectStore

ROWS = [{"text": "good", "label": "1"}, {"text": "bad, very\nbad", "label": "0"}]


@functools.cache
def unasked_store() -> ObjectStore:
    return ObjectStore.connect(StorageSettings(endpoint="http://127.0.0.1:9", path_style=True))


def fetch(folder: Path, *uris: str) -> tuple[SourceFile, ...]:
    return fetch_sources([Source(uri=uri) for uri in uris], "spec.data.train", unasked_store(), folder / "cache")


@pytest.fixture
def write(tmp_path: Path):
    def _write(name: str, content: bytes | str) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return f"file://{path}"

    return _write


def records(uri: str, action: BadRecordAction = BadRecordAction.FAIL) -> tuple[list[Record], BadRecords]:
    bad = BadRecords(action)
    (file,) = fetch(Path(uri.removeprefix("file://")).parent, uri)
    found = list(read(file, bad))
    bad.raise_if_any()
    return found, bad


def parquet_bytes(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content", "numbers"),
    [
        ("rows.jsonl", JSONL, [1, 2]),
        ("rows.jsonl", "\ufeff" + JSONL, [1, 2]),
        ("rows.jsonl", "\n" + JSONL.replace("\n", "\r\n\r\n"), [2, 4]),
        ("rows.jsonl.gz", gzip.compress(JSONL.encode()), [1, 2]),
        ("rows.json", JSONL, [1, 2]),
        ("rows.json", json.dumps(ROWS, indent=1), [1, 2]),
        ("rows.csv", 'text,label\ngood,1\n"bad, very\nbad",0\n', [2, 3]),
        ("rows.csv.gz", gzip.compress(b'text,label\r\ngood,1\r\n"bad, very\r\nbad",0\r\n'), [2, 3]),
        ("rows.parquet", parquet_bytes(ROWS), [1, 2]),
    ],
)
def test_every_file_type_gives_the_same_records_with_their_places(write, name, content, numbers):
    found, _ = records(uri := write(name, content))
    assert [record.values for record in found] == ROWS
    assert [record.place.number for record in found] == numbers
    assert all(record.place.uri == uri for record in found)


def test_paragraphs_of_a_text_file_are_records(write):
    found, _ = records(write("book.txt", "one\ntwo\n\n\n  \nthree\n"))
    assert [(record.values["text"], record.place.number) for record in found] == [("one\ntwo", 1), ("three", 6)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.parquet", JSONL, "by its suffix the file is a Parquet file, but its content is text"),
        ("a.jsonl", parquet_bytes(ROWS), "by its suffix the file is text, but its content is a Parquet file"),
        ("a.jsonl", gzip.compress(b"{}"), "but its content is gzip-compressed"),
        ("a.csv", b"PK\x03\x04...", "a zip archive (or an Excel file)"),
        ("a.jsonl.gz", JSONL, "by its suffix the file is gzip-compressed, but its content is text"),
        ("a.jsonl.gz", gzip.compress(JSONL.encode() * 50)[:-20], "damaged gzip data"),
        ("a.parquet", b"PAR1 and no more", "not readable as Parquet after row 0"),
        ("a.tsv", "x\ty\n", "no reader for this suffix"),
        ("a.json", '[{"text": "x"},\n{"text": }]', "not a JSON array: line 2: Expecting value"),
        ("a.csv", "text,text\na,b\n", "line 1: column text appears twice"),
    ],
)
@pytest.mark.parametrize("action", list(BadRecordAction))
def test_a_file_that_is_not_what_it_says_always_stops(write, name, content, expected, action):
    uri = write(name, content)
    with pytest.raises(BadDataError) as caught:
        records(uri, action)
    assert uri in str(caught.value)
    assert expected in str(caught.value)
    assert caught.value.advice


BAD_RECORDS = [
    (
        "a.jsonl",
        '{"text": "x"}\n{"text": \n',
        "a.jsonl line 2: not JSON: Expecting value at column 10",
        "malformed JSON",
    ),
    ("a.jsonl", '["x"]\n', "a.jsonl line 1: not an object: ['x']", "malformed JSON"),
    ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl line 1: not UTF-8: byte 0xff at position 11", "undecodable bytes"),
    ("a.txt", b"fine\n\nbr\xfcken\n", "a.txt line 3: not UTF-8: byte 0xfc at position 3", "undecodable bytes"),
    ("a.jsonl", b"", "a.jsonl: the file is empty", "empty file"),
    ("a.csv", "text,label\nx\n", "a.csv line 2: 1 fields, but the header has 2: text, label", "malformed CSV"),
    ("a.csv", 'text,label\nx,1\n"y,2\n', "a.csv line 3: not CSV: unexpected end of data", "malformed CSV"),
    ("a.json", '[{"text": "x"}, 3]', "a.json element 2: not an object: 3", "malformed JSON"),
]


@pytest.mark.parametrize(("name", "content", "expected", "rule"), BAD_RECORDS)
def test_a_bad_record_is_an_error_with_file_and_line(write, name, content, expected, rule):
    uri = write(name, content)
    with pytest.raises(BadDataError) as caught:
        records(uri)
    assert expected in str(caught.value)
    assert "spec.data.onBadRecord: Skip" in caught.value.advice


@pytest.mark.parametrize(("name", "content", "expected", "rule"), BAD_RECORDS)
def test_a_bad_record_is_skipped_and_counted_by_rule_if_asked(write, name, content, expected, rule):
    _, bad = records(write(name, content), BadRecordAction.SKIP)
    assert bad.dropped == {rule: 1}


def test_one_error_lists_ten_bad_records_and_no_more(write):
    uri = write("a.jsonl", '{"text": "x"}\n' + "oops\n" * 30)
    with pytest.raises(BadDataError, match="10 records cannot be used") as caught:
        records(uri)
    assert str(caught.value).count("\n") == 10
    assert "line 11: not JSON" in str(caught.value)
    assert "line 12" not in str(caught.value)


def test_globs_do_not_cross_folders_and_files_come_once_and_sorted(write, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        write(name, JSONL)
    files = fetch(tmp_path, f"file://{tmp_path}/*.jsonl", f"file://{tmp_path}/b.jsonl")
    assert [file.path.name for file in files] == ["a.jsonl", "b.jsonl"]
    assert len(files[0].sha256) == 64


@pytest.mark.parametrize("name", ["none-*.jsonl", "missing.jsonl"])
def test_an_address_that_names_no_file_is_an_error(tmp_path, name):
    with pytest.raises(BadDataError, match=r"spec\.data\.train: .* matches no file"):
        fetch(tmp_path, f"file://{tmp_path}/{name}")


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(BadDataError, match="is a folder") as caught:
        fetch(tmp_path, f"file://{tmp_path}")
    assert f"file://{tmp_path}/*.jsonl" in caught.value.advice
