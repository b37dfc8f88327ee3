"""Conversations -> text through the tokenizer's own chat template, with the spans that carry loss.

The loss falls on what the model itself has to write: everything from the generation prompt to the token that ends the
assistant's turn, with reasoning and tool calls. A template marks those spans itself (`{% generation %}`). Where it does
not, they are derived for each assistant turn:

- Prefixes: the turn begins where the rendering of the messages before it, with the generation prompt, ends, and it ends
  where the rendering through it ends, if these renderings are prefixes of the whole one.
- Placeholders: templates that rewrite earlier turns (dropping reasoning, for example) break the prefix property. The
  conversation is rendered with unique words in place of all contents; if putting the contents back gives exactly the
  whole rendering, the places of the words are the places of the contents.

The placeholders also show which messages a template leaves out.

A turn whose reasoning the template writes only while it is the last turn carries no loss where it is an earlier one: it
would teach the model to answer without reasoning. `ChatRenderer.remarks` counts such turns, and those of which a
template marks a part only.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from ..errors import ModelUnusableError
from .messages import Message
from .problems import RecordProblem

Span = tuple[int, int]
"""Start and end in characters."""
Rendered = tuple[str, tuple[Span, ...]]
Values = Mapping[str, Any]
"""What a template reads besides the messages, such as `tools`."""

Render = Callable[[list[Message], bool, Values], Rendered]
"""(messages, add generation prompt, other values) -> text and the spans that the template itself marks."""

TEMPLATE_DATE = date(2025, 1, 1)
"""What `strftime_now` of a chat template returns. With today's date the same data would have other tokens tomorrow,
and a restarted run or the evaluation would see other prompts than the training did."""

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ADVICE = "mark the assistant's text in the model's chat template with {% generation %} ... {% endgeneration %}"
_WORD = re.compile("\ue000([0-9]{1,9})\ue001")
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names that transformers accepts for the reasoning of a message."""
_END_OF_REASONING = "</think>"
_FUNCTIONS = frozenset({"strftime_now", "lipsum"})
"""Functions known to every template whose result is not the same every time."""


