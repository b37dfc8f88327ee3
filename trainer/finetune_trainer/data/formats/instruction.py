"""Instruction: a prompt and its answer."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from finetune_api.v1alpha1 import DataFormat

from ..messages import MEDIA_COLUMNS, encodable, refuse_media
from ..problems import Place
from .base import FORMATS, Example, Formatter, RecordFormat, TemplateUse, changed_texts

INPUT_COLUMN = "input"
"""Optional third column; its text follows the prompt after a blank line."""


@FORMATS.register
class Instruction(RecordFormat):
    """Rendered with the chat template if the tokenizer has one, else with a blank line between prompt and answer."""

    name = DataFormat.INSTRUCTION
    columns = {"prompt": ("prompt", "instruction"), "completion": ("completion", "output", "response")}
    text_fields = ("prompt", "completion")
    optional_columns = (INPUT_COLUMN, *MEDIA_COLUMNS)
    template = TemplateUse.OPTIONAL

    def with_texts(
        self, record: Mapping[str, Any], place: Place, change: Callable[[str], str], formatter: Formatter
    ) -> dict[str, Any]:
        """Prompt, input and completion."""
        changed = super().with_texts(record, place, change, formatter)
        used = {formatter.value(record, field)[0] for field in self.columns}
        if INPUT_COLUMN in record and INPUT_COLUMN not in used:
            changed[INPUT_COLUMN] = changed_texts(record[INPUT_COLUMN], change)
        return changed

    def example(self, record: Mapping[str, Any], place: Place, formatter: Formatter) -> Example:
        """Only the answer carries loss."""
        prompt, completion = formatter.text(record, "prompt"), formatter.text(record, "completion")
        more = record.get(INPUT_COLUMN)
        used = {formatter.value(record, field)[0] for field in self.columns}
        refuse_media(record, used)
        if isinstance(more, str) and more.strip() and INPUT_COLUMN not in used:
            prompt = prompt + "\n\n" + encodable(formatter.without_bos(more), f"column {INPUT_COLUMN!r}")
        parts = (formatter.without_bos(prompt), formatter.without_bos_eos(completion))
        if formatter.renderer is not None:
            example = formatter.chat(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}], place
            )
            return replace(example, parts=parts)
        start = formatter.with_bos(prompt) + "\n\n"
        text = formatter.with_eos(start + formatter.text_without_bos_eos(record, "completion"))
        return Example(text, place, spans=((len(start), len(text)),), parts=parts)
