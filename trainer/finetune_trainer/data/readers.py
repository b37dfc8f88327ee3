"""Files -> records: JSON Lines, JSON, CSV, Parquet and plain text, each record with its place.

A record that cannot be read is reported and left out; a file that is not what its suffix says stops the reading, since
nothing in it can be trusted.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BadDataError
from .problems import BadRecords, Place, RecordProblem, shown
from .sources import SourceFile

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".txt", ".parquet")
"""The first five also with `.gz` behind."""

_MAGIC = {b"PAR1": "a Parquet file", b"\x1f\x8b": "gzip-compressed", b"PK\x03\x04": "a zip archive (or an Excel file)"}
_CSV_FIELD_LIMIT = 1 << 30
_PARQUET_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it stands in its file."""

    values: dict[str, Any]
    place: Place


def read(file: SourceFile, bad: BadRecords) -> Iterator[Record]:
    """The records of a file, in order. Raises BadDataError for a file that is not what its suffix says."""
    name = file.path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES or name.endswith(".parquet.gz"):
        raise BadDataError(
            f"{file.uri}: no reader for this suffix",
            advice=f"name the file by its content: {', '.join(SUFFIXES)}, the text ones also with .gz",
        )
    if file.size == 0:
        bad.add(file.uri, RecordProblem("empty file", "the file is empty", "remove it or write it again"))
        return
    _check_magic(file, "parquet" if suffix == ".parquet" else "gzip" if name.endswith(".gz") else "text")
    if suffix == ".parquet":
        yield from _parquet(file)
        return
    reader: Callable[[Iterator[Line], SourceFile, BadRecords], Iterator[Record]] = _TEXT_READERS[suffix]
    try:
        with _open(file.path) as stream:
            yield from reader(_decoded(stream, file, bad), file, bad)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadDataError(f"{file.uri}: damaged gzip data ({error})", advice="upload the file again") from error


Line = tuple[int, str]
"""Line number from 1, and the line without its end."""


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")


def _check_magic(file: SourceFile, expected: str) -> None:
    with file.path.open("rb") as stream:
        start = stream.read(4)
    found = next((what for magic, what in _MAGIC.items() if start.startswith(magic)), "text")
    wanted = {"parquet": "a Parquet file", "gzip": "gzip-compressed", "text": "text"}[expected]
    if found != wanted:
        starts = f"; it starts with {start!r}" if found == "text" else ""
        raise BadDataError(
            f"{file.uri}: by its suffix the file is {wanted}, but its content is {found}{starts}",
            advice="give the file the suffix of its content, or write it again",
        )


def _decoded(stream: BinaryIO, file: SourceFile, bad: BadRecords) -> Iterator[Line]:
    """Lines as UTF-8 text; one that does not decode is reported and left out."""
    for number, raw in enumerate(stream, start=1):
        try:
            text = raw.removeprefix(b"\xef\xbb\xbf").decode() if number == 1 else raw.decode()
        except UnicodeDecodeError as error:
            what = f"not UTF-8: byte {raw[error.start]:#04x} at position {error.start + 1}"
            problem = RecordProblem("undecodable bytes", what, "save the file as UTF-8")
            bad.add(str(Place(file.uri, number)), problem)
            continue
        yield number, text.rstrip("\r\n")


def _json_lines(lines: Iterator[Line], file: SourceFile, bad: BadRecords) -> Iterator[Record]:
    for number, line in lines:
        if not line.strip():
            continue
        place = Place(file.uri, number)
        try:
            yield Record(_json_object(line), place)
        except RecordProblem as problem:
            bad.add(str(place), problem)


def _json_object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        where = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise RecordProblem("malformed JSON", f"not JSON: {where}", "write one JSON object per line") from None
    return _checked_object(value)


def _checked_object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordProblem("malformed JSON", f"not an object: {shown(value)}", "write one JSON object per line")
    return value


def _json(lines: Iterator[Line], file: SourceFile, bad: BadRecords) -> Iterator[Record]:
    """`.json` holds either one object a line or one array of objects."""
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    if not first[1].lstrip().startswith("["):
        yield from _json_lines(_chain(first, lines), file, bad)
        return
    text = "\n".join([first[1], *(line for _, line in lines)])
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"line {first[0] + error.lineno - 1}: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
        raise BadDataError(f"{file.uri}: not a JSON array: {where}", advice="mend it, or write JSON Lines") from error
    for index, value in enumerate(values, start=1):
        place = Place(file.uri, index, "element")
        try:
            yield Record(_checked_object(value), place)
        except RecordProblem as problem:
            bad.add(str(place), problem)


def _chain(first: Line, rest: Iterator[Line]) -> Iterator[Line]:
    yield first
    yield from rest


def _csv(lines: Iterator[Line], file: SourceFile, bad: BadRecords) -> Iterator[Record]:
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    position = 0

    def texts() -> Iterator[str]:
        nonlocal position
        for number, line in lines:
            position = number
            yield line + "\n"

    rows = csv.reader(texts(), strict=True)
    header = next(rows, None)
    if header is None:
        return
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise BadDataError(f"{file.uri} line 1: column {', '.join(repeated)} appears twice", advice="rename one")
    while True:
        before = position
        try:
            row = next(rows, None)
        except csv.Error as error:
            problem = RecordProblem("malformed CSV", f"not CSV: {error}", "quote fields with double quotes")
            bad.add(str(Place(file.uri, before + 1)), problem)
            continue
        if row is None:
            return
        if not row:
            continue
        place = Place(file.uri, position - sum(field.count("\n") for field in row))
        if len(row) != len(header):
            what = f"{len(row)} fields, but the header has {len(header)}: {', '.join(header)}"
            bad.add(str(place), RecordProblem("malformed CSV", what, "quote fields that hold a comma or a line end"))
            continue
        yield Record(dict(zip(header, row, strict=True)), place)


def _text(lines: Iterator[Line], file: SourceFile, bad: BadRecords) -> Iterator[Record]:
    """Every paragraph is a record `{"text": ...}`; blank lines separate them, and the lines within stay as they are."""
    del bad  # a line that decodes is always part of a paragraph
    paragraph: list[str] = []
    start = 0
    for number, line in lines:
        if line.strip():
            start = start if paragraph else number
            paragraph.append(line)
        elif paragraph:
            yield Record({"text": "\n".join(paragraph)}, Place(file.uri, start))
            paragraph = []
    if paragraph:
        yield Record({"text": "\n".join(paragraph)}, Place(file.uri, start))


def _parquet(file: SourceFile) -> Iterator[Record]:
    number = 0
    try:
        with pq.ParquetFile(file.path) as table:
            for batch in table.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(values, Place(file.uri, number, "row"))
    except (pa.ArrowInvalid, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise BadDataError(
            f"{file.uri}: not readable as Parquet after row {number}: {first_line}", advice="write the file again"
        ) from error


_TEXT_READERS: dict[str, Callable[[Iterator[Line], SourceFile, BadRecords], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".txt": _text,
}
