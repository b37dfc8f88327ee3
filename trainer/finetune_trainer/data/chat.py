"""Renders conversations as text with the tokenizer's chat template and finds the spans that carry loss.

Loss is computed on what the model itself must generate: everything from the generation prompt to the token that ends
the assistant's turn, including reasoning and tool calls. A template can mark those spans itself (`{% generation %}`).
If it does not, they are derived for each assistant turn:

- Prefixes: if the rendering of the messages before the turn (with the generation prompt) and the rendering up to and
  including the turn are both prefixes of the full rendering, the turn is the text between their ends.
- Placeholders: templates that rewrite earlier turns (for example, to drop reasoning) break the prefix property. The
  conversation is rendered with unique placeholders instead of the contents. If substituting the contents gives exactly
  the full rendering, the positions of the placeholders are the positions of the contents.

The placeholders also show which messages a template omits.

Some templates render reasoning only for the last turn. An earlier turn of such a template carries no loss, because it
would train the model to answer without reasoning. `ChatRenderer.remarks` counts these turns, and the turns that a
template marks only in part.

With `spec.data.trainOnInputs` the whole conversation carries loss, and no spans are searched for.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from ..errors import ModelUnusableError
from .messages import WEIGHT, Message
from .problems import RecordProblem

Span = tuple[int, int]
"""Start and end position in characters."""
Rendered = tuple[str, tuple[Span, ...]]
Values = Mapping[str, Any]
"""Variables that a template reads besides the messages, such as `tools`."""

Render = Callable[[list[Message], bool, Values], Rendered]
"""(messages, add generation prompt, other variables) -> text, and the spans that the template itself marks."""

TEMPLATE_DATE = date(2025, 1, 1)
"""Result of `strftime_now` in chat templates. With the current date, the same data would be tokenized differently on
another day, and a restarted run or the evaluation would see other prompts than the training did."""

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ADVICE = "mark the assistant's text in the model's chat template with {% generation %} ... {% endgeneration %}"
_WORD = re.compile("\ue000([0-9]{1,9})\ue001")
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Field names that transformers accepts for the reasoning of a message."""
_END_OF_REASONING = "</think>"
_FUNCTIONS = frozenset({"strftime_now", "lipsum"})
"""Template functions whose result is not deterministic."""


