"""Reads records from files: JSON Lines, JSON, CSV, Parquet and plain text, each record with its location.

A file is read as independent blocks of a few MiB, so that worker processes can read them in parallel. Workers parse
lines of JSON and rows of Parquet; for CSV, whose rows may span lines, and paragraphs of text, the blocks hold parsed
records.

An unreadable record is reported and dropped. A file whose content does not match its suffix stops the reading. For
any bytes, the result is records or BadDataError.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune_api.v1alpha1 import BadRecordAction

from ..errors import BadDataError
from .problems import BadRecords, Place, RecordProblem, listed, shown
from .sources import SourceFile

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".txt", ".parquet")
"""The first five also with the additional suffix `.gz`."""

BLOCK_BYTES = 1 << 20

Columns = Callable[[Sequence[str]], Iterable[str]]
"""Column names of a file -> those whose values will be used."""

_MAGIC = {
    b"PAR1": "a Parquet file",
    b"PARE": "an encrypted Parquet file",
    b"\x1f\x8b": "gzip-compressed",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ\x00": "xz-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"PK\x03\x04": "a zip archive (or an Excel file)",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3\x00": "a SQLite database",
    b"%PDF-": "a PDF file",
    b"version https://git-lfs": "a Git LFS pointer instead of the file (run git lfs pull)",
}
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # starts with the byte order mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order mark -> encoding."""
_HEAD_BYTES = 4096
_LONGEST_LINE = 1 << 28
"""Characters. A dataset on a single line cannot be read in parts."""
_CSV_FIELD_LIMIT = 1 << 26
_DELIMITERS = (",", ";", "\t", "|")
_SAVE_AS_UTF8 = "save the file as UTF-8 (older Windows programs write Windows-1252 or Latin-1)"
_PARQUET_BATCH_ROWS = 1024
_PARQUET_BUFFER_BYTES = 1 << 20
"""Bytes of a column read at a time; without it, a whole row group of the column is read into memory."""
_PARSED_RECORDS = 20_000
_CHARACTER_BYTES = 4
"""Maximum size, in UTF-8."""
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
"""JSON escapes of unpaired surrogates; two of them that form a pair are valid."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it is in its file."""

    values: dict[str, Any]
    place: Place


class Block(Protocol):
    """A part of a file that can be read independently, also in another process."""

    @property
    def file(self) -> SourceFile:
        """The file that the block belongs to."""

    def read(self, bad: BadRecords, columns: Columns) -> Iterator[Record]:
        """The records in order; unreadable ones are added to `bad`."""


def read(file: SourceFile, bad: BadRecords, columns: Columns = lambda names: names) -> Iterator[Record]:
    """The records of a file, in order. From Parquet and CSV files only the selected columns are read.

    Raises BadDataError if the content of the file does not match its suffix.
    """
    for block in blocks(file, columns):
        yield from block.read(bad, columns)


