"""Preference: a prompt with a chosen and a rejected answer."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from finetune_api.v1alpha1 import DataFormat

from ..messages import (
    MEDIA_COLUMNS,
    SYSTEM_COLUMN,
    TEMPLATE_COLUMNS,
    WEIGHT,
    Message,
    parse_messages,
    system_text,
    template_values,
    with_message_texts,
    with_nested_texts,
    with_system_message,
)
from ..problems import Place, RecordProblem, shown
from .base import FORMATS, Example, Formatter, RecordFormat, TemplateUse, changed_texts

_ANSWERS = ("chosen", "rejected")


@FORMATS.register
class Preference(RecordFormat):
    """Prompt and answers are texts or lists of messages, as in TRL's preference datasets.

    Without a prompt, it is what both answers begin with: their common messages, or their common text up to the end of a
    word. Both answers are rendered with the chat template, after the same prompt.
    """

    name = DataFormat.PREFERENCE
    columns = {"chosen": ("chosen",), "rejected": ("rejected",)}
    optional_fields = {"prompt": ("prompt", "instruction")}
    optional_columns = (SYSTEM_COLUMN, *TEMPLATE_COLUMNS, *MEDIA_COLUMNS)
    preferred_to = (DataFormat.CHAT,)
    template = TemplateUse.REQUIRED

    def with_texts(
        self, record: Mapping[str, Any], place: Place, change: Callable[[str], str], formatter: Formatter
    ) -> dict[str, Any]:
        """The texts of prompt, answers, system message and documents."""
        changed = dict(record)
        for field in ("prompt", *_ANSWERS):
            if field == "prompt" and not formatter.has(record, field):
                continue
            column, value = formatter.value(record, field)
            changed[column] = (
                [with_message_texts(item, change) if isinstance(item, dict) else item for item in value]
                if isinstance(value, list)
                else changed_texts(value, change)
            )
        documents = template_values(record, nulls_are_absent=place.unit == "row").get("documents")
        if documents:
            changed["documents"] = [with_nested_texts(document, change) for document in documents]
        if text := system_text(record):
            changed[SYSTEM_COLUMN] = change(text)
        return changed

    def example(self, record: Mapping[str, Any], place: Place, formatter: Formatter) -> Example:
        """Only the answers carry loss, not the answers of earlier turns of the prompt."""
        in_parquet = place.unit == "row"
        prompt, answers = _prompt_and_answers(record, formatter)
        if answers[0] == answers[1]:
            raise RecordProblem(
                "equal answers", "columns 'chosen' and 'rejected' have the same answer", "remove the record"
            )
        values = template_values(record, nulls_are_absent=in_parquet)
        examples: list[Example] = []
        texts: list[str] = []
        for field, answer in zip(_ANSWERS, answers, strict=True):
            column = formatter.value(record, field)[0]
            messages = parse_messages([*prompt, *answer], column, nulls_are_absent=in_parquet)
            given = messages[len(prompt) :]
            if not any(message["role"] == "assistant" and WEIGHT not in message for message in given):
                raise RecordProblem(
                    "no assistant message",
                    f"column {column!r} has no message of the assistant after the prompt",
                    f"end column {column!r} with a message of the assistant",
                )
            earlier = [_without_loss(message) for message in messages[: len(prompt)]]
            examples.append(formatter.chat(with_system_message(record, [*earlier, *given]), place, values))
            new = messages if not texts else given
            texts += [message["content"] for message in new if message["role"] not in ("system", "developer")]
        chosen, rejected = examples
        if chosen.text == rejected.text:
            raise RecordProblem(
                "equal answers", "the chat template renders both answers as the same text", "remove the record"
            )
        parts = (chosen.text, rejected.text)
        return replace(chosen, rejected=rejected, parts=parts, messages=tuple(texts))


def _without_loss(message: Message) -> Message:
    return message | {WEIGHT: 0} if message["role"] == "assistant" else message


def _prompt_and_answers(record: Mapping[str, Any], formatter: Formatter) -> tuple[list[Any], tuple[list[Any], ...]]:
    """The messages of the prompt, and those of both answers after it, not yet checked. Raises RecordProblem."""
    given = [formatter.value(record, field)[1] for field in _ANSWERS]
    if all(isinstance(value, list) for value in given):
        return _from_messages(record, given, formatter)
    texts = [formatter.text(record, field) for field in _ANSWERS]
    if not formatter.has(record, "prompt"):
        start = _common_text(*texts)
        if not start.strip():
            raise _no_prompt()
        prompt: list[Any] = [{"role": "user", "content": start.strip()}]
        texts = [text[len(start) :].strip() for text in texts]
        if not all(texts):
            raise RecordProblem("empty text", "one answer is only the beginning of the other", "fill column 'prompt'")
    else:
        prompt = _prompt(record, formatter)
        texts = [formatter.without_bos_eos(text) for text in texts]
    return prompt, tuple([{"role": "assistant", "content": text}] for text in texts)


def _prompt(record: Mapping[str, Any], formatter: Formatter) -> list[Any]:
    value = formatter.value(record, "prompt")[1]
    if isinstance(value, list):
        if not value:
            raise _no_prompt()
        return value
    return [{"role": "user", "content": formatter.without_bos(formatter.text(record, "prompt"))}]


def _from_messages(
    record: Mapping[str, Any], given: list[list[Any]], formatter: Formatter
) -> tuple[list[Any], tuple[list[Any], ...]]:
    first, second = given
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    answers = tuple(messages[common:] for messages in given)
    if not formatter.has(record, "prompt"):
        if not common:
            raise _no_prompt()
        return first[:common], answers
    prompt = _prompt(record, formatter)
    if not common:
        return prompt, answers
    # Some data sets have the prompt in a column of its own and in both lists.
    contents = [_content(message) for message in prompt]
    if contents != [_content(message) for message in first[:common]][-len(contents) :]:
        what = f"both answers begin with {shown(first[0])}, which is not the prompt"
        raise RecordProblem("two prompts", what, "write the common messages into column 'prompt' only")
    return first[:common], answers


def _content(message: Any) -> Any:
    found = message.get("content", message.get("value")) if isinstance(message, dict) else message
    return found.strip() if isinstance(found, str) else found


def _common_text(first: str, second: str) -> str:
    """The longest common beginning that does not end within a word."""
    end = 0
    while end < min(len(first), len(second)) and first[end] == second[end]:
        end += 1
    while end and not first[end - 1].isspace():
        end -= 1
    return first[:end]


def _no_prompt() -> RecordProblem:
    return RecordProblem(
        "no prompt",
        "the record has no prompt, and both answers have no common beginning",
        "fill column 'prompt', or name it in spec.data.columns.prompt",
    )
