"""Chat: conversations, rendered with the tokenizer's chat template."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from finetune_api.v1alpha1 import DataFormat

from ..messages import (
    MEDIA_COLUMNS,
    SYSTEM_COLUMN,
    TEMPLATE_COLUMNS,
    parse_messages,
    system_text,
    template_values,
    with_message_texts,
    with_nested_texts,
    with_system_message,
)
from ..problems import Place
from .base import FORMATS, Example, Formatter, RecordFormat, TemplateUse


@FORMATS.register
class Chat(RecordFormat):
    """A list of messages, and the variables that a template may read (tools, documents)."""

    name = DataFormat.CHAT
    version = 2
    columns = {"messages": ("messages", "conversations")}
    optional_columns = (SYSTEM_COLUMN, *TEMPLATE_COLUMNS, *MEDIA_COLUMNS)
    template = TemplateUse.REQUIRED

    def with_texts(
        self, record: Mapping[str, Any], place: Place, change: Callable[[str], str], formatter: Formatter
    ) -> dict[str, Any]:
        """The texts of messages, tool calls and documents. Definitions of tools are not changed."""
        column, value = formatter.value(record, "messages")
        in_parquet = place.unit == "row"
        messages = parse_messages(value, column, nulls_are_absent=in_parquet)
        changed = dict(record) | {column: [with_message_texts(message, change) for message in messages]}
        documents = template_values(record, nulls_are_absent=in_parquet).get("documents")
        if documents:
            changed["documents"] = [with_nested_texts(document, change) for document in documents]
        if column != SYSTEM_COLUMN and (text := system_text(record)):
            changed[SYSTEM_COLUMN] = change(text)
        return changed

    def example(self, record: Mapping[str, Any], place: Place, formatter: Formatter) -> Example:
        """Only the assistant's answers carry loss, unless the formatter trains on inputs."""
        column, value = formatter.value(record, "messages")
        in_parquet = place.unit == "row"
        messages = parse_messages(value, column, nulls_are_absent=in_parquet)
        if column != SYSTEM_COLUMN:
            messages = with_system_message(record, messages)
        example = formatter.chat(messages, place, template_values(record, nulls_are_absent=in_parquet))
        texts = (message["content"] for message in messages if message["role"] not in ("system", "developer"))
        return replace(example, messages=tuple(texts))