def blocks(file: SourceFile, columns: Columns, size: int = BLOCK_BYTES) -> Iterator[Block]:
    """The blocks of a file, of about `size` bytes each, in order. Raises BadDataError as `read` does."""
    suffix = file_type(file)
    if file.size == 0:
        yield ParsedBlock(file, (_Bad(file.uri, _empty_file()),))
    elif suffix == ".parquet":
        yield from _parquet(file, columns, size)
    else:
        try:
            yield from _text_blocks(file, suffix, columns, size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadDataError(f"{file.uri}: damaged gzip data ({error})", advice="upload the file again") from error
        except UnicodeError as error:
            raise BadDataError(
                f"{file.uri}: damaged {getattr(error, 'encoding', 'text')}: {getattr(error, 'reason', error)}",
                advice="save the file as UTF-8",
            ) from error


@dataclass(frozen=True)
class _Bad:
    """An unreadable record."""

    place: str
    problem: RecordProblem
    records: int = 1


@dataclass(frozen=True)
class ParsedBlock:
    """Records and problems in the order of the file."""

    file: SourceFile
    entries: Sequence[Record | _Bad]

    def read(self, bad: BadRecords, columns: Columns) -> Iterator[Record]:
        """Yield the records; problems are added to `bad`."""
        del columns
        for entry in self.entries:
            if isinstance(entry, _Bad):
                bad.add(entry.place, entry.problem, entry.records)
            else:
                yield entry


class _Collector(BadRecords):
    """Inserts problems among the records of a ParsedBlock instead of raising or counting them."""

    def __init__(self, entries: list[Record | _Bad]) -> None:
        super().__init__(BadRecordAction.SKIP)
        self._entries = entries

    def add(self, place: str, problem: RecordProblem, records: int = 1) -> None:
        """Add the problem."""
        self._entries.append(_Bad(place, problem, records))


@dataclass(frozen=True)
class LinesBlock:
    """Whole lines of JSON in UTF-8: their position in the file or, for compressed files, the lines themselves."""

    file: SourceFile
    first_line: int
    """Number of the first line, from 1."""
    encoding: str
    offset: int
    size: int
    data: bytes | None = None

    def read(self, bad: BadRecords, columns: Columns) -> Iterator[Record]:
        """One record for each line with an object."""
        data = self.data
        if data is None:
            with self.file.path.open("rb") as stream:
                stream.seek(self.offset)
                data = stream.read(self.size)
        lines = _decoded(io.BytesIO(data), self.file, bad, self.encoding, keeps_all=False, first=self.first_line)
        yield from _json_lines(lines, self.file, bad, columns)


@dataclass(frozen=True)
class RowsBlock:
    """Rows of Parquet."""

    file: SourceFile
    first_row: int
    """Number of the first row, from 1."""
    data: bytes
    """Batches of rows with the selected columns, as an Arrow stream."""

    def read(self, bad: BadRecords, columns: Columns) -> Iterator[Record]:
        """One record for each row whose values Python can represent."""
        del columns  # the batches hold no others
        number = self.first_row
        for batch in pa.ipc.open_stream(self.data):
            for values in _rows(batch, batch.schema.names):
                place = Place(self.file.uri, number, "row")
                number += 1
                if isinstance(values, RecordProblem):
                    bad.add(str(place), values)
                else:
                    yield Record(values, place)


def _empty_file() -> RecordProblem:
    return RecordProblem("empty file", "the file is empty", "remove it, or write it again")


def column_names(file: SourceFile, bad: BadRecords) -> tuple[str, ...] | None:
    """The columns of the first record; None for a file without records. Raises BadDataError as `read` does."""
    if file_type(file) == ".parquet" and file.size:
        with _parquet_file(file) as table:
            return tuple(table.schema_arrow.names) if table.metadata.num_rows else None
    is_csv = file_type(file) == ".csv"
    columns: Columns = (lambda names: names) if is_csv else (lambda _: ())  # the values of lines of JSON are not needed
    return next((tuple(record.values) for record in read(file, bad, columns)), None)


def unread_columns(file: SourceFile, columns: Columns) -> tuple[str, ...]:
    """The columns of a Parquet or CSV file whose values are not read. Raises BadDataError as `read` does."""
    if file_type(file) not in (".parquet", ".csv") or not file.size:
        return ()
    names = column_names(file, BadRecords(BadRecordAction.SKIP)) or ()
    used = set(columns(names))
    return tuple(name for name in names if name not in used)


def file_type(file: SourceFile) -> str:
    """The suffix that determines how the file is read, checked against the first bytes of the file."""
    if not _is_encodable(file.uri):
        raise BadDataError(f"{file.uri}: the file's name is not UTF-8", advice="rename the file")
    name = file.path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES or name.endswith(".parquet.gz"):
        raise BadDataError(
            f"{file.uri}: no reader for this suffix",
            advice=f"use a suffix that matches the content: {', '.join(SUFFIXES)}, the text ones also with .gz",
        )
    if file.size:
        with file.path.open("rb") as stream:
            start = stream.read(_HEAD_BYTES)
        _check_magic(file, start, "parquet" if suffix == ".parquet" else "gzip" if name.endswith(".gz") else "text")
    return suffix


Line = tuple[int, str]
"""Line number from 1, and the line without its line end."""


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")


def _check_magic(file: SourceFile, start: bytes, expected: str) -> None:
    found = next((what for magic, what in _MAGIC.items() if start.startswith(magic)), "text")
    wanted = {"parquet": "a Parquet file", "gzip": "gzip-compressed", "text": "text"}[expected]
    if found != wanted:
        starts = f"; it starts with {start[:4]!r}" if found == "text" else ""
        raise BadDataError(
            f"{file.uri}: the suffix says {wanted}, but the content is {found}{starts}",
            advice="rename the file to match its content, or write it again",
        )


def _text_blocks(file: SourceFile, suffix: str, columns: Columns, size: int) -> Iterator[Block]:
    with io.BufferedReader(cast(io.RawIOBase, _open(file.path)), buffer_size=1 << 16) as stream:
        head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
        if not head:
            yield ParsedBlock(file, (_Bad(file.uri, _empty_file()),))
            return
        encoding = _encoding(head, file)
        reader = _TEXT_READERS[suffix]
        if reader is _json_lines:
            if _is_json_array(file, encoding):
                reader = _json_array
            elif encoding.startswith("utf-8"):
                yield from _line_blocks(stream, file, encoding, size)
                return
        entries: list[Record | _Bad] = []
        found = _Collector(entries)
        # A line that is missing inside a CSV row would make the start of the next row unknown.
        lines = _decoded(stream, file, found, encoding, keeps_all=reader is _csv)
        yield from _parsed_blocks(reader(lines, file, found, columns), entries, file, size)


def _characters(value: Any) -> int:
    """Number of characters of the texts in a value, including nested ones; 8 for any other value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(name)) + _characters(child) for name, child in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_characters, value))
    return 8


def _parsed_blocks(
    records: Iterator[Record], entries: list[Record | _Bad], file: SourceFile, size: int
) -> Iterator[Block]:
    """Blocks of the records and of the problems that reading them adds to `entries`."""
    error: Exception | None = None
    characters = 0
    while error is None:
        try:
            record = next(records, None)
        except (BadDataError, EOFError, gzip.BadGzipFile, zlib.error, UnicodeError) as raised:
            record, error = None, raised  # raised after the records before it
        if record is not None:
            entries.append(record)
            characters += _characters(record.values)
        if entries and (record is None or characters >= size or len(entries) >= _PARSED_RECORDS):
            yield ParsedBlock(file, tuple(entries))
            entries.clear()
            characters = 0
        if record is None:
            break
    if error is not None:
        raise error


def _line_blocks(stream: BinaryIO, file: SourceFile, encoding: str, size: int) -> Iterator[Block]:
    """Split UTF-8 after line ends. Lines are counted here, so that every block has the number of its first line."""
    is_compressed = file.path.name.lower().endswith(".gz")
    line, offset, rest = 1, 0, b""
    is_last = False
    while not is_last:
        more, error = _read_fully(stream, max(size, len(rest)))  # twice as much for a line longer than a block
        is_last = len(more) < max(size, len(rest))
        data = rest + more
        # A `\r` at the very end may be the first half of a line end.
        end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, -1)) + 1
        if (is_last and error is None) or len(data) - end >= _CHARACTER_BYTES * _LONGEST_LINE:
            end = len(data)  # the reader of the block rejects a line that is too long
        if end:
            block = data[:end]
            yield LinesBlock(file, line, encoding, offset, end, block if is_compressed else None)
            line += block.count(b"\n") + (block.count(b"\r") - block.count(b"\r\n") if b"\r" in block else 0)
            offset, encoding = offset + end, "utf-8"
        rest = data[end:]
        if error is not None:
            raise error


def _read_fully(stream: BinaryIO, size: int) -> tuple[bytes, Exception | None]:
    """Read `size` bytes or as many as possible; also returns the error of a damaged gzip file."""
    pieces: list[bytes] = []
    try:
        while size > 0 and (piece := stream.read(min(size, 1 << 16))):
            pieces.append(piece)
            size -= len(piece)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return b"".join(pieces), error
    return b"".join(pieces), None


def _is_json_array(file: SourceFile, encoding: str) -> bool:
    """Whether the first non-empty line begins an array."""
    ignored = BadRecords(BadRecordAction.SKIP)
    with io.BufferedReader(cast(io.RawIOBase, _open(file.path)), buffer_size=1 << 16) as stream:
        try:
            lines = _decoded(stream, file, ignored, encoding, keeps_all=False)
            first = next((line for _, line in lines if line.strip()), "")
        except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeError):
            return False  # reading the records raises the error again
    return first.lstrip().startswith("[")


def _decoded(
    stream: BinaryIO, file: SourceFile, bad: BadRecords, encoding: str, *, keeps_all: bool, first: int = 1
) -> Iterator[Line]:
    """Decode lines, which may end in `\\n`, `\\r\\n` or `\\r`; `first` is the number of the first line.

    A line that is not UTF-8 is reported and dropped, or kept (`keeps_all`) with its bytes as unpaired surrogates.
    """
    # Undecodable bytes become unpaired surrogates, which valid UTF-8 never contains.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    with io.TextIOWrapper(stream, encoding, errors, newline=None) as text:
        for number, line in enumerate(iter(lambda: text.readline(_LONGEST_LINE), ""), start=first):
            if len(line) >= _LONGEST_LINE:
                raise BadDataError(
                    f"{file.uri} line {number}: longer than {_LONGEST_LINE >> 20} Mi characters",
                    advice="write one record per line, as JSON Lines, or Parquet",
                )
            if keeps_all or _is_encodable(line):
                yield number, line.removesuffix("\n")
            else:
                bad.add(str(Place(file.uri, number)), _undecodable(line))


def _encoding(head: bytes, file: SourceFile) -> str:
    """The encoding, from the byte order mark, else UTF-8. Raises BadDataError for other encodings."""
    _check_magic(file, head, "text")
    encoding = next((name for mark, name in _ENCODINGS if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and (head.count(0) * 4 > len(head) or _is_unmarked_utf16(head)):
        raise BadDataError(
            f"{file.uri}: the file is UTF-16 or UTF-32 without a byte order mark, or not text",
            advice="save the file as UTF-8, or with a byte order mark",
        )
    return encoding


def _is_unmarked_utf16(head: bytes) -> bool:
    """Whether the bytes are lines of UTF-16 with few zero bytes, such as Chinese text, and not valid UTF-8.

    Line ends and commas then have a zero byte, all at even or all at odd positions.
    """
    places = {index % 2 for index, byte in enumerate(head) if byte == 0}
    if len(places) != 1 or _decoded_head(head, "utf-8") is not None:
        return False
    text = _decoded_head(head, "utf-16-le" if 1 in places else "utf-16-be")
    return text is not None and "\n" in text


def _decoded_head(head: bytes, encoding: str) -> str | None:
    """Decode the beginning of a text; None if it has another encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return None


def _is_encodable(text: str) -> bool:
    """False for text with unpaired surrogates."""
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _undecodable(line: str) -> RecordProblem:
    position = next(index for index, character in enumerate(line) if "\udc80" <= character <= "\udcff")
    what = f"not UTF-8: byte {ord(line[position]) - 0xDC00:#04x} at position {position + 1}"
    return RecordProblem("undecodable bytes", what, _SAVE_AS_UTF8)


def _json_lines(lines: Iterator[Line], file: SourceFile, bad: BadRecords, columns: Columns) -> Iterator[Record]:
    """One object per line."""
    for number, line in lines:
        if not line.strip():
            continue
        place = Place(file.uri, number)
        try:
            yield Record(_checked_object(_parsed(line), columns if _SURROGATE_ESCAPE.search(line) else None), place)
        except RecordProblem as problem:
            bad.add(str(place), problem)


def _json_array(lines: Iterator[Line], file: SourceFile, bad: BadRecords, columns: Columns) -> Iterator[Record]:
    """One array of objects, which is read completely."""
    first = next((number, line) for number, line in lines if line.strip())
    texts = [first[1]]
    for number, line in lines:
        if number != first[0] + len(texts):
            raise BadDataError(
                f"{file.uri} line {first[0] + len(texts)}: not UTF-8, in the middle of a JSON array",
                advice="save the file as UTF-8, or write one JSON object per line",
            )
        texts.append(line)
    text = "\n".join(texts)
    try:
        values = json.loads(text, object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as error:
        where = f"line {first[0] + error.lineno - 1}: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
        raise BadDataError(
            f"{file.uri}: not a JSON array: {where}", advice="correct it, or write one JSON object per line"
        ) from error
    to_check = columns if _SURROGATE_ESCAPE.search(text) else None
    for index, value in enumerate(values, start=1):
        place = Place(file.uri, index, "element")
        try:
            yield Record(_checked_object(value, to_check), place)
        except RecordProblem as problem:
            bad.add(str(place), problem)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object. JSON allows duplicate keys; Python silently uses the last one."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = _repeated(name for name, _ in pairs)
        raise ValueError(f"key {listed([shown(name) for name in names], most=3)} must not appear twice in one object")
    return values


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _parsed(line: str) -> object:
    try:
        return json.loads(line, object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as error:
        where = (
            f"{error.msg.removesuffix(' at')} at column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else str(error)
        )
        raise RecordProblem("malformed JSON", f"not JSON: {where}", "write one JSON object per line") from None


def _checked_object(value: object, columns: Columns | None) -> dict[str, Any]:
    """`columns`: those whose values may contain an unpaired surrogate."""
    if not isinstance(value, dict):
        raise RecordProblem("malformed JSON", f"not an object: {shown(value)}", "write one JSON object per line")
    for name in columns(list(value)) if columns else ():
        _check_characters(name, value[name])
    return value


def _check_characters(column: str, value: object) -> None:
    """Reject unpaired surrogates, which JSON can express but tokenizers and files do not accept; checks nested
    values."""
    try:
        json.dumps([column, value], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        what = f"column {shown(column)} contains an unpaired surrogate, {error.object[error.start]!r}"
        raise RecordProblem("undecodable bytes", what, "write characters beyond U+FFFF without escapes") from None
    except (ValueError, RecursionError):
        what = f"column {shown(column)} is nested too deeply or contains a number with too many digits"
        raise RecordProblem("malformed JSON", what, "write simpler values") from None


def _csv(lines: Iterator[Line], file: SourceFile, bad: BadRecords, columns: Columns) -> Iterator[Record]:
    """The first non-empty line has the column names and determines the delimiter: `,` `;` tab or `|`.

    If the header contains two of these, the first row decides.
    """
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    first, delimiters = _first_csv_line(lines)
    if first is None:
        return
    ahead = list(islice(lines, 1)) if len(delimiters) > 1 else []
    delimiter = _matching_delimiter(delimiters, first[1], ahead[0][1]) if ahead else delimiters[0]
    counted = _CountedLines(chain([first], ahead, lines))
    rows = csv.reader(counted, strict=True, delimiter=delimiter)
    header = _csv_header(rows, first[0], file)
    used = set(columns([name for name in header if name]))
    while True:
        before = counted.begin_row()
        try:
            row = next(rows, None)
        except csv.Error as error:
            counted.skip_to_end_of_row(lambda line: _is_whole_row(line, delimiter, len(header)))
            bad.add(str(Place(file.uri, before + 1)), *_malformed_csv(error, before + 1, counted.position))
            continue
        if row is None:
            return
        if not row:
            continue
        place = Place(file.uri, counted.position - sum(field.count("\n") for field in row))
        if not _is_encodable(text := delimiter.join(row)):
            bad.add(str(place), _undecodable(text))
            continue
        if len(row) != len(header):
            what = f"{len(row)} fields, but the header has {len(header)}: {listed(header)}"
            bad.add(str(place), RecordProblem("malformed CSV", what, "quote fields that contain a comma or a line end"))
            continue
        yield Record({name: field for name, field in zip(header, row, strict=True) if name in used}, place)


class _CountedLines:
    """Lines for the csv module, which may use several for a row; `position` is the number of the last one."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.position = 0
        self._quotes = 0
        """Lines of the current row so far."""
        self._lines = iter(lines)

    def begin_row(self) -> int:
        """Start a row. Returns the number of the last line of the previous row."""
        self._quotes = 0
        return self.position

    def skip_to_end_of_row(self, is_row: Callable[[str], bool]) -> None:
        """Skip the rest of a row that is not CSV.

        After an odd number of quotes, a field is still open: the lines up to the closing quote are not separate rows. A
        line that is a complete row also ends the skipping: then one quote was superfluous.
        """
        while self._quotes % 2:
            number, line = next(self._lines, (0, ""))
            if not number:
                return
            if is_row(line):
                self._lines = chain([(number, line)], self._lines)
                return
            self.position = number
            self._quotes += line.count('"')

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.position, line = next(self._lines)
        self._quotes += line.count('"')
        return line + "\n"


def _is_whole_row(line: str, delimiter: str, fields: int) -> bool:
    """Whether a line by itself is a row with `fields` fields and paired quotes."""
    return _width(line, delimiter) == fields


def _first_csv_line(lines: Iterator[Line]) -> tuple[Line | None, Sequence[str]]:
    """The line with the column names, and the possible delimiters, the most likely first."""
    present = ((number, line) for number, line in lines if line.strip())
    first = next(present, None)
    if first is None:
        return None, [","]
    declared = next((mark for mark in _DELIMITERS if first[1].strip(" ").lower() == f"sep={mark}"), None)
    if declared is not None:  # Excel's `sep=` line
        return next(present, None), [declared]
    return first, _delimiters(first[1])


def _malformed_csv(error: csv.Error, first: int, last: int) -> tuple[RecordProblem, int]:
    """The problem and the number of lines that it loses: an unclosed quote includes the lines after it."""
    lines = f" (lines {first} to {last})" if last > first else ""
    remedy = "quote fields with double quotes, and double the quotes within them"
    return RecordProblem("malformed CSV", f"not CSV: {error}{lines}", remedy), max(1, last - first + 1)


def _delimiters(header: str) -> Sequence[str]:
    """The delimiters that the header has outside of quotes; a comma if it has none."""
    outside_quotes = re.sub(r'"[^"]*"', "", header)
    return [mark for mark in _DELIMITERS if mark in outside_quotes] or [","]


def _matching_delimiter(delimiters: Sequence[str], header: str, row: str) -> str:
    """The first delimiter that splits row and header into equally many fields; the first of all if none does."""
    widths = {mark: _width(header, mark) for mark in delimiters}
    return next((mark for mark, width in widths.items() if width and _width(row, mark) == width), delimiters[0])


def _width(line: str, delimiter: str) -> int:
    """Number of fields of the line; 0 if it is not a row by itself."""
    try:
        return len(next(csv.reader([line], strict=True, delimiter=delimiter), ())) if line.count('"') % 2 == 0 else 0
    except csv.Error:
        return 0


def _csv_header(rows: Iterator[list[str]], number: int, file: SourceFile) -> list[str]:
    try:
        header = next(rows)
    except csv.Error as error:
        raise BadDataError(
            f"{file.uri} line {number}: the header is not CSV: {error}",
            advice="quote column names with double quotes, or do not quote them",
        ) from None
    if not _is_encodable("".join(header)):
        raise BadDataError(f"{file.uri} line {number}: the header is not UTF-8", advice=_SAVE_AS_UTF8)
    # A column without a name, such as an index or one after a trailing comma, is ignored.
    if repeated := _repeated(name for name in header if name):
        raise _repeated_columns(f"{file.uri} line {number}", repeated)
    return header


def _repeated_columns(place: str, names: list[str]) -> BadDataError:
    return BadDataError(f"{place}: column {listed(sorted(names))} must not appear twice", advice="rename one")


def _text(lines: Iterator[Line], file: SourceFile, bad: BadRecords, columns: Columns) -> Iterator[Record]:
    """Every paragraph is a record `{"text": ...}`; blank lines separate paragraphs, line ends within one are kept."""
    del bad, columns  # a line that decodes is always part of a paragraph
    paragraph: list[str] = []
    start, last, has_gap = 0, 0, False
    for number, line in chain(lines, [(0, "")]):
        has_gap |= number not in (0, last + 1)  # a line was dropped; so is the paragraph around it
        last = number
        if line.strip():
            start = start if paragraph else number
            paragraph.append(line)
            continue
        if paragraph and not has_gap:
            yield Record({"text": "\n".join(paragraph)}, Place(file.uri, start))
        paragraph, has_gap = [], False


def _parquet_file(file: SourceFile) -> pq.ParquetFile:
    try:
        table = pq.ParquetFile(file.path, buffer_size=_PARQUET_BUFFER_BYTES)
        names = table.schema_arrow.names
    except _PARQUET_ERRORS as error:
        raise _unreadable_parquet(file, 0, error) from error
    if repeated := _repeated(names):
        raise _repeated_columns(file.uri, repeated)
    return table


def _parquet(file: SourceFile, columns: Columns, size: int) -> Iterator[Block]:
    with _parquet_file(file) as table:
        used = list(columns(table.schema_arrow.names))
        batches = table.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=used)
        first, number, waiting = 1, 0, list[pa.RecordBatch]()
        error: Exception | None = None
        batch = None
        while error is None:
            try:
                batch = next(batches, None)
            except _PARQUET_ERRORS as raised:
                batch, error = None, raised
            if batch is not None:
                waiting.append(batch.select(used))
                number += batch.num_rows
            if waiting and (batch is None or sum(each.nbytes for each in waiting) >= size):
                yield RowsBlock(file, first, _stream_of(waiting))
                first, waiting = number + 1, []
            if batch is None:
                break
        if error is not None:
            raise _unreadable_parquet(file, number, error) from error


def _stream_of(batches: list[pa.RecordBatch]) -> bytes:
    """Pickling a batch would include the whole buffers that it is a slice of; an Arrow stream has only its rows."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
    return cast(bytes, sink.getvalue().to_pybytes())


def _rows(batch: pa.RecordBatch, names: list[str]) -> Iterable[dict[str, Any] | RecordProblem]:
    """A batch's rows as Python values; a problem for a row with a value that Python cannot represent."""
    try:
        rows = cast(list[dict[str, Any]], batch.select(names).to_pylist())
    except _VALUE_ERRORS:
        return (_row(batch, names, index) for index in range(batch.num_rows))
    for name in names:
        if (width := _narrow_float(batch.schema.field(name).type)) is not None:
            for row in rows:
                row[name] = _shortest(row[name], width)
    return rows


def _narrow_float(kind: pa.DataType) -> type[np.floating[Any]] | None:
    """The type of the numbers of a column, or of its lists, if they have fewer than 64 bits."""
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_float32(kind):
        return np.float32
    return np.float16 if pa.types.is_float16(kind) else None


def _shortest(value: Any, width: type[np.floating[Any]]) -> Any:
    """Numbers of a narrow type as the shortest ones that it rounds to them: 0.1, not 0.10000000149011612.

    Other file types have the former, and it may be a label.
    """
    if isinstance(value, list):
        return [_shortest(item, width) for item in value]
    return None if value is None else float(str(width(value)))


def _row(batch: pa.RecordBatch, names: list[str], index: int) -> dict[str, Any] | RecordProblem:
    values = {}
    for name in names:
        column = batch.column(name)
        try:
            value, width = column[index].as_py(), _narrow_float(column.type)
            values[name] = value if width is None else _shortest(value, width)
        except UnicodeDecodeError as error:
            what = f"column {shown(name)} is not UTF-8: byte {error.object[error.start]:#04x}"
            return RecordProblem("undecodable bytes", what, f"write column {shown(name)} as UTF-8")
        except _VALUE_ERRORS as error:
            what = f"column {shown(name)} contains a {column.type} that cannot be read: {_first_line(error)}"
            return RecordProblem("unreadable value", what, f"correct the value, or write column {shown(name)} as text")
    return values


_PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)
"""Exceptions of pyarrow for files that are damaged or use unsupported features."""
_VALUE_ERRORS = (pa.ArrowException, ValueError, ArithmeticError, LookupError, TypeError, RecursionError)
"""Exceptions of `as_py`: text that is not UTF-8, times before year 1 or after year 9999, nanoseconds."""


def _unreadable_parquet(file: SourceFile, number: int, error: BaseException) -> BadDataError:
    is_too_large = isinstance(error, MemoryError)
    return BadDataError(
        f"{file.uri}: cannot be read as Parquet after row {number}: {_first_line(error)}",
        advice="write the file with smaller row groups" if is_too_large else "write the file again",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


_TEXT_READERS: Mapping[str, Callable[[Iterator[Line], SourceFile, BadRecords, Columns], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".csv": _csv,
    ".txt": _text,
}
