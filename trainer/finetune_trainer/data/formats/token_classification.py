"""TokenClassification: words, and a label for each of them."""

from collections.abc import Mapping
from typing import Any

from finetune_api.v1alpha1 import DataFormat

from ..labels import label_name
from ..messages import encodable
from ..problems import Place, RecordProblem, shown
from .base import FORMATS, Example, Formatter, RecordFormat


@FORMATS.register
class TokenClassification(RecordFormat):
    """The text is the words joined with spaces, as a trained model gets it."""

    name = DataFormat.TOKEN_CLASSIFICATION
    version = 2
    columns = {"tokens": ("tokens",), "tags": ("tags", "ner_tags")}
    text_fields = ("tokens",)
    tokenizer_adds_ends = True

    def example(self, record: Mapping[str, Any], place: Place, formatter: Formatter) -> Example:
        """A text whose words have labels."""
        column, words = _list(record, "tokens", formatter)
        other, tags = _list(record, "tags", formatter)
        if len(words) != len(tags):
            raise RecordProblem(
                "words without labels",
                f"columns {column!r} and {other!r} must be equally long, not {len(words)} words and {len(tags)} labels",
                "give every word one label",
            )
        words, tags = _without_ends(words, tags, formatter)
        if not words:
            raise RecordProblem("empty text", f"column {column!r} is empty", "fill it or remove the record")
        spans, start = [], 0
        for index, word in enumerate(words):
            if not isinstance(word, str):
                what = f"{column}[{index}] must be text, not {type(word).__name__} {shown(word)}"
                raise RecordProblem("wrong type", what, f"write column {column!r} as a list of words")
            if not word.strip():
                raise RecordProblem("empty text", f"{column}[{index}] is empty", "remove the word and its label")
            spans.append((start, start + len(word.strip())))
            start = spans[-1][1] + 1
        text = encodable(" ".join(word.strip() for word in words), f"column {column!r}")
        return Example(text, place, spans=tuple(spans), span_labels=tuple(label_name(tag) for tag in tags))


def _without_ends(words: list[Any], tags: list[Any], formatter: Formatter) -> tuple[list[Any], list[Any]]:
    """Words and labels without begin and end tokens around them, which the tokenizer adds."""
    first, last = 0, len(words)
    while first < last and isinstance(words[first], str) and formatter.is_bos_or_eos(words[first].strip()):
        first += 1
    while first < last and isinstance(words[last - 1], str) and formatter.is_bos_or_eos(words[last - 1].strip()):
        last -= 1
    return words[first:last], tags[first:last]


def _list(record: Mapping[str, Any], field: str, formatter: Formatter) -> tuple[str, list[Any]]:
    column, value = formatter.value(record, field)
    if value is None or (isinstance(value, list) and not value):
        raise RecordProblem("empty text", f"column {column!r} is empty", "fill it or remove the record")
    if not isinstance(value, list):
        what = f"column {column!r} must be a list, not {type(value).__name__} {shown(value)}"
        raise RecordProblem("wrong type", what, "write JSON Lines or Parquet with a list; CSV has none")
    return column, value