class ChatRenderer:
    """Renders conversations with one template.

    `special_tokens` are those of the tokenizer, `variables` the names that the template reads, `begin` the begin token.
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
    ) -> None:
        self._marked = marked
        self._render = render
        self._variables = variables
        self._begin = begin
        """What begins a conversation, where the template writes that once."""
        self._today = today
        self._learn_about_template(special_tokens)
        self.for_tools: ChatRenderer | None = None
        """Renders conversations that have tools, where the tokenizer has a template of its own for them."""
        self.counts: Counter[str] = Counter()
        """What happened to the conversations rendered so far: keys of `_REMARKS`, `folded`, and `unused NAME` for a
        value that the template does not read."""

    def __call__(self, messages: list[Message], values: Values | None = None) -> Rendered:
        """Text and loss spans, in order. Raises RecordProblem for what the template refuses or leaves out."""
        values = values or {}
        if self.for_tools is not None and values.get("tools"):
            return self.for_tools(messages, values)
        messages = self._adapted(messages)
        text, marked = self._rendered(messages, values)
        places = self._places(messages, values, text)
        rewritten = self.counts["reasoning rewritten"]
        self.counts.update(f"{_UNUSED}{name}" for name in values if name not in self._variables)
        if self._marked:
            spans = [self._through_end_token(text, start, end) for start, end in marked if end > start]
            self._count_reasoning(messages, text, spans)
            self._count_unmarked(messages, values, text, places, spans)
        else:
            spans = self._spans(messages, values, text, places)
        if not spans:
            if self.counts["reasoning rewritten"] > rewritten:
                raise RecordProblem(
                    "chat template",
                    "the model's chat template leaves out the reasoning of every answer because later turns follow",
                    "end such conversations with an answer",
                )
            raise RecordProblem(
                "chat template",
                "the assistant's text cannot be told from the rest in what the model's chat template renders",
                _ADVICE,
            )
        return text, tuple(spans)

    def prompt(self, content: str) -> str:
        """A user's message and the generation prompt. Raises RecordProblem where the template refuses that."""
        return self._rendered(self._adapted([{"role": "user", "content": content}]), {}, prompt=True)[0]

    @property
    def folded(self) -> int:
        """Conversations whose system message was put in front of the first user message."""
        return self.counts["folded"]

    def take_counts(self) -> Counter[str]:
        """The counts since the last call; those of the template for tools have the prefix `tools: `."""
        taken, self.counts = self.counts, Counter()
        if self.for_tools is not None:
            taken.update({f"{_TOOLS}{key}": count for key, count in self.for_tools.take_counts().items()})
        return taken

    def remarks(self, counts: Counter[str] | None = None) -> tuple[str, ...]:
        """What happened to the conversations, one line each. Absent `counts`: to those rendered so far."""
        counts = self.counts if counts is None else counts
        found = []
        if counts["folded"]:
            found.append(
                f"the chat template has no system role: {counts['folded']} system messages were put in front of the "
                "first user message"
            )
        if "strftime_now" in self._variables:
            found.append(
                f"the chat template writes today's date: the data has {self._today:%d %b %Y} in its place, so that the "
                "same records give the same tokens on every day"
            )
        if unused := _with_prefix(counts, _UNUSED):
            listed = ", ".join(f"{name} ({count} records)" for name, count in unused.most_common(8))
            found.append(f"the chat template does not use: {listed}")
        found += [text.format(counts[kind]) for kind, text in _REMARKS.items() if counts[kind]]
        if self.for_tools is not None:
            found += self.for_tools.remarks(_with_prefix(counts, _TOOLS) + self.for_tools.counts)
        return tuple(dict.fromkeys(found))

    def _learn_about_template(self, special_tokens: Sequence[str]) -> None:
        """Find out by small conversations what the template writes."""
        user, answer = {"role": "user", "content": _word(0)}, {"role": "assistant", "content": _word(1)}
        question, prompted = self._try([user], {}), self._try([user], {}, prompt=True)
        turns = self._try([user, answer], {}) or ""
        if not (turns.startswith(self._begin) and turns.count(self._begin) == 1):
            self._begin = ""  # some models begin every message with it
        tail = turns.partition(_word(1))[2]
        between = turns.partition(_word(0))[2].partition(_word(1))[0]
        by_length = sorted(special_tokens, key=len, reverse=True)
        self._end_tokens = tuple(token for token in by_length if token in tail)
        """The special tokens that end an assistant turn: those behind an answer that ends a conversation."""
        self._user_end_tokens = tuple(token for token in self._end_tokens if between.lstrip().startswith(token))
        self._has_generation_prompt = question != prompted
        header = ""
        if question is not None and turns.startswith(question):
            header = turns[len(question) :].partition(_word(1))[0]
        self._header = header if header.strip() else ""
        """What the template writes in front of an answer; it carries no loss though no generation prompt has it."""
        self.folds_system = not self._renders_role("system")
        """The template refuses or leaves out the system role; such messages are put in front of the first user
        message."""
        self._renders_developer = self._renders_role("developer")
        self._arguments_as_text = self._wants_arguments_as_text()

    def _renders_role(self, role: str) -> bool:
        text = self._try([{"role": role, "content": _word(0)}, {"role": "user", "content": _word(1)}], {})
        return text is not None and _word(0) in text

    def _wants_arguments_as_text(self) -> bool:
        """Whether the template writes the arguments of a tool call without turning them into JSON itself."""
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
        # Jinja runs the template's own code: besides its refusals (TemplateError) anything a filter meets may come.
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
                f"the model's chat template refuses the conversation: {error}",
                "order the roles as the template wants them (usually user and assistant in turn)",
            ) from error

    def _try(self, messages: list[Message], values: Values, *, prompt: bool = False) -> str | None:
        """The text; None where the template refuses the messages."""
        try:
            return self._rendered(messages, values, prompt=prompt)[0]
        except RecordProblem:
            return None

    def _adapted(self, messages: list[Message]) -> list[Message]:
        """The messages as the template takes them. Raises RecordProblem where that is not possible."""
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
        """Message number -> where its content stands in the text, for all messages or none.

        Raises RecordProblem for a message that the template leaves out.
        """
        blank, names = [], {}
        for index, message in enumerate(messages):
            start = _answer_start(message)
            content = message["content"]
            blank.append(message | {"content": content[:start] + _word(index)} if content[start:].strip() else message)
            if message.get("tool_calls"):
                calls = []
                for number, call in enumerate(message["tool_calls"], start=1):
                    placeholder = f"\ue002{index}.{number}\ue003"
                    names[placeholder] = (_name_of(call), f"tool call {number} of message {index + 1}")
                    calls.append(_renamed(call, placeholder))
                blank[-1] = blank[-1] | {"tool_calls": calls}
        rendered = self._try(blank, values)
        for index, message in enumerate(messages):
            content = message["content"][_answer_start(message) :].strip()
            reaches = content in text if rendered is None else _word(index) in rendered
            if content and not reaches:
                raise _left_out(f"message {index + 1} ({message['role']})", message["role"])
        for placeholder, (name, where) in names.items():
            if not (name in text if rendered is None else placeholder in rendered):
                raise _left_out(f"{where} (assistant)", "assistant")
        if rendered is None:
            return {}
        for placeholder, (name, _) in names.items():
            rendered = rendered.replace(placeholder, name)
        return _aligned(messages, rendered, text)

    def _spans(self, messages: list[Message], values: Values, text: str, places: dict[int, Span]) -> list[Span]:
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
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
        """Where the turn of a message stands, if that can be told; and what is rendered through it."""
        start = self._start(messages[:index], values, text, places.get(index))
        is_last = index == len(messages) - 1
        through = text if is_last else self._try(messages[: index + 1], values)
        end = None if start is None else self._end(start, through, text, places, index)
        turn = None if start is None or end is None or end <= start else (start, end)
        return turn, through or ""

    def _start(self, earlier: list[Message], values: Values, text: str, place: Span | None) -> int | None:
        """Where the turn behind the earlier messages begins: the end of the generation prompt."""
        before = self._try(earlier, values, prompt=True)
        start = None
        if before is not None and text.startswith(before):
            start = len(before)
            if not self._has_generation_prompt and text.startswith(self._header, start):
                start += len(self._header)
        elif before is not None:
            # The prompt may open the reasoning, as `<think>`, where the rendered turn has none or writes it otherwise.
            base = self._try(earlier, values)
            if base and before.startswith(base) and text.startswith(base):
                start = len(base) + _common_prefix(before[len(base) :], text[len(base) :])
        if place is not None and (start is None or start > place[0]):
            return place[0]
        return start

    def _end(self, start: int, through: str | None, text: str, places: dict[int, Span], index: int) -> int | None:
        """Where the turn ends: behind its end token."""
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
        """Note the turns of which a template that marks the spans itself leaves something without loss."""
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
        """Note the turns of which a template marks a part only. White space and reasoning, which is counted, aside."""
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
        """The span made longer by the special token right behind it, unless one ends it already."""
        if text[start:end].rstrip().endswith(self._end_tokens):
            return start, start + len(text[start:end].rstrip())
        after = text[end:]
        token = next((token for token in self._end_tokens if after.lstrip().startswith(token)), None)
        return (start, end) if token is None else (start, end + after.index(token) + len(token))


