"""Instruction: a prompt and its answer."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from finetune_api.v1alpha1 import DataFormat

from ..messages import (
    HISTORY_COLUMN,
    MEDIA_COLUMNS,
    SYSTEM_COLUMN,
    WEIGHT,
    Message,
    earlier_turns,
    encodable,
    refuse_media,
    system_text,
)
from ..problems import Place
from .base import FORMATS, Example, Formatter, RecordFormat, TemplateUse, changed_texts

INPUT_COLUMN = "input"
"""Optional third column; its text follows the prompt after a blank line."""


@FORMATS.register
class Instruction(RecordFormat):
    """Rendered with the chat template if the tokenizer has one, else with a blank line between prompt and answer."""

    name = DataFormat.INSTRUCTION
    version = 2
    columns = {"prompt": ("prompt", "instruction"), "completion": ("completion", "output", "response")}
    text_fields = ("prompt", "completion")
    optional_columns = (INPUT_COLUMN, SYSTEM_COLUMN, HISTORY_COLUMN, *MEDIA_COLUMNS)
    template = TemplateUse.OPTIONAL

    def with_texts(
        self, record: Mapping[str, Any], place: Place, change: Callable[[str], str], formatter: Formatter
    ) -> dict[str, Any]:
        """Prompt, input, completion, system message and earlier turns."""
        changed = super().with_texts(record, place, change, formatter)
        more = self._more(record, formatter)
        for column in (INPUT_COLUMN, SYSTEM_COLUMN):
            if column in more:
                changed[column] = changed_texts(more[column], change)
        if turns := earlier_turns(more):
            changed[HISTORY_COLUMN] = [changed_texts(list(turn), change) for turn in turns]
        return changed

    def example(self, record: Mapping[str, Any], place: Place, formatter: Formatter) -> Example:
        """Only the completion carries loss, not the answers of earlier turns, unless the formatter trains on inputs."""
        prompt, completion = formatter.text(record, "prompt"), formatter.text(record, "completion")
        more = self._more(record, formatter)
        refuse_media(more)
        if isinstance(text := more.get(INPUT_COLUMN), str) and text.strip():
            prompt = prompt + "\n\n" + encodable(formatter.without_bos(text), f"column {INPUT_COLUMN!r}")
        system, turns = system_text(more), earlier_turns(more)
        before = [part for part in (system, *(text for turn in turns for text in turn)) if part]
        parts = (*before, formatter.without_bos(prompt), formatter.without_bos_eos(completion))
        if formatter.renderer is not None:
            messages: list[Message] = [{"role": "system", "content": system}] if system else []
            for question, answer in turns:
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer, WEIGHT: 0}]
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            return replace(formatter.chat(messages, place), parts=parts)
        context = [formatter.without_bos_eos(part) for part in before]
        start = formatter.with_bos("\n\n".join([*context, formatter.without_bos(prompt)] if context else [prompt]))
        start += "\n\n"
        text = formatter.with_eos(start + formatter.text_without_bos_eos(record, "completion"))
        return Example(text, place, spans=((len(start), len(text)),), parts=parts)

    def _more(self, record: Mapping[str, Any], formatter: Formatter) -> dict[str, Any]:
        """The optional columns, unless they are the prompt or the completion."""
        used = {formatter.value(record, field)[0] for field in self.columns}
        return {column: value for column, value in record.items() if column not in used}
