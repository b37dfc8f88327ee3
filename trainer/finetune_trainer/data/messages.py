"""Converts the columns of a Chat record to messages and to the other variables that a chat template reads."""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .problems import RecordProblem, shown

Message = dict[str, Any]

TEMPLATE_COLUMNS = ("tools", "functions", "documents", "chat_template_kwargs")
"""Optional columns of a Chat record that the chat template reads; each holds JSON values or JSON text. `functions` is
an earlier form of `tools`."""

SYSTEM_COLUMN = "system"
"""Optional column of Chat and Instruction records with a system message."""
HISTORY_COLUMN = "history"
"""Optional column of Instruction records with the turns before the prompt."""
WEIGHT = "weight"
"""Key of a message of `parse_messages` that carries no loss; its value is 0."""

MEDIA_COLUMNS = (
    "image",
    "images",
    "image_url",
    "image_urls",
    "audio",
    "audios",
    "audio_url",
    "input_audio",
    "video",
    "videos",
    "video_url",
)
"""Columns and message keys that mark a Chat or Instruction record as multimodal.

Only text can be trained on, so such records are rejected.
"""

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
"""Types of content parts that are text, in the Chat Completions API and the Responses API."""

_NO_MEDIA = "remove records with images, audio or video"
_ARGUMENTS = "write the arguments of a tool call as an object, or as the JSON text of one"

_IDENTIFIERS = frozenset({"role", "type", "id", "name", "tool_call_id"})
"""Keys of a message whose values are no text."""

_RESERVED_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "compiled_template",
        "continue_final_message",
        "conversations",
        "documents",
        "messages",
        "return_assistant_tokens_mask",
        "tools",
    }
)
"""Variables that the renderer sets itself."""


def encodable(text: str, name: str) -> str:
    """Return the text. Raises RecordProblem if it has an unpaired surrogate (JSON allows it, tokenizers do not)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"{name} contains an unpaired surrogate, {text[error.start]!r}"
        raise RecordProblem("undecodable bytes", what, "write characters beyond U+FFFF without escapes") from None
    return text


def is_encodable(text: str) -> bool:
    """Whether the text has no unpaired surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def with_nested_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The JSON value with every text in it replaced by `change(text)`, except keys."""
    if isinstance(value, str):
        return change(value) if is_encodable(value) else value
    if isinstance(value, list):
        return [with_nested_texts(item, change) for item in value]
    if isinstance(value, dict):
        return {key: with_nested_texts(item, change) for key, item in value.items()}
    return value


def with_message_texts(message: Message, change: Callable[[str], str]) -> Message:
    """The message of `parse_messages` with every text replaced by `change(text)`, also in arguments of tool calls.

    Arguments are written as JSON text again, because they are data, in which a null of a Parquet row is kept.
    """
    kept = {*_IDENTIFIERS, WEIGHT, "tool_calls"}
    changed = {key: value if key in kept else with_nested_texts(value, change) for key, value in message.items()}
    if "tool_calls" in message:
        changed["tool_calls"] = [_with_call_texts(call, change) for call in message["tool_calls"]]
    return changed


def _with_call_texts(call: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    if isinstance(call.get("function"), dict):
        return call | {"function": _with_call_texts(call["function"], change)}
    if "arguments" not in call:
        return call
    arguments = call["arguments"]
    if isinstance(arguments, dict):
        return call | {"arguments": json.dumps(with_nested_texts(arguments, change), ensure_ascii=False)}
    return call | {"arguments": with_nested_texts(arguments, change)}


def parse_messages(value: object, column: str, *, nulls_are_absent: bool = False) -> list[Message]:
    """Parse a conversation to `{role, content}` messages, also from ShareGPT's `{from, value}`. Raises RecordProblem.

    `nulls_are_absent`: the record is a Parquet row, whose objects have all keys of the column, with null for those that
    the row does not set; such keys are removed at every depth.
    """
    remedy = f"write column {column!r} as a list of {{role, content}} with at least one assistant message"
    if isinstance(value, str) and value.lstrip().startswith("["):  # CSV has no lists
        value = _from_json(value, f"column {column!r}", remedy)
    if not isinstance(value, list) or not value:
        raise RecordProblem("wrong type", f"column {column!r} must be a list of messages, not {shown(value)}", remedy)
    items: list[Any] = _without_nulls(value) if nulls_are_absent else value
    messages = [_message(item, index, remedy) for index, item in enumerate(items, start=1)]
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise RecordProblem("no assistant message", "the conversation has no assistant message", remedy)
    if all(WEIGHT in answer for answer in answers):
        what = "the weight of every assistant message is 0, so nothing of the conversation is learned"
        raise RecordProblem("no assistant message", what, "remove the record, or set the weight of an answer to 1")
    return messages


def with_system_message(record: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The messages after the system message of the column `system`, if the record has one. Raises RecordProblem."""
    text = system_text(record)
    if not text:
        return messages
    if messages[0]["role"] in ("system", "developer"):
        if messages[0]["content"].strip() == text.strip():
            return messages
        what = f"column {SYSTEM_COLUMN!r} and the first message must not both be a system message"
        raise RecordProblem("two system messages", what, "write both into one of them")
    return [{"role": "system", "content": text}, *messages]