_REMARKS = {
    "reasoning rewritten": "{} assistant turns carry no loss: the chat template leaves out their reasoning because "
    "later turns follow; split such conversations so that each of these turns is the last one",
    "reasoning left out": "the chat template leaves out the reasoning of {} assistant turns; their answers carry loss",
    "reasoning without loss": "the reasoning of {} assistant turns carries no loss: the chat template writes it "
    "outside of what the assistant generates",
    "outside of marks": "{} assistant turns have text outside of the chat template's generation marks, such as tool "
    "calls or the end token, which carries no loss; enclose all that the assistant writes with {{% generation %}} ... "
    "{{% endgeneration %}}",
    "not marked": "{} assistant turns carry no loss: the chat template does not mark them with generation",
    "unknown place": "{} assistant turns carry no loss: where they begin cannot be told in what the chat template "
    "renders; " + _ADVICE.replace("{", "{{").replace("}", "}}"),
}
"""What happened to an assistant turn -> the line that counts such turns."""


_UNUSED, _TOOLS = "unused ", "tools: "


def _with_prefix(counts: Counter[str], prefix: str) -> Counter[str]:
    return Counter({key.removeprefix(prefix): count for key, count in counts.items() if key.startswith(prefix)})


def _word(index: int) -> str:
    """A placeholder from a private area of Unicode, which no template takes for anything else."""
    return f"\ue000{index}\ue001"


