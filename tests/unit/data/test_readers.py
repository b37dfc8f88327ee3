import bz2
import functools
import gzip
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import BadRecordAction, Source
from finetune_trainer.data.problems import BadRecords
from finetune_trainer.data.readers import Record, blocks, column_names, read, unread_columns
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


def parquet_bytes(rows: list[dict] | pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows) if isinstance(rows, list) else rows, sink)
    return sink.getvalue().to_pybytes()


def mistyped(values: list[bytes]) -> pa.Array:
    """Text that is not UTF-8, from writers without validation."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values).buffers())


WITH_BAD_TEXT = pa.table({"text": mistyped([b"caf\xe9", b"fine"]), "label": ["a", "b"]})
WITH_BAD_TIME = pa.table({"text": ["a", "b"], "label": pa.array([0, 2**62], pa.int64()).cast(pa.timestamp("us"))})


CHINESE = "\u6587\u672c,\u6807\u7b7e\n" + "\u8fd9\u90e8\u7535\u5f71\u975e\u5e38\u597d\u770b,\u6b63\u9762\n" * 9
UNMARKED = "the file is UTF-16 or UTF-32 without a byte order mark, or not text"
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
        ("rows.jsonl", JSONL.replace("\n", "\r"), [1, 2]),
        ("rows.jsonl", JSONL.encode("utf-16"), [1, 2]),
        ("rows.jsonl", json.dumps(ROWS), [1, 2]),
        ("rows.csv", 'text,label\rgood,1\r"bad, very\nbad",0\r', [2, 3]),
        ("rows.csv", '\n\r\n  \ntext,label\ngood,1\n"bad, very\nbad",0\n', [5, 6]),
        ("rows.csv", '\ufefftext;label\ngood;1\n"bad, very\nbad";0\n', [2, 3]),
        ("rows.csv", 'text\tlabel\ngood\t1\n"bad, very\nbad"\t0\n', [2, 3]),
        ("rows.csv", 'sep=;\r\ntext;label\r\ngood;1\r\n"bad, very\nbad";0\r\n', [3, 4]),
        ("rows.csv", 'text,label,,\ngood,1,,\n"bad, very\nbad",0,,\n', [2, 3]),
        ("rows.csv", 'text,label\ngood,1\n"bad, very\nbad",0\n'.encode("utf-16-be").join([b"\xfe\xff", b""]), [2, 3]),
        ("rows.csv", 'text,label\ngood,1\n"bad, very\nbad",0\n'.encode("utf-32"), [2, 3]),
    ],
)
def test_every_file_type_gives_the_same_records_with_their_locations(write, name, content, numbers):
    found, _ = records(uri := write(name, content))
    assert [record.values for record in found] == ROWS
    assert [record.place.number for record in found] == numbers
    assert all(record.place.uri == uri for record in found)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text;label, comment\ngood;1\nbad, very;0\n", {"text": "good", "label, comment": "1"}),
        ("text,label;x\ngood,1\n", {"text": "good", "label;x": "1"}),
        ("text,label;x\na;b,1\n", {"text": "a;b", "label;x": "1"}),  # both fit: a comma
        ('text,label;x\n"so;\nlong",1\n', {"text": "so;\nlong", "label;x": "1"}),
        ("text\tlabel; comment\ngood\t1\n", {"text": "good", "label; comment": "1"}),
    ],
)
def test_if_the_header_has_two_delimiters_the_first_row_decides(write, content, expected):
    found, bad = records(write("rows.csv", content), BadRecordAction.SKIP)
    assert found[0].values == expected
    assert not bad.dropped


def test_without_such_a_row_the_delimiter_is_a_comma(write):
    _, bad = records(write("rows.csv", "text;label, comment\n\ngood;1\n"), BadRecordAction.SKIP)
    assert bad.dropped == {"malformed CSV": 1}


def test_zero_bytes_in_utf_8_are_text(write):
    found, _ = records(write("a.csv", "text,label\n\u00e9t\u00e9\0,1\n\0\0x,0\n"))
    assert [record.values["text"] for record in found] == ["\u00e9t\u00e9\0", "\0\0x"]


def test_zero_bytes_next_to_a_line_that_is_not_utf_8_lose_only_that_line(write):
    found, bad = records(write("a.txt", b"a\0b\n\ncaf\xe9\n\nc\0d\n"), BadRecordAction.SKIP)
    assert [record.values["text"] for record in found] == ["a\0b", "c\0d"]
    assert bad.dropped == {"undecodable bytes": 1}


def test_paragraphs_of_a_text_file_are_records(write):
    found, _ = records(write("book.txt", "one\ntwo\n\n\n  \nthree\n"))
    assert [(record.values["text"], record.place.number) for record in found] == [("one\ntwo", 1), ("three", 6)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.parquet", JSONL, "the suffix says a Parquet file, but the content is text"),
        ("a.jsonl", parquet_bytes(ROWS), "the suffix says text, but the content is a Parquet file"),
        ("a.jsonl", gzip.compress(b"{}"), "but the content is gzip-compressed"),
        ("a.csv", b"PK\x03\x04...", "a zip archive (or an Excel file)"),
        ("a.jsonl.gz", JSONL, "the suffix says gzip-compressed, but the content is text"),
        ("a.jsonl.gz", gzip.compress(JSONL.encode() * 50)[:-20], "damaged gzip data"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet after row 0"),
        ("a.tsv", "x\ty\n", "no reader for this suffix"),
        ("a.json", '[{"text": "x"},\n{"text": }]', "not a JSON array: line 2: Expecting value"),
        ("a.csv", "text,text\na,b\n", "line 1: column text must not appear twice"),
        ("a.csv", '\n"te"xt,label\na,b\n', "line 2: the header is not CSV: ',' expected after"),
        ("a.csv", '"text,label\na,b\n', "line 1: the header is not CSV: unexpected end of data"),
        ("a.csv", "text,label\na,b\n".encode("utf-16-le"), UNMARKED),
        ("a.csv", CHINESE.encode("utf-16-le"), UNMARKED),
        ("a.csv", CHINESE.encode("utf-16-be"), UNMARKED),
        ("a.jsonl", '{"text": "\u4f60\u597d"}\n'.encode("utf-16-le"), UNMARKED),
        ("a.txt", "\u7684\u662f\u4e86\n\n\u6211\u4eec\n".encode("utf-16-le"), UNMARKED),
        ("a.csv", "text,label\na,b\n".encode("utf-16")[:-1], "damaged utf-16-le: truncated data"),
        ("a.csv", gzip.compress(b"text,label\n"), "but the content is gzip-compressed"),
        ("a.csv.gz", gzip.compress(gzip.compress(b"text,label\n")), "but the content is gzip-compressed"),
        ("a.jsonl.gz", gzip.compress(parquet_bytes(ROWS)), "but the content is a Parquet file"),
        ("a.jsonl", bz2.compress(b"{}"), "but the content is bzip2-compressed"),
        ("a.jsonl", b"version https://git-lfs/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        ("a.jsonl", '["x"]\n["y"]\n', "not a JSON array: line 2: Extra data"),
        (
            "a.json",
            b'[{"text": "x",\n"input": "caf\xe9",\n"label": 1}]',
            "line 2: not UTF-8, in the middle of a JSON array",
        ),
        ("a.json", "[" * 100_000, "not a JSON array: maximum recursion depth"),
        (
            "a.parquet",
            parquet_bytes(pa.table([["a"], ["b"]], names=["text", "text"])),
            "column text must not appear twice",
        ),
        ("a.parquet", parquet_bytes(ROWS)[:-9] + b"\xff" * 5 + b"PAR1", "cannot be read as Parquet after row 0"),
    ],
)
@pytest.mark.parametrize("action", list(BadRecordAction))
def test_a_file_whose_content_does_not_match_its_suffix_always_stops(write, name, content, expected, action):
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
    ("a.jsonl", '"x"\n', "a.jsonl line 1: not an object: 'x'", "malformed JSON"),
    (
        "a.jsonl",
        '{"text": "x", "text": "y"}\n',
        "line 1: not JSON: key 'text' must not appear twice in one object",
        "malformed JSON",
    ),
    ("a.jsonl", '{"n": [{"k": 1, "k": 2}]}\n', "line 1: not JSON: key 'k' must not appear twice", "malformed JSON"),
    ("a.jsonl", '{"text": ' + "[" * 100_000 + "\n", "line 1: not JSON: maximum recursion depth", "malformed JSON"),
    ("a.jsonl", '{"label": ' + "7" * 5000 + "}\n", "line 1: not JSON: Exceeds the limit", "malformed JSON"),
    ("a.jsonl", b'{"text": "a\0b"}\n', "line 1: not JSON: Invalid control character at column 12", "malformed JSON"),
    ("a.jsonl", '{"text": "\\ud83d"}\n', r"line 1: column 'text' contains an unpaired surrogate", "undecodable bytes"),
    (
        "a.jsonl",
        '{"g": {"id": ["\\uDe00"]}}\n',
        r"line 1: column 'g' contains an unpaired surrogate",
        "undecodable bytes",
    ),
    ("a.jsonl", '{"\\ud83d": "x"}\n', r"line 1: column '\ud83d' contains an unpaired surrogate", "undecodable bytes"),
    ("a.json", '[{"text": "\\ud83d"}]', "element 1: column 'text' contains an unpaired surrogate", "undecodable bytes"),
    ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl line 1: not UTF-8: byte 0xff at position 11", "undecodable bytes"),
    ("a.txt", b"fine\n\nbr\xfcken\n", "a.txt line 3: not UTF-8: byte 0xfc at position 3", "undecodable bytes"),
    ("a.jsonl", b"", "a.jsonl: the file is empty", "empty file"),
    ("a.csv", "text,label\nx\n", "a.csv line 2: 1 fields, but the header has 2: text, label", "malformed CSV"),
    ("a.csv", 'text,label\nx,1\n"y,2\n', "a.csv line 3: not CSV: unexpected end of data", "malformed CSV"),
    ("a.json", '[{"text": "x"}, 3]', "a.json element 2: not an object: 3", "malformed JSON"),
    ("a.jsonl.gz", gzip.compress(b""), "a.jsonl.gz: the file is empty", "empty file"),
    (
        "a.parquet",
        parquet_bytes(WITH_BAD_TEXT),
        "a.parquet row 1: column 'text' is not UTF-8: byte 0xe9",
        "undecodable bytes",
    ),
    (
        "a.parquet",
        parquet_bytes(WITH_BAD_TIME),
        "a.parquet row 2: column 'label' contains a timestamp[us] that cannot be read",
        "unreadable value",
    ),
]


@pytest.mark.parametrize(("name", "content", "expected", "rule"), BAD_RECORDS)
def test_a_bad_record_is_an_error_with_file_and_line(write, name, content, expected, rule):
    uri = write(name, content)
    with pytest.raises(BadDataError) as caught:
        records(uri)
    assert expected in str(caught.value)
    assert "spec.data.onBadRecord: Skip" in caught.value.advice


@pytest.mark.parametrize(("name", "content", "expected", "rule"), BAD_RECORDS)
def test_bad_records_can_be_skipped_and_counted_by_rule(write, name, content, expected, rule):
    _, bad = records(write(name, content), BadRecordAction.SKIP)
    assert bad.dropped == {rule: 1}


@pytest.mark.parametrize(
    "row", ['"she said "no" and\nleft the room",1', '"she said "no" and\nsaw\nthe room",1', '"b "b" b",1']
)
def test_the_rest_of_a_row_with_stray_quotes_is_not_a_record(write, row):
    found, bad = records(write("a.csv", f"text,label\na,1\n{row}\nc,4\n"), BadRecordAction.SKIP)
    assert [record.values["text"] for record in found] == ["a", "c"]
    assert bad.dropped == {"malformed CSV": row.count("\n") + 1}


def test_a_header_that_is_not_utf_8_is_not_replaced_by_the_next_line(write):
    with pytest.raises(BadDataError, match="line 1: the header is not UTF-8"):
        records(write("a.csv", b"t\xe9xt,label\na,1\nb,2\n"), BadRecordAction.SKIP)


def test_the_lines_of_an_unclosed_quote_are_counted(write):
    content = 'text,label\na,1\n"b,2\nc,3\n"d",4\ne,5\n'
    found, bad = records(write("a.csv", content), BadRecordAction.SKIP)
    assert [record.values["text"] for record in found] == ["a", "e"]
    assert bad.dropped == {"malformed CSV": 3}


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.csv", b'text,label\na,1\n"b\n\xff\nb",2\n\xff,3\nc,4\n', ["a", "c"]),
        ("a.csv", b'text,label\na,1\n"caf\xe9 was great\nbut the service",1\nc,4\n', ["a", "c"]),
        ("a.txt", b"a\n\nb\n\xff\nb\n\nc\n", ["a", "c"]),
        ("a.txt", b"a\n\n\xff\nb\n\nc\n", ["a", "c"]),
        ("a.txt", b"a\n\nb\n\xff\n\nc\n", ["a", "c"]),
    ],
)
def test_a_record_with_an_unreadable_line_is_dropped_entirely(write, name, content, texts):
    found, bad = records(write(name, content), BadRecordAction.SKIP)
    assert [record.values["text"] for record in found] == texts
    assert bad.dropped["undecodable bytes"] >= 1


def test_an_error_is_short_with_any_number_of_columns(write):
    header = ",".join(f"column {number} {'x' * 200}" for number in range(3000))
    with pytest.raises(BadDataError, match="and 2,980 more") as caught:
        records(write("a.csv", f"{header}\n" + "a,b\n" * 20))
    assert len(str(caught.value)) < 30_000


def test_values_of_unused_columns_do_not_matter(write, tmp_path):
    used = lambda names: [name for name in names if name in {"text", "a.b", ""}]  # noqa: E731
    table = WITH_BAD_TIME.append_column("a.b", [["1", "2"]]).append_column("", [["3", "4"]])
    for name, content in (
        ("a.parquet", parquet_bytes(table)),
        ("a.jsonl", '{"text": "a", "a.b": "1", "": "3", "user": "\\ud83d"}\n{"text": "b", "a.b": "2", "": "4"}\n'),
    ):
        (file,) = fetch(tmp_path, write(name, content))
        found = [record.values for record in read(file, BadRecords(BadRecordAction.FAIL), used)]
        assert [{key: row[key] for key in ("text", "a.b", "")} for row in found] == [
            {"text": "a", "a.b": "1", "": "3"},
            {"text": "b", "a.b": "2", "": "4"},
        ]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.parquet", parquet_bytes(WITH_BAD_TEXT), ("text", "label")),
        ("a.parquet", parquet_bytes(WITH_BAD_TEXT.slice(0, 0)), None),
        ("a.csv", "text;label\na;b\n", ("text", "label")),
        ("a.csv", "text;label\n", None),
        ("a.jsonl", '{"text": 1, "user": "\\ud83d"}\n', ("text", "user")),
        ("a.txt", "words\n", ("text",)),
    ],
)
def test_the_columns_of_a_file_are_known_without_its_values(write, tmp_path, name, content, expected):
    (file,) = fetch(tmp_path, write(name, content))
    assert column_names(file, BadRecords(BadRecordAction.FAIL)) == expected


def test_a_file_whose_name_is_not_utf_8_is_rejected(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    with open(path, "wb") as file:
        file.write(JSONL.encode())
    (found,) = fetch(tmp_path, f"file://{tmp_path}/*.jsonl")
    with pytest.raises(BadDataError, match=r"caf\\udce9\.jsonl: the file's name is not UTF-8"):
        list(read(found, BadRecords(BadRecordAction.SKIP)))


def test_one_error_lists_ten_bad_records_and_no_more(write):
    uri = write("a.jsonl", '{"text": "x"}\n' + "oops\n" * 30)
    with pytest.raises(BadDataError, match="10 records cannot be used") as caught:
        records(uri)
    assert str(caught.value).count("\n") == 10
    assert "line 11: not JSON" in str(caught.value)
    assert "line 12" not in str(caught.value)


def test_globs_do_not_cross_folders_and_files_are_unique_and_sorted(write, tmp_path):
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


LINES = [{"text": f"täxt {number}", "label": number} for number in range(40)]
LINE_ENDS = {"\n": "\n", "\r\n": "\r\n", "\r": "\r", "no last one": "\n"}
BROKEN = 'oops\n\n\n{"text": "\\ud83d", "label": 1}\n'


def lines(end: str) -> bytes:
    text = "\n".join(map(json.dumps, LINES[:20])) + "\n" + BROKEN + "\n".join(map(json.dumps, LINES[20:]))
    return (text if end == "no last one" else text + "\n").replace("\n", LINE_ENDS[end]).encode()


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[("a.jsonl", lines(end)) for end in LINE_ENDS],
        ("a.jsonl", b"\xef\xbb\xbf" + lines("\r\n")),
        ("a.jsonl", lines("\n").replace(b"oops", b"\xff")),
        ("a.jsonl.gz", gzip.compress(lines("\n"))),
        ("a.jsonl", lines("\r").decode().encode("utf-16")),
        ("a.csv", "text,label\n" + "".join(f'"{row["text"]}\n2",{row["label"]}\n' for row in LINES) + '"a\n'),
        ("a.txt", "\n\n\n".join(row["text"] for row in LINES)),
        ("a.parquet", parquet_bytes(WITH_BAD_TEXT)),
    ],
)
def test_blocks_of_any_size_have_the_same_records_at_the_same_locations(write, tmp_path, name, content, size):
    (file,) = fetch(tmp_path, write(name, content))
    every = lambda names: names  # noqa: E731
    whole, there = BadRecords(BadRecordAction.FAIL), BadRecords(BadRecordAction.FAIL)
    parts = [pickle.loads(pickle.dumps(block)) for block in blocks(file, every, size)]
    found = [record for block in parts for record in block.read(there, every)]
    assert found == list(read(file, whole))
    assert [(place, str(problem)) for place, problem in there.found] == [
        (place, str(problem)) for place, problem in whole.found
    ]
    if name == "a.jsonl" and size == 7 and b"\x00" not in content:
        assert len(parts) >= 40


def test_records_before_the_damaged_part_of_a_file_are_read_first(write, tmp_path):
    content = gzip.compress(b"oops\n" + b"".join(b'{"text": "row %d"}\n' % row for row in range(50_000)))
    (file,) = fetch(tmp_path, write("a.jsonl.gz", content[: len(content) // 2]))
    bad = BadRecords(BadRecordAction.FAIL)
    with pytest.raises(BadDataError, match="damaged gzip"):
        list(read(file, bad))
    assert [place for place, _ in bad.found] == [f"{file.uri} line 1"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_blocks_of_nested_records_are_as_large_as_those_of_texts(write, tmp_path, encoding):
    """Records of conversations, in an array or in an encoding whose lines are not split by bytes."""
    chats = [{"messages": [{"role": "user", "content": "x" * 1000}]} for _ in range(100)]
    text = json.dumps(chats) if encoding == "utf-8" else "".join(json.dumps(chat) + "\n" for chat in chats)
    (file,) = fetch(tmp_path, write("chats.jsonl", text.encode(encoding)))
    found = list(blocks(file, lambda names: names, 10_000))
    assert 9 <= len(found) <= 12


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_numbers_of_any_width_are_those_that_other_file_types_have(write, kind: pa.DataType) -> None:
    values = pa.array(np.array([0.1, 0.0, 2.0], kind.to_pandas_dtype()), mask=np.array([False, True, False]))
    table = pa.table({"label": values, "tags": pa.ListArray.from_arrays([0, 2, 2, 3], values)})
    found = [record.values for record in records(write("a.parquet", parquet_bytes(table)))[0]]
    assert [row["label"] for row in found] == [0.1, None, 2.0]
    assert [row["tags"] for row in found] == [[0.1, None], [], [2.0]]


def test_columns_that_are_not_read_are_known_for_files_with_a_header(write) -> None:
    for name, content in (
        ("a.csv", "text,label,note\na,b,c\n"),
        ("a.parquet", parquet_bytes([{"text": 1, "note": 2}])),
    ):
        (file,) = fetch(Path(write(name, content).removeprefix("file://")).parent, write(name, content))
        assert unread_columns(file, lambda names: [name for name in names if name != "note"]) == ("note",)
