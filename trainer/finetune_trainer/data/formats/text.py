"""Text: documents; every token carries loss."""

from collections.abc import Mapping
from typing import Any

from finetune_api.v1alpha1 import DataFormat

from ..problems import Place
from .base import FORMATS, Example, Formatter, RecordFormat, everywhere


@FORMATS.register
class Text(RecordFormat):
    """A document that is longer than a row is split into several rows."""

    name = DataFormat.TEXT
    columns = {"text": ("text",)}
    is_divisible = True

    def example(self, record: Mapping[str, Any], place: Place, formatter: Formatter) -> Example:
        """A document between the begin and the end token; all of it carries loss."""
        bare = formatter.text(record, "text")
        text = formatter.with_bos_eos(bare)
        return Example(text, place, spans=everywhere(text), divisible=True, parts=(formatter.without_bos_eos(bare),))

    def prompt(self, prompt: str, formatter: Formatter) -> str:
        """The prompt, unchanged."""
        return formatter.with_bos(prompt)
