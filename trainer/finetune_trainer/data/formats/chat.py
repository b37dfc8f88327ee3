"""Chat: conversations, rendered with the tokenizer's chat template."""

from collections.abc import Mapping
from typing import Any

from finetune_api.v1alpha1 import DataFormat

from ..messages import MEDIA_COLUMNS, TEMPLATE_COLUMNS, parse_messages, template_values
from ..problems import Place
from .base import FORMATS, Example, Formatter, RecordFormat, TemplateUse


@FORMATS.register
class Chat(RecordFormat):
    """A list of messages, and the variables that a template may read (tools, documents)."""

    name = DataFormat.CHAT
    columns = {"messages": ("messages", "conversations")}
    optional_columns = (*TEMPLATE_COLUMNS, *MEDIA_COLUMNS)
    template = TemplateUse.REQUIRED

    def example(self, record: Mapping[str, Any], place: Place, formatter: Formatter) -> Example:
        """Only the assistant's answers carry loss."""
        column, value = formatter.value(record, "messages")
        in_parquet = place.unit == "row"
        messages = parse_messages(value, column, nulls_are_absent=in_parquet)
        return formatter.chat(messages, place, template_values(record, nulls_are_absent=in_parquet))
