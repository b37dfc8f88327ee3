"""Text: documents, all of which is learnt."""

from collections.abc import Mapping
from typing import Any

from finetune_api.v1alpha1 import DataFormat

from ..problems import Place
from .base import FORMATS, Example, Formatter, RecordFormat


@FORMATS.register
class Text(RecordFormat):
    """A document that is longer than a row becomes several rows."""

    name = DataFormat.TEXT
    columns = {"text": ("text",)}
    is_divisible = True

    def example(self, record: Mapping[str, Any], place: Place, formatter: Formatter) -> Example:
        """A document between the begin and the end token, all of which carries loss."""
        bare = formatter.text(record, "text")
        text = formatter.ended(formatter.begun(bare))
        return Example(text, place, spans=((-1, len(text)),), divisible=True, parts=(formatter.stripped(bare),))

    def prompt(self, prompt: str, formatter: Formatter) -> str:
        """The prompt is continued as it is."""
        return formatter.begun(prompt)
