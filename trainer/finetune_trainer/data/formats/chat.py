"""Chat: conversations, formed by the chat template of the tokenizer."""

from collections.abc import Mapping
from typing import Any

from finetune_api.v1alpha1 import DataFormat

from ..messages import MEDIA_COLUMNS, TEMPLATE_COLUMNS, parse_messages, template_values
from ..problems import Place
from .base import FORMATS, Example, Formatter, RecordFormat, TemplateUse


@FORMATS.register
class Chat(RecordFormat):
    """A list of messages, and the values that a template may ask for (tools, documents)."""

    name = DataFormat.CHAT
    columns = {"messages": ("messages", "conversations")}
    optional_columns = (*TEMPLATE_COLUMNS, *MEDIA_COLUMNS)
    template = TemplateUse.REQUIRED

    def example(self, record: Mapping[str, Any], place: Place, formatter: Formatter) -> Example:
        """The answers of the assistant carry loss."""
        column, value = formatter.value(record, "messages")
        in_parquet = place.unit == "row"
        messages = parse_messages(value, column, nulls_are_absent=in_parquet)
        return formatter.chat(messages, place, template_values(record, nulls_are_absent=in_parquet))