def system_text(record: Mapping[str, Any]) -> str:
    """The text of the column `system`; empty if there is none. Raises RecordProblem."""
    text = record.get(SYSTEM_COLUMN)
    if text is None:
        return ""
    if not isinstance(text, str):
        what = f"column {SYSTEM_COLUMN!r} must be text, not {shown(text)}"
        raise RecordProblem("wrong type", what, f"write the system message into column {SYSTEM_COLUMN!r} as text")
    return encodable(text, f"column {SYSTEM_COLUMN!r}") if text.strip() else ""


def earlier_turns(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Question and answer of every turn of the column `history`. Raises RecordProblem."""
    name = f"column {HISTORY_COLUMN!r}"
    value = _parsed(record.get(HISTORY_COLUMN), name)
    turns = value or []
    is_list = isinstance(turns, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in turns)
    if not is_list or not all(isinstance(text, str) and text.strip() for turn in turns for text in turn):
        what = f"{name} must be a list of [question, answer], not {shown(value)}"
        raise RecordProblem("wrong type", what, f"write the earlier turns into {name} as a list of two texts each")
    return [(encodable(question, name), encodable(answer, name)) for question, answer in turns]


def refuse_media(record: Mapping[str, Any], used: Collection[str] = ()) -> None:
    """Raise RecordProblem for a record with images, audio or video. `used` names the columns that hold its text."""
    for column in MEDIA_COLUMNS:
        if record.get(column) and column not in used:
            what = f"column {column!r} must be empty: only text can be trained on"
            raise RecordProblem("not text", what, _NO_MEDIA)


def template_values(record: Mapping[str, Any], *, nulls_are_absent: bool = False) -> dict[str, Any]:
    """Variables that the template reads besides the messages: `tools`, `documents`, keys of `chat_template_kwargs`.

    Empty values are omitted. Raises RecordProblem for values of another type and for images, audio or video.
    """
    refuse_media(record)
    values: dict[str, Any] = {}
    for column in TEMPLATE_COLUMNS:
        value = _parsed(record.get(column), f"column {column!r}")
        if nulls_are_absent and not isinstance(record.get(column), str):
            value = _without_nulls(value)
        if not value:
            continue
        if column == "chat_template_kwargs":
            values |= _template_kwargs(value)
            continue
        items = [_parsed(item, f"column {column!r}") for item in value] if isinstance(value, list) else [None]
        if not all(isinstance(item, dict) for item in items):
            what = f"column {column!r} must be a list of objects, not {shown(value)}"
            raise RecordProblem("wrong type", what, f"write column {column!r} as a list of JSON objects")
        values[column] = items
    if functions := values.pop("functions", None):
        if "tools" in values:
            what = "columns 'functions' and 'tools' must not both have values"
            raise RecordProblem("wrong type", what, "write all tools into column 'tools'")
        values["tools"] = [{"type": "function", "function": function} for function in functions]
    return values


def _template_kwargs(value: object) -> dict[str, Any]:
    remedy = "write column 'chat_template_kwargs' as an object of the names that the chat template reads"
    if not isinstance(value, dict):
        what = f"column 'chat_template_kwargs' must be an object, not {shown(value)}"
        raise RecordProblem("wrong type", what, remedy)
    for name in value:
        if name in _RESERVED_KWARGS or name.endswith("_token"):
            what = f"{name!r} cannot be set in column 'chat_template_kwargs'"
            raise RecordProblem("reserved name", what, f"remove {name!r} from column 'chat_template_kwargs'")
    return value


def _message(item: object, index: int, remedy: str) -> Message:
    if not isinstance(item, dict):
        raise RecordProblem("wrong type", f"message {index} must be an object, not {shown(item)}", remedy)
    role = item.get("role", item.get("from"))
    role = _SHAREGPT_ROLES.get(str(role), role)
    if role not in _ROLES:
        what = f"message {index} has the role {shown(role)}, which must be one of {', '.join(sorted(_ROLES))}"
        raise RecordProblem("unknown role", what, remedy)
    rest = {
        key: kept
        for key, kept in item.items()
        if key not in {"role", "content", "from", "value"} and kept is not None  # Parquet fills absent keys with null
    }
    _refuse_keys(rest, index)
    if WEIGHT in rest and _weight(rest, role, index):
        del rest[WEIGHT]
    calls = _tool_calls(rest.pop("tool_calls", None), index)
    if calls:
        rest["tool_calls"] = calls
    content = _content(item.get("content", item.get("value")), index)
    if content is None and (calls or (role == "assistant" and _reasoning_field(rest))):
        content = ""
    if not isinstance(content, str):
        raise RecordProblem("wrong type", f"the content of message {index} must be text, not {shown(content)}", remedy)
    if role == "assistant" and not content.strip() and not calls:
        raise RecordProblem("empty text", f"message {index} (assistant) is empty", "fill it or remove the record")
    return {"role": role, "content": encodable(content, f"message {index}"), **rest}


def _refuse_keys(message: Mapping[str, Any], index: int) -> None:
    """Raise RecordProblem for content that no chat template reads."""
    if message.get("function_call"):
        what = f"message {index} has a function_call, which chat templates do not read"
        raise RecordProblem("wrong type", what, "write function_call as tool_calls: a list of {function}")
    for column in MEDIA_COLUMNS:
        if message.get(column):
            what = f"message {index} has {column!r}: only text can be trained on"
            raise RecordProblem("not text", what, _NO_MEDIA)


def _weight(message: Mapping[str, Any], role: str, index: int) -> bool:
    """Whether a message carries loss, as in OpenAI's format for fine-tuning. Raises RecordProblem."""
    weight = message[WEIGHT]
    if weight not in (0, 1) or (weight and role != "assistant"):
        allowed = "0 or 1" if role == "assistant" else "0 or absent, because only answers are learned"
        what = f"the weight of message {index} ({role}) must be {allowed}, not {shown(weight)}"
        raise RecordProblem("wrong type", what, "write 0 to exclude an answer from the loss, or remove the weight")
    return bool(weight)


def _content(content: object, index: int) -> object:
    """Text parts joined; other content unchanged."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str) and _is_text(part, kind):
            texts.append(part["text"])
        else:
            named = f"of type {kind!r}" if kind else shown(part)
            raise RecordProblem(
                "not text",
                f"message {index} has a part that is not text ({named}): only text can be trained on",
                "remove records with images, audio or video, and write other parts as text",
            )
    return "".join(texts)


def _is_text(part: Mapping[str, Any], kind: object) -> bool:
    if kind is not None:
        return kind in _TEXT_PARTS
    return all(value is None for key, value in part.items() if key != "text")


def _tool_calls(calls: object, index: int) -> list[dict[str, Any]]:
    """Tool calls with their arguments as objects: a template that writes JSON would quote text a second time."""
    calls = _parsed(calls, f"tool_calls of message {index}")
    if not calls:
        return []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        what = f"tool_calls of message {index} must be a list of objects, not {shown(calls)}"
        raise RecordProblem("wrong type", what, "write tool_calls as a list of {function: {name, arguments}}")
    return [_tool_call(call, f"tool call {number} of message {index}") for number, call in enumerate(calls, start=1)]


def _tool_call(call: dict[str, Any], name: str) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict):
        return call | {"function": _tool_call(function, name)}
    if "arguments" not in call:
        return call
    arguments = call["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments.strip() or "null")
        except (ValueError, RecursionError):
            if arguments.lstrip().startswith("{"):
                raise RecordProblem("malformed JSON", f"arguments of {name} must be JSON", _ARGUMENTS) from None
            return call  # the input of a tool that takes plain text
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        what = f"arguments of {name} must be an object, not {shown(arguments)}"
        raise RecordProblem("wrong type", what, _ARGUMENTS)
    return call | {"arguments": arguments}


def _reasoning_field(message: Mapping[str, Any]) -> bool:
    return any(message.get(name) for name in ("reasoning_content", "reasoning", "thinking"))


def _parsed(value: object, name: str) -> Any:
    """Parse JSON text, which `datasets` stores for nested values; other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    if value.strip() in ("", "null"):
        return None
    if not value.lstrip().startswith(("[", "{")):
        return value
    return _from_json(value, name, f"write {name} as JSON")


def _from_json(text: str, name: str, remedy: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RecordProblem("malformed JSON", f"{name} must be JSON", remedy) from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
