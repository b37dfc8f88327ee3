"""Reading a file with any content gives examples or BadDataError, never another error.

The variable FUZZ sets the number of generated files per test.
"""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.v1alpha1 import BadRecordAction, Columns, DataFormat, Task
from finetune_trainer.data.formats import Example, Formatter, detect_format
from finetune_trainer.data.labels import canonical_names, label_names
from finetune_trainer.data.problems import BadRecords, RecordProblem
from finetune_trainer.data.readers import column_names, read
from finetune_trainer.data.sources import SourceFile
from finetune_trainer.data.splits import row_keys
from finetune_trainer.errors import BadDataError

FEW = settings(
    max_examples=int(os.environ.get("FUZZ", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SCRAPS = [
    b'"',
    b",",
    b";",
    b"\t",
    b"\r",
    b"\n",
    b"\0",
    b"text",
    b"label",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"caf\xe9",
    b"1.0",
]
JSON_SCRAPS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"NaN",
    b"-1e999",
    b"\\ud83d",
    b'"text":"a"',
    b'"label":',
    b"null",
    b"9" * 5000,
]

scraps = st.lists(st.sampled_from(SCRAPS + JSON_SCRAPS) | st.binary(max_size=4), max_size=24).map(b"".join)
texts = st.text(st.characters(), max_size=5)  # with unpaired surrogates
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
rows = st.lists(st.dictionaries(st.sampled_from(["text", "label"]) | texts, values, max_size=4), max_size=4)


def examples_of(file: SourceFile, action: BadRecordAction) -> list[Example]:
    """The examples that the prepare stage reads from a file. Raises BadDataError."""
    bad = BadRecords(action)
    make = Formatter(DataFormat.CLASSIFICATION, Columns())
    if (names := column_names(file, bad)) is not None:
        detect_format(names, Columns(), Task.SEQUENCE_CLASSIFICATION, file.uri)
    found = []
    for record in read(file, bad, make.columns_of):
        try:
            found.append(make(record.values, record.place))
        except RecordProblem as problem:
            bad.add(str(record.place), problem)
    bad.raise_if_any()
    return found


def outcome(path: Path, content: bytes) -> list[str]:
    """Read a file as prepare does, with both actions; returns the names of the labels."""
    path.write_bytes(content)
    file = SourceFile(f"s3://bucket/{path.name}", path, "", len(content))
    labels: tuple[str, ...] = ()
    for action in BadRecordAction:
        try:
            found = examples_of(file, action)
        except BadDataError as error:
            refused = f"{error} {error.advice}".encode()
        else:
            refused = b""
            row_keys([f"{example.label}\0{example.text}" for example in found], seed=1)
            canonical_names({example.label for example in found})
            labels = label_names(example.label for example in found)
            assert json.dumps(labels, ensure_ascii=False).encode() is not None
        assert not refused or file.uri.encode() in refused
    return list(labels)


@given(content=scraps, suffix=st.sampled_from([".jsonl", ".json", ".csv", ".txt", ".parquet", ".csv.gz"]))
@FEW
def test_any_bytes(tmp_path, content, suffix):
    outcome(tmp_path / f"a{suffix}", content)


@given(content=scraps, header=st.sampled_from([b"text,label\n", b"label;text\r", b'"text"\t"label"\r\n']))
@FEW
def test_any_csv_below_a_header(tmp_path, content, header):
    outcome(tmp_path / "a.csv", header + content)
    outcome(tmp_path / "a.csv.gz", gzip.compress(header + content))


@given(records=rows, as_array=st.booleans())
@FEW
def test_any_json_records(tmp_path, records, as_array):
    text = json.dumps(records) if as_array else "\n".join(map(json.dumps, records))
    outcome(tmp_path / "a.jsonl", text.encode())


@given(
    text=st.lists(st.binary(max_size=4), min_size=3, max_size=3),
    label=st.sampled_from(
        [
            pa.array([1.0, float("nan"), 2.0**60], pa.float64()),
            pa.array([0, 2**62, -(2**62)], pa.int64()).cast(pa.timestamp("us")),
            pa.array([1, 2**62, 3], pa.int64()).cast(pa.timestamp("ns", "Nowhere/Land")),
            pa.array([1, 2**30, -(2**30)], pa.int32()).cast(pa.date32()),
            pa.array([{"a": [1]}, None, {"a": []}]),
            pa.array(["x", "y", "x"]).dictionary_encode(),
            pa.array([True, None, False]),
            pa.array([b"a", b"\xff", None]),
        ]
    ),
    cut=st.none() | st.integers(4, 400),
)
@FEW
def test_any_parquet_values(tmp_path, text, label, cut):
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, pa.array(text).buffers()), "label": label})
    pq.write_table(table, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    outcome(tmp_path / "a.parquet", content if cut is None else content[:cut] + b"\xff" + content[cut + 1 :])


def test_good_files_are_read_by_the_same_functions(tmp_path):
    assert outcome(tmp_path / "a.csv", b"text,label\na,1\nb,2\n") == ["1", "2"]
