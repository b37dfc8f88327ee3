"""Conversations -> text through the tokenizer's own chat template, with the spans that carry loss.

The loss falls on what the model itself has to write: the text of every assistant turn and the token that ends the turn.
A template marks those spans itself (`{% generation %}`); where it does not, they are derived, in this order:

1. Prefixes: the conversation up to an assistant turn (with the generation prompt) and through it, rendered alone, have
   to be prefixes of the whole rendering. Then the turn is what lies between; it has to begin with the content.
2. Placeholders: templates that rewrite earlier turns (dropping reasoning, for example) break the prefix property. The
   conversation is rendered with unique words in place of all contents; if putting the contents back gives exactly the
   whole rendering, the words' places are the contents' places.
3. Prefixes again, where the template writes something of its own (reasoning marks) in front of the content.
4. None holds: the record is refused, saying how to mark the template.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from .problems import RecordProblem

Message = dict[str, Any]
Span = tuple[int, int]
"""Start and end in characters."""
Rendered = tuple[str, tuple[Span, ...]]

Render = Callable[[list[Message], bool], Rendered]
"""(messages, add generation prompt) -> text and the spans that the template itself marks."""

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ADVICE = "mark the assistant's text in the model's chat template with {% generation %} ... {% endgeneration %}"
_PROBE = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


class ChatRenderer:
    """Renders conversations with one template."""

    def __init__(self, render: Render, *, marked: bool, special_tokens: Sequence[str]) -> None:
        self._marked = marked
        self._render = render
        self._end_tokens = self._tokens_behind_an_answer(special_tokens)
        self.folds_system = not self._accepts_system()
        """The template refuses the system role; such messages are put in front of the first user message."""
        self.folded = 0
        """Conversations in which that was done."""

    def __call__(self, messages: list[Message]) -> Rendered:
        """Text and loss spans, in order. Raises RecordProblem for what the template refuses."""
        if self.folds_system and messages[0]["role"] == "system":
            messages = _fold_system(messages)
            self.folded += 1
        text, marked = self._rendered(messages)
        if self._marked:
            spans = tuple(self._through_end_token(text, start, end) for start, end in marked if end > start)
        else:
            spans = (
                self._by_prefixes(messages, text, strict=True)
                or self._by_placeholders(messages, text)
                or self._by_prefixes(messages, text, strict=False)
                or ()
            )
        if not spans:
            raise RecordProblem(
                "chat template",
                "the assistant's text cannot be told from the rest in what the model's chat template renders",
                _ADVICE,
            )
        return text, spans

    def _rendered(self, messages: list[Message], *, prompt: bool = False) -> Rendered:
        # Jinja runs the template's own code: besides its refusals (TemplateError) anything a filter meets may come.
        from jinja2 import TemplateError

        try:
            return self._render(messages, prompt)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise RecordProblem(
                "chat template",
                f"the model's chat template refuses the conversation: {error}",
                "order the roles as the template wants them (usually user and assistant in turn)",
            ) from error

    def _accepts_system(self) -> bool:
        try:
            self._rendered(_PROBE)
        except RecordProblem:
            return False
        return True

    def _tokens_behind_an_answer(self, special_tokens: Sequence[str]) -> tuple[str, ...]:
        """The special tokens that end an assistant turn: those behind the answer of a conversation that ends there."""
        try:
            text, _ = self._rendered([{"role": "user", "content": "u"}, {"role": "assistant", "content": "\ue000"}])
        except RecordProblem:
            return ()
        tail = text.partition("\ue000")[2]
        return tuple(sorted((token for token in special_tokens if token in tail), key=len, reverse=True))

    def _by_prefixes(self, messages: list[Message], text: str, *, strict: bool) -> tuple[Span, ...] | None:
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                before, _ = self._rendered(messages[:index], prompt=True)
                is_last = index == len(messages) - 1
                through = text if is_last else self._rendered(messages[: index + 1])[0]
            except RecordProblem:  # a part of a conversation may be refused where the whole is not
                return None
            if not (through.startswith(before) and text.startswith(through)):
                return None
            content = message.get("content") or ""
            if strict and not through[len(before) :].lstrip().startswith(content.strip()):
                return None
            trimmed = through.rstrip()
            end = len(trimmed) if trimmed.endswith(self._end_tokens) else len(through)
            spans.append((len(before), end))
        return tuple(spans)

    def _by_placeholders(self, messages: list[Message], text: str) -> tuple[Span, ...] | None:
        words = [f"\ue000{index}\ue001" for index in range(len(messages))]
        blank = [message | {"content": word} for message, word in zip(messages, words, strict=True)]
        pieces = re.split("(\ue000[0-9]+\ue001)", self._rendered(blank)[0])
        if pieces[1::2] != words:
            return None
        for clean in (str, str.strip):
            contents = [clean(message.get("content") or "") for message in messages]
            rebuilt, spans = pieces[0], []
            for message, content, glue in zip(messages, contents, pieces[2::2], strict=True):
                if message["role"] == "assistant":
                    spans.append((len(rebuilt), len(rebuilt) + len(content)))
                rebuilt += content + glue
            if rebuilt == text:
                return tuple(self._through_end_token(text, start, end) for start, end in spans)
        return None

    def _through_end_token(self, text: str, start: int, end: int) -> Span:
        """The span made longer by the special token right behind it, unless one ends it already."""
        if text[start:end].rstrip().endswith(self._end_tokens):
            return start, start + len(text[start:end].rstrip())
        after = text[end:]
        token = next((token for token in self._end_tokens if after.lstrip().startswith(token)), None)
        return (start, end) if token is None else (start, end + after.index(token) + len(token))


def _fold_system(messages: list[Message]) -> list[Message]:
    system, *rest = messages
    if not rest or rest[0]["role"] != "user":
        raise RecordProblem(
            "chat template",
            "the model's chat template has no system role, and no user message follows the system message",
            "let a user message follow the system message",
        )
    return [rest[0] | {"content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]


def renderer_of(tokenizer: Any) -> ChatRenderer | None:
    """The renderer of a transformers tokenizer; None where it has no chat template."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        return None
    marked = _MARKER.search(template) is not None
    special = tokenizer.special_tokens_map

    # transformers annotates a string, and returns the texts and the marked spans of each.
    render_templates: Any = render_jinja_template

    def render(messages: list[Message], prompt: bool) -> Rendered:
        texts, spans = render_templates(
            [messages],
            chat_template=template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=marked and not prompt,
            **special,
        )
        return texts[0], tuple(spans[0]) if spans else ()

    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return ChatRenderer(render, marked=marked, special_tokens=sorted({*added, *map(str, tokenizer.all_special_tokens)}))
