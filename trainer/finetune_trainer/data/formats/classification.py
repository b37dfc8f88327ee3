"""Classification: a text and its label."""

from collections.abc import Mapping
from typing import Any

from finetune_api.v1alpha1 import DataFormat

from ..labels import label_name
from ..problems import Place
from .base import FORMATS, Example, Formatter, RecordFormat


@FORMATS.register
class Classification(RecordFormat):
    """The tokenizer adds its special tokens, so a text that has them already loses them here."""

    name = DataFormat.CLASSIFICATION
    columns = {"text": ("text",), "label": ("label",)}
    preferred_to = (DataFormat.TEXT,)  # a label beside the text is there to be learnt
    tokenizer_adds_ends = True

    def example(self, record: Mapping[str, Any], place: Place, formatter: Formatter) -> Example:
        """A text with a label."""
        text = formatter.bare(record, "text")
        return Example(text, place, label=label_name(formatter.value(record, "label")[1]))
