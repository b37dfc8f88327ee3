"""Classification: a text and its label."""

from collections.abc import Mapping
from typing import Any

from finetune_api.v1alpha1 import DataFormat

from ..labels import label_name
from ..problems import Place
from .base import FORMATS, Example, Formatter, RecordFormat


@FORMATS.register
class Classification(RecordFormat):
    """The tokenizer adds its special tokens, so special tokens at the ends of the text are removed here."""

    name = DataFormat.CLASSIFICATION
    columns = {"text": ("text",), "label": ("label",)}
    preferred_to = (DataFormat.TEXT,)  # a label column means that the label is to be learned
    tokenizer_adds_ends = True

    def example(self, record: Mapping[str, Any], place: Place, formatter: Formatter) -> Example:
        """A text with a label."""
        text = formatter.text_without_bos_eos(record, "text")
        return Example(text, place, label=label_name(formatter.value(record, "label")[1]))