class ChatRenderer:
    """Renders conversations with one template.

    `special_tokens` are the tokenizer's, `variables` the names that the template reads, `begin` is the begin token.
    """

    def __init__(
        self,
        render: Render,
        *,
        marked: bool,
        special_tokens: Sequence[str],
        variables: frozenset[str] = frozenset(),
        begin: str = "",
        today: date = TEMPLATE_DATE,
        everything_carries_loss: bool = False,
    ) -> None:
        self._marked = marked
        self._everything_carries_loss = everything_carries_loss
        self._render = render
        self._variables = variables
        self._begin = begin
        """Text at the start of a conversation, if the template writes it only once."""
        self._today = today
        self._learn_about_template(special_tokens)
        self.for_tools: ChatRenderer | None = None
        """Renders conversations that have tools, if the tokenizer has a separate template for them."""
        self.counts: Counter[str] = Counter()
        """Counters over the conversations rendered so far: keys of `_REMARKS`, `folded`, and `unused NAME` for a
        variable that the template does not read."""

    def __call__(self, messages: list[Message], values: Values | None = None) -> Rendered:
        """Return the text and its loss spans, in order. Raises RecordProblem for what the template rejects or omits."""
        values = values or {}
        if self.for_tools is not None and values.get("tools"):
            return self.for_tools(messages, values)
        messages = self._adapted(messages)
        excluded = {index for index, message in enumerate(messages) if WEIGHT in message}
        messages = [{key: value for key, value in message.items() if key != WEIGHT} for message in messages]
        text, marked = self._rendered(messages, values)
        places = self._places(messages, values, text)
        rewritten = self.counts["reasoning rewritten"]
        self.counts.update(f"{_UNUSED}{name}" for name in values if name not in self._variables)
        if self._everything_carries_loss:
            answers = [message for message in messages if message["role"] == "assistant"]
            self.counts["reasoning left out"] += sum(reasoning not in text for reasoning in map(_reasoning, answers))
            return text, ((0, len(text)),)
        if self._marked:
            spans = [self._through_end_token(text, start, end) for start, end in marked if end > start]
            self._count_reasoning(messages, text, spans)
            self._count_unmarked(messages, values, text, places, spans)
            spans = self._without(excluded, messages, values, text, places, spans)
        else:
            spans = self._spans(messages, values, text, places, excluded)
        if not spans:
            if self.counts["reasoning rewritten"] > rewritten:
                raise RecordProblem(
                    "chat template",
                    "the model's chat template omits the reasoning of every answer, because later turns follow",
                    "end such conversations with an answer",
                )
            raise RecordProblem(
                "chat template",
                "the assistant's text cannot be located in the output of the model's chat template",
                _ADVICE,
            )
        return text, tuple(spans)

    def prompt(self, content: str) -> str:
        """Return a user message with the generation prompt. Raises RecordProblem if the template rejects it."""
        return self._rendered(self._adapted([{"role": "user", "content": content}]), {}, prompt=True)[0]

    @property
    def folded(self) -> int:
        """Number of conversations whose system message was merged into the first user message."""
        return self.counts["folded"]

    def take_counts(self) -> Counter[str]:
        """Return and reset the counters; those of the template for tools have the prefix `tools: `."""
        taken, self.counts = self.counts, Counter()
        if self.for_tools is not None:
            taken.update({f"{_TOOLS}{key}": count for key, count in self.for_tools.take_counts().items()})
        return taken

    def remarks(self, counts: Counter[str] | None = None) -> tuple[str, ...]:
        """Describe the counters, one line each. Without `counts`: those of the conversations rendered so far."""
        counts = self.counts if counts is None else counts
        found = []
        if counts["folded"]:
            found.append(
                f"the chat template has no system role: {counts['folded']} system messages were merged into the "
                "first user message"
            )
        if "strftime_now" in self._variables:
            found.append(
                f"the chat template contains today's date; {self._today:%d %b %Y} is used instead, so that the "
                "same records always give the same tokens"
            )
        if unused := _with_prefix(counts, _UNUSED):
            listed = ", ".join(f"{name} ({count} records)" for name, count in unused.most_common(8))
            found.append(f"the chat template does not use: {listed}")
        found += [text.format(counts[kind]) for kind, text in _REMARKS.items() if counts[kind]]
        if self.for_tools is not None:
            found += self.for_tools.remarks(_with_prefix(counts, _TOOLS) + self.for_tools.counts)
        return tuple(dict.fromkeys(found))

    def _learn_about_template(self, special_tokens: Sequence[str]) -> None:
        """Render small conversations to find out how the template behaves."""
        user, answer = {"role": "user", "content": _word(0)}, {"role": "assistant", "content": _word(1)}
        question, prompted = self._try([user], {}), self._try([user], {}, prompt=True)
        turns = self._try([user, answer], {}) or ""
        if not (turns.startswith(self._begin) and turns.count(self._begin) == 1):
            self._begin = ""  # some templates write it before every message
        tail = turns.partition(_word(1))[2]
        between = turns.partition(_word(0))[2].partition(_word(1))[0]
        by_length = sorted(special_tokens, key=len, reverse=True)
        self._end_tokens = tuple(token for token in by_length if token in tail)
        """Special tokens that end an assistant turn: those after the answer that ends a conversation."""
        self._user_end_tokens = tuple(token for token in self._end_tokens if between.lstrip().startswith(token))
        self._has_generation_prompt = question != prompted
        header = ""
        if question is not None and turns.startswith(question):
            header = turns[len(question) :].partition(_word(1))[0]
        self._header = header if header.strip() else ""
        """Text that the template writes before an answer; it carries no loss although no generation prompt has it."""
        self.folds_system = not self._renders_role("system")
        """Whether the template rejects or omits the system role; such messages are merged into the first user
        message."""
        self._renders_developer = self._renders_role("developer")
        self._arguments_as_text = self._wants_arguments_as_text()

    def _renders_role(self, role: str) -> bool:
        text = self._try([{"role": role, "content": _word(0)}, {"role": "user", "content": _word(1)}], {})
        return text is not None and _word(0) in text

    def _wants_arguments_as_text(self) -> bool:
        """Whether the template writes the arguments of a tool call as they are, without converting them to JSON."""
        texts = []
        for arguments in ({"probe": "x"}, '{"probe": "x"}'):
            call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": arguments}}
            asks = {"role": "assistant", "content": "", "tool_calls": [call]}
            texts.append(self._try([{"role": "user", "content": "u"}, asks], {}))
        as_object, as_text = texts
        if as_text is None or '{"probe": "x"}' not in as_text:
            return False
        return as_object is None or "{'probe': 'x'}" in as_object

    def _rendered(self, messages: list[Message], values: Values, *, prompt: bool = False) -> Rendered:
        # A template is code: filters can raise other exceptions than TemplateError.
        from jinja2 import TemplateError

        try:
            return self._render(messages, prompt, values)
        except (
            TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise RecordProblem(
                "chat template",
                f"the model's chat template rejects the conversation: {error}",
                "use the order of roles that the template requires (usually user and assistant in turn)",
            ) from error

    def _try(self, messages: list[Message], values: Values, *, prompt: bool = False) -> str | None:
        """Return the text; None if the template rejects the messages."""
        try:
            return self._rendered(messages, values, prompt=prompt)[0]
        except RecordProblem:
            return None

    def _adapted(self, messages: list[Message]) -> list[Message]:
        """Convert the messages to what the template accepts. Raises RecordProblem where that is not possible."""
        messages = [self._adapted_message(message, index) for index, message in enumerate(messages, start=1)]
        if self.folds_system and messages[0]["role"] == "system":
            messages = _fold_system(messages)
            self.counts["folded"] += 1
        return messages

    def _adapted_message(self, message: Message, index: int) -> Message:
        is_answer = message["role"] == "assistant"
        content = message["content"]
        if self._begin and content.lstrip().startswith(self._begin):
            content = content.lstrip().removeprefix(self._begin)
        tokens = self._end_tokens if is_answer else self._user_end_tokens
        while token := next((token for token in tokens if content.rstrip().endswith(token)), ""):
            content = content.rstrip().removesuffix(token)
        if is_answer and message["content"].strip() and not content.strip() and not message.get("tool_calls"):
            raise RecordProblem("empty text", f"message {index} (assistant) is empty", "fill it or remove the record")
        adapted = message | {"content": content}
        if message["role"] == "developer" and not self._renders_developer:
            adapted["role"] = "system"
        if message.get("tool_calls") and self._arguments_as_text:
            adapted["tool_calls"] = [_with_arguments_as_text(call) for call in message["tool_calls"]]
        return adapted

    def _places(self, messages: list[Message], values: Values, text: str) -> dict[int, Span]:
        """Message number -> position of its content in the text, for all messages or none.

        Raises RecordProblem for a message that the template omits.
        """
        blank, names = _blanked(messages)
        rendered = self._try(blank, values)
        self._check_arguments(messages, values)
        for index, message in enumerate(messages):
            content = message["content"][_answer_start(message) :].strip()
            reaches = content in text if rendered is None else _word(index) in rendered
            if content and not reaches:
                raise _left_out(f"message {index + 1} ({message['role']})", message["role"])
        for placeholder, (name, where) in names.items():
            if not (name in text if rendered is None else placeholder in rendered):
                raise _left_out(f"{where} (assistant)", "assistant")
        places = {}
        if rendered is not None:
            for placeholder, (name, _) in names.items():
                rendered = rendered.replace(placeholder, name)
            places = _aligned(messages, rendered, text)
        if not places:
            self.counts["content changed"] += sum(not _has_content(message, text) for message in messages)
        return places

    def _check_arguments(self, messages: list[Message], values: Values) -> None:
        """Raise RecordProblem for a tool call whose arguments the template omits."""
        asked = [index for index, message in enumerate(messages) if any(map(_arguments_of, _calls_of(message)))]
        if not asked:
            return
        probed = [
            message | {"tool_calls": [_probed(call, _probe(index, number)) for number, call in _numbered(message)]}
            if index in asked
            else message
            for index, message in enumerate(messages)
        ]
        rendered = self._try(probed, values)
        for index in asked if rendered is not None else ():
            for number, call in _numbered(messages[index]):
                if _arguments_of(call) and _probe(index, number) not in (rendered or ""):
                    what = f"the arguments of tool call {number} of message {index + 1} (assistant)"
                    raise _left_out(what, "assistant")

    def _without(
        self,
        excluded: Collection[int],
        messages: list[Message],
        values: Values,
        text: str,
        places: dict[int, Span],
        spans: list[Span],
    ) -> list[Span]:
        """The marked spans that are not in the turns of the messages `excluded`."""
        for index in sorted(excluded):
            turn = self._turn(messages, index, values, text, places)[0] if _is_answer(messages[index]) else None
            if turn is not None:
                spans = [(start, end) for start, end in spans if end <= turn[0] or start >= turn[1]]
            elif _is_answer(messages[index]):
                what = f"message {index + 1} has weight 0, but cannot be located in the output of the chat template"
                raise RecordProblem("chat template", what, "remove the record, or the weight of the message")
        return spans

    def _spans(
        self,
        messages: list[Message],
        values: Values,
        text: str,
        places: dict[int, Span],
        excluded: Collection[int],
    ) -> list[Span]:
        spans = []
        for index, message in enumerate(messages):
            if not _is_answer(message) or index in excluded:
                continue
            turn, through = self._turn(messages, index, values, text, places)
            is_last = index == len(messages) - 1
            reasoning = _reasoning(message)
            if turn is None:
                self.counts["unknown place"] += 1
            elif reasoning and not is_last and _loses_reasoning(reasoning, text, turn, through):
                self.counts["reasoning rewritten"] += 1
            else:
                start, end = turn
                if reasoning and reasoning not in text[start:end]:
                    earlier = max((stop for _, stop in places.values() if stop <= start), default=0)
                    is_written = reasoning in text[earlier:start]
                    self.counts["reasoning without loss" if is_written else "reasoning left out"] += 1
                spans.append(turn)
        return spans

    def _turn(
        self, messages: list[Message], index: int, values: Values, text: str, places: dict[int, Span]
    ) -> tuple[Span | None, str]:
        """The span of a message's turn, or None if it cannot be determined; and the rendering up to and including
        it."""
        start = self._start(messages[:index], values, text, places.get(index))
        is_last = index == len(messages) - 1
        through = text if is_last else self._try(messages[: index + 1], values)
        end = None if start is None else self._end(start, through, text, places, index)
        turn = None if start is None or end is None or end <= start else (start, end)
        return turn, through or ""

    def _start(self, earlier: list[Message], values: Values, text: str, place: Span | None) -> int | None:
        """Where the turn after the earlier messages begins: the end of the generation prompt."""
        before = self._try(earlier, values, prompt=True)
        start = None
        if before is not None and text.startswith(before):
            start = len(before)
            if not self._has_generation_prompt and text.startswith(self._header, start):
                start += len(self._header)
        elif before is not None:
            # The prompt may open the reasoning (`<think>`) although the rendered turn has none or formats it
            # differently.
            base = self._try(earlier, values)
            if base and before.startswith(base) and text.startswith(base):
                start = len(base) + _common_prefix(before[len(base) :], text[len(base) :])
        if place is not None and (start is None or start > place[0]):
            return place[0]
        return start

    def _end(self, start: int, through: str | None, text: str, places: dict[int, Span], index: int) -> int | None:
        """Where the turn ends: after its end token."""
        if through is not None and len(through) > start and text.startswith(through):
            trimmed = through.rstrip()
            return len(trimmed) if trimmed.endswith(self._end_tokens) else len(through)
        place = places.get(index)
        after = start if place is None else place[1]
        limit = min((begin for begin, _ in places.values() if begin > after), default=len(text))
        found = [
            text.find(token, after, limit) + len(token) for token in self._end_tokens if token in text[after:limit]
        ]
        if found:
            return min(found)
        return None if place is None else place[1]

    def _count_reasoning(self, messages: list[Message], text: str, spans: list[Span]) -> None:
        """For templates that mark the spans themselves: count the turns whose reasoning carries no loss."""
        answers = [message for message in messages if message["role"] == "assistant"]
        self.counts["not marked"] += max(0, len(answers) - len(spans))
        for reasoning in filter(None, map(_reasoning, answers)):
            if reasoning not in text:
                self.counts["reasoning left out"] += 1
            elif not any(reasoning in text[start:end] for start, end in spans):
                self.counts["reasoning without loss"] += 1

    def _count_unmarked(
        self, messages: list[Message], values: Values, text: str, places: dict[int, Span], spans: list[Span]
    ) -> None:
        """Count the turns that a template marks only in part. White space and reasoning (counted elsewhere) are
        ignored."""
        for index, message in enumerate(messages):
            turn = self._turn(messages, index, values, text, places)[0] if message["role"] == "assistant" else None
            inside = [(start, end) for start, end in spans if turn and start < turn[1] and end > turn[0]]
            if turn is None or not inside:
                continue
            start, first = turn[0], inside[0][0]
            reasoning = _reasoning(message)
            if reasoning and reasoning in text[start:first]:
                start = first
            self.counts["outside of marks"] += bool(_between(text, (start, turn[1]), inside).strip())

    def _through_end_token(self, text: str, start: int, end: int) -> Span:
        """Extend the span by the special token directly after it, unless the span already ends with one."""
        if text[start:end].rstrip().endswith(self._end_tokens):
            return start, start + len(text[start:end].rstrip())
        after = text[end:]
        token = next((token for token in self._end_tokens if after.lstrip().startswith(token)), None)
        return (start, end) if token is None else (start, end + after.index(token) + len(token))


_REMARKS = {
    "content changed": "the chat template shortens or changes the content of {} messages",
    "reasoning rewritten": "{} assistant turns carry no loss: the chat template omits their reasoning, because "
    "later turns follow; split such conversations so that each of these turns comes last",
    "reasoning left out": "the chat template omits the reasoning of {} assistant turns; their answers carry loss",
    "reasoning without loss": "the reasoning of {} assistant turns carries no loss: the chat template writes it "
    "outside of what the assistant generates",
    "outside of marks": "{} assistant turns have text outside of the chat template's generation marks, such as tool "
    "calls or the end token, which carries no loss; put everything that the assistant generates inside "
    "{{% generation %}} ... {{% endgeneration %}}",
    "not marked": "{} assistant turns carry no loss: the chat template does not mark them with generation",
    "unknown place": "{} assistant turns carry no loss: their start cannot be located in the output of the chat "
    "template; " + _ADVICE.replace("{", "{{").replace("}", "}}"),
}
"""Kind of event -> the line that reports how many assistant turns it affected."""


_UNUSED, _TOOLS = "unused ", "tools: "


def _with_prefix(counts: Counter[str], prefix: str) -> Counter[str]:
    return Counter({key.removeprefix(prefix): count for key, count in counts.items() if key.startswith(prefix)})


def _word(index: int) -> str:
    """A placeholder in a private use area of Unicode, which templates do not treat specially."""
    return f"\ue000{index}\ue001"


def _is_answer(message: Message) -> bool:
    return bool(message["role"] == "assistant")


def _answer_start(message: Message) -> int:
    """Where the content begins, after reasoning that is part of the content."""
    content: str = message["content"]
    if message["role"] != "assistant" or _END_OF_REASONING not in content:
        return 0
    behind = content.rindex(_END_OF_REASONING) + len(_END_OF_REASONING)
    return behind + len(content[behind:]) - len(content[behind:].lstrip())


def _reasoning(message: Message) -> str:
    """The reasoning of a message, from its own field or from the content."""
    for name in _REASONING_FIELDS:
        if isinstance(message.get(name), str) and message[name].strip():
            return str(message[name]).strip()
    if not _answer_start(message):
        return ""
    return str(message["content"]).rpartition(_END_OF_REASONING)[0].rpartition("<think>")[2].strip()


def _between(text: str, turn: Span, spans: list[Span]) -> str:
    """The text of the turn outside the spans, which are sorted."""
    position, end = turn
    pieces = []
    for first, last in spans:
        pieces.append(text[position:first])
        position = max(position, last)
    return "".join([*pieces, text[position:end]])


def _loses_reasoning(reasoning: str, text: str, turn: Span, through: str) -> bool:
    """Whether the turn has its reasoning in `through`, where it comes last, but not in the full text."""
    start, end = turn
    written = text[start:end].count(reasoning)
    if through.startswith(text[:start]):
        return through[start:].count(reasoning) > written
    return not written and reasoning in through


def _aligned(messages: list[Message], rendered: str, text: str) -> dict[int, Span]:
    """Positions of the contents in `text`, if `rendered` with the contents substituted equals it; else empty."""
    pieces = _WORD.split(rendered)
    position = len(pieces[0])
    if not text.startswith(pieces[0]):
        return {}
    places: dict[int, Span] = {}
    for number, glue in zip(pieces[1::2], pieces[2::2], strict=True):
        index = int(number)
        if index >= len(messages):
            return {}
        content = messages[index]["content"][_answer_start(messages[index]) :]
        forms = (content, content.strip(), content.rstrip(), json.dumps(content, ensure_ascii=False)[1:-1])
        form = next((form for form in forms if text.startswith(form + glue, position)), None)
        if form is None:
            return {}
        places.setdefault(index, (position, position + len(form)))
        position += len(form) + len(glue)
    return places if position == len(text) else {}


def _common_prefix(first: str, second: str) -> int:
    """Length of the longest common prefix."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _left_out(what: str, role: str) -> RecordProblem:
    return RecordProblem(
        "left out by template",
        f"the model's chat template omits {what}",
        f"remove such {role} messages, or choose a base model whose chat template renders them",
    )


def _name_of(call: Message) -> str:
    return str(call.get("function", call).get("name", ""))


def _blanked(messages: list[Message]) -> tuple[list[Message], dict[str, tuple[str, str]]]:
    """The messages with placeholders instead of their contents and of the names of tools; and for each placeholder of
    a tool its name, and the place of the call."""
    blank, names = [], {}
    for index, message in enumerate(messages):
        start = _answer_start(message)
        content = message["content"]
        blank.append(message | {"content": content[:start] + _word(index)} if content[start:].strip() else message)
        if message.get("tool_calls"):
            calls = []
            for number, call in _numbered(message):
                placeholder = f"\ue002{index}.{number}\ue003"
                names[placeholder] = (_name_of(call), f"tool call {number} of message {index + 1}")
                calls.append(_renamed(call, placeholder))
            blank[-1] = blank[-1] | {"tool_calls": calls}
    return blank, names


def _calls_of(message: Message) -> list[Message]:
    return list(message.get("tool_calls") or ())


def _numbered(message: Message) -> list[tuple[int, Message]]:
    return list(enumerate(_calls_of(message), start=1))


def _arguments_of(call: Message) -> Any:
    """The arguments of a call; JSON text of an empty object counts as none."""
    arguments = call.get("function", call).get("arguments") if isinstance(call.get("function", call), dict) else None
    return None if isinstance(arguments, str) and arguments.strip() in ("", "{}") else arguments


def _probe(index: int, number: int) -> str:
    """A name of an argument that no record has; letters, because templates escape other characters."""
    return f"finetuneprobe{index}x{number}x"


def _probed(call: Message, name: str) -> Message:
    """The call with an argument `name` in addition to its own."""
    if isinstance(call.get("function"), dict):
        return call | {"function": _probed(call["function"], name)}
    arguments = call.get("arguments")
    if isinstance(arguments, dict):
        return call | {"arguments": {**arguments, name: name}}
    return call | {"arguments": json.dumps({name: name})} if isinstance(arguments, str) else call


def _has_content(message: Message, text: str) -> bool:
    """Whether the text has the content of a message as it is, or within JSON."""
    content = message["content"][_answer_start(message) :].strip()
    forms = (content, *(json.dumps(content, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)))
    return any(form in text for form in forms)


def _renamed(call: Message, name: str) -> Message:
    if isinstance(call.get("function"), dict):
        return call | {"function": call["function"] | {"name": name}}
    return call | {"name": name}


def _with_arguments_as_text(call: Message) -> Message:
    if isinstance(call.get("function"), dict):
        return call | {"function": _with_arguments_as_text(call["function"])}
    arguments = call.get("arguments")
    return call if isinstance(arguments, str) else call | {"arguments": json.dumps(arguments, ensure_ascii=False)}


def _fold_system(messages: list[Message]) -> list[Message]:
    count = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    system, rest = messages[:count], messages[count:]
    if not rest or rest[0]["role"] != "user":
        raise RecordProblem(
            "chat template",
            "the model's chat template has no system role, and no user message follows the system message",
            "add a user message after the system message",
        )
    contents = [message["content"] for message in (*system, rest[0])]
    return [rest[0] | {"content": "\n\n".join(contents)}, *rest[1:]]


def renderer_of(
    tokenizer: Any, today: date = TEMPLATE_DATE, *, everything_carries_loss: bool = False
) -> ChatRenderer | None:
    """Return the renderer of a transformers tokenizer; None if it has no chat template.

    `everything_carries_loss`: also the parts of a conversation that the assistant does not write.

    Raises ModelUnusableError for a template that cannot be compiled or whose output is random.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        templates = {"default": templates}
    if not templates.get("default"):
        return None
    renderer = _renderer(tokenizer, templates["default"], today, everything_carries_loss)
    if templates.get("tool_use"):
        renderer.for_tools = _renderer(tokenizer, templates["tool_use"], today, everything_carries_loss)
    return renderer


def _renderer(tokenizer: Any, template: str, today: date, everything_carries_loss: bool) -> ChatRenderer:
    marked = _MARKER.search(template) is not None
    variables = _variables(template)
    render = functools.partial(_render, template, marked, dict(tokenizer.special_tokens_map), today)
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return ChatRenderer(
        render,
        marked=marked,
        special_tokens=sorted({*added, *map(str, tokenizer.all_special_tokens)}),
        variables=variables,
        begin=tokenizer.bos_token or "",
        today=today,
        everything_carries_loss=everything_carries_loss,
    )


def _render(
    template: str,
    marked: bool,
    special_tokens: Mapping[str, str],
    today: date,
    messages: list[Message],
    prompt: bool,
    values: Values,
) -> Rendered:
    from transformers.utils.chat_template_utils import render_jinja_template

    # transformers annotates a string, and returns the texts and the marked spans of each.
    render_templates: Any = render_jinja_template
    # transformers caches compiled templates and passes no functions to them, so the clock is replaced in the compiled
    # template.
    _compiled(template).globals["strftime_now"] = functools.partial(_formatted, today)
    texts, spans = render_templates(
        [messages],
        chat_template=template,
        add_generation_prompt=prompt,
        return_assistant_tokens_mask=marked and not prompt,
        **special_tokens,
        **values,
    )
    return texts[0], tuple(spans[0]) if spans else ()


def _compiled(template: str) -> Any:
    from transformers.utils import chat_template_utils

    return chat_template_utils._compile_jinja_template(template)


def _formatted(today: date, pattern: str) -> str:
    return datetime(today.year, today.month, today.day).strftime(pattern)


def _variables(template: str) -> frozenset[str]:
    """The names that the template reads from its context. Raises ModelUnusableError for an invalid template."""
    from jinja2 import TemplateError, meta, nodes

    try:
        tree = _compiled(template).environment.parse(template)
    except TemplateError as error:
        raise ModelUnusableError(
            f"the model's chat template is not a valid Jinja template: {error}",
            advice="restore chat_template in tokenizer_config.json from the model's source",
        ) from error
    # jinja2.meta does not report the functions that transformers provides to every template.
    names = meta.find_undeclared_variables(tree) | {node.name for node in tree.find_all(nodes.Name)} & _FUNCTIONS
    if "lipsum" in names or any(node.name == "random" for node in tree.find_all(nodes.Filter)):
        raise ModelUnusableError(
            "the model's chat template uses random values: the same records would give different tokens in every run",
            advice="remove the filter `random` and the function `lipsum` from chat_template in tokenizer_config.json",
        )
    return frozenset(names)
