"""Reads the file of `spec.data.augmentation.synonyms`: JSON Lines or CSV with the columns `word` and `synonyms`."""

from typing import Any

from finetune_api.v1alpha1 import BadRecordAction

from ...errors import BadDataError
from ..problems import BadRecords, RecordProblem
from ..readers import file_type, read
from ..sources import SourceFile

MAX_FILE_BYTES = 4 << 20
MAX_WORDS = 50_000
MAX_SYNONYMS = 50
"""Synonyms of one word."""
MAX_CHARACTERS = 100
"""Characters of a word or a synonym."""
_TYPES = (".jsonl", ".ndjson", ".csv")

Synonyms = dict[str, tuple[str, ...]]
"""Word in lower case -> its synonyms."""


def read_synonyms(file: SourceFile) -> Synonyms:
    """Read all words. Raises BadDataError for another type of file, a file above a bound and an unusable record."""
    if file_type(file) not in _TYPES or file.path.name.lower().endswith(".gz"):
        raise BadDataError(f"{file.uri}: synonyms must be in JSON Lines or CSV", advice="use the suffix .jsonl or .csv")
    if file.size > MAX_FILE_BYTES:
        raise BadDataError(
            f"{file.uri} must have at most {MAX_FILE_BYTES:,} bytes, not {file.size:,}", advice="remove rare words"
        )
    bad = BadRecords(BadRecordAction.FAIL)
    found: Synonyms = {}
    for record in read(file, bad):
        try:
            word, synonyms = _entry(record.values)
        except RecordProblem as problem:
            bad.add(str(record.place), problem)
            continue
        found[word] = tuple(dict.fromkeys((*found.get(word, ()), *synonyms)))[:MAX_SYNONYMS]
        if len(found) > MAX_WORDS:
            raise BadDataError(f"{file.uri} must have at most {MAX_WORDS:,} words", advice="remove rare words")
    bad.raise_if_any()
    if not found:
        raise BadDataError(f"{file.uri} has no words", advice="add records with the columns word and synonyms")
    return found


def _entry(values: dict[str, Any]) -> tuple[str, list[str]]:
    """The word and its synonyms, without the word itself. In CSV, synonyms are separated by `|`."""
    synonyms = values.get("synonyms")
    if isinstance(synonyms, str):
        synonyms = synonyms.split("|")
    if not isinstance(synonyms, list):
        raise RecordProblem(
            "wrong type", "column 'synonyms' must be a list of texts", "write a list, or in CSV texts separated by |"
        )
    word, *others = (_checked(text) for text in (values.get("word"), *synonyms))
    if word.split() != [word]:
        raise RecordProblem("wrong type", "column 'word' must be one word", "remove the white space, or the record")
    others = [text for text in others if text.lower() != word.lower()]
    if not others or len(others) > MAX_SYNONYMS:
        raise RecordProblem(
            "wrong number", f"a word must have 1 to {MAX_SYNONYMS} synonyms, not {len(others)}", "change or remove it"
        )
    return word.lower(), others


def _checked(text: Any) -> str:
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_CHARACTERS:
        raise RecordProblem(
            "wrong type",
            f"columns 'word' and 'synonyms' must have texts of 1 to {MAX_CHARACTERS} characters",
            "correct or remove the record",
        )
    return text.strip()