def _answer_start(message: Message) -> int:
    """Where the content begins behind reasoning that stands in the content itself."""
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
    """The text of the turn that is in none of the spans, which are in order."""
    position, end = turn
    pieces = []
    for first, last in spans:
        pieces.append(text[position:first])
        position = max(position, last)
    return "".join([*pieces, text[position:end]])


def _loses_reasoning(reasoning: str, text: str, turn: Span, through: str) -> bool:
    """Whether the turn has its reasoning in `through`, where it is the last one, and not in the whole text."""
    start, end = turn
    written = text[start:end].count(reasoning)
    if through.startswith(text[:start]):
        return through[start:].count(reasoning) > written
    return not written and reasoning in through


def _aligned(messages: list[Message], rendered: str, text: str) -> dict[int, Span]:
    """Places of the contents in `text`, if `rendered` with the contents put back is exactly that; else none."""
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
    """Number of characters in which both texts begin alike."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _left_out(what: str, role: str) -> RecordProblem:
    return RecordProblem(
        "left out by template",
        f"the model's chat template leaves out {what}",
        f"remove such {role} messages, or choose a base model whose chat template has them",
    )


def _name_of(call: Message) -> str:
    return str(call.get("function", call).get("name", ""))


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
            "let a user message follow the system message",
        )
    contents = [message["content"] for message in (*system, rest[0])]
    return [rest[0] | {"content": "\n\n".join(contents)}, *rest[1:]]


def renderer_of(tokenizer: Any, today: date = TEMPLATE_DATE) -> ChatRenderer | None:
    """The renderer of a transformers tokenizer; None where it has no chat template.

    Raises ModelUnusableError for a template that cannot be compiled or whose output is random.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        templates = {"default": templates}
    if not templates.get("default"):
        return None
    renderer = _renderer(tokenizer, templates["default"], today)
    if templates.get("tool_use"):
        renderer.for_tools = _renderer(tokenizer, templates["tool_use"], today)
    return renderer


def _renderer(tokenizer: Any, template: str, today: date) -> ChatRenderer:
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
    # transformers compiles a template once and keeps it. It takes no functions as arguments, so the clock is replaced
    # in the compiled template.
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
    """The names that the template reads from outside. Raises ModelUnusableError for one that cannot be used."""
    from jinja2 import TemplateError, meta, nodes

    try:
        tree = _compiled(template).environment.parse(template)
    except TemplateError as error:
        raise ModelUnusableError(
            f"the model's chat template is not a valid Jinja template: {error}",
            advice="take chat_template of tokenizer_config.json from the model's source again",
        ) from error
    # jinja2.meta leaves out the functions that transformers gives to every template.
    names = meta.find_undeclared_variables(tree) | {node.name for node in tree.find_all(nodes.Name)} & _FUNCTIONS
    if "lipsum" in names or any(node.name == "random" for node in tree.find_all(nodes.Filter)):
        raise ModelUnusableError(
            "the model's chat template draws at random: the same records would have other tokens in every run",
            advice="remove the filter random and the function lipsum from chat_template in tokenizer_config.json",
        )
    return frozenset(names)
