"""Records -> examples: which format the columns speak, which column holds what, and what an example's text is."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetune_api.v1alpha1 import TASK_SUPPORT, Columns, DataFormat, Task

from ..errors import BadDataError
from .chat import ChatRenderer, Span
from .labels import label_name
from .messages import (
    MEDIA_COLUMNS,
    TEMPLATE_COLUMNS,
    Message,
    encodable,
    parse_messages,
    refuse_media,
    template_values,
)
from .problems import Place, RecordProblem, listed, shown

USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "label": ("label",),
    "prompt": ("prompt", "instruction"),
    "completion": ("completion", "output", "response"),
    "messages": ("messages", "conversations"),
}
"""Field of `spec.data.columns` -> the column names that stand for it unless the field is set."""

NEEDED: dict[DataFormat, tuple[str, ...]] = {
    DataFormat.CLASSIFICATION: ("text", "label"),
    DataFormat.TEXT: ("text",),
    DataFormat.INSTRUCTION: ("prompt", "completion"),
    DataFormat.CHAT: ("messages",),
}
"""Format -> the fields of `spec.data.columns` that it reads."""

INPUT_COLUMN = "input"
"""Optional third column of Instruction records; its text follows the prompt after a blank line."""

OPTIONAL_COLUMNS: dict[DataFormat, tuple[str, ...]] = {
    DataFormat.INSTRUCTION: (INPUT_COLUMN, *MEDIA_COLUMNS),
    DataFormat.CHAT: (*TEMPLATE_COLUMNS, *MEDIA_COLUMNS),
}
"""Format -> columns that it looks at where they are. Of Parquet files no others are read."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training example before tokenising."""

    text: str
    place: Place
    label: str = ""
    """Label name; Classification only."""
    spans: tuple[Span, ...] = ()
    """Characters of `text` that carry loss; language models only."""
    divisible: bool = False
    """Whether a text that is longer than a row becomes several rows; it is cut to one row otherwise."""
    parts: tuple[str, ...] = field(default=(), compare=False)
    """Texts of the record, where `text` has begin and end tokens or a template around them."""

    @property
    def content(self) -> tuple[str, ...]:
        """What the record says, for steps that compare records: its texts without what every example has.

        The rendered conversation for Chat, prompt and completion for Instruction, else the text.
        """
        return self.parts or (self.text,)


def detect_format(first: Collection[str], columns: Columns, task: Task | None, uri: str) -> DataFormat:
    """The one format that the first record's columns, `first`, allow. Raises BadDataError when none or several do."""
    possible = []
    for data_format, fields in NEEDED.items():
        has_all = all(_present(first, field, columns) for field in fields)
        fits_task = task is None or data_format in TASK_SUPPORT[task].formats
        if has_all and fits_task:
            possible.append(data_format)
    if DataFormat.CLASSIFICATION in possible and DataFormat.TEXT in possible:
        possible.remove(DataFormat.TEXT)  # a label beside the text is there to be learnt
    here = listed(first)
    if len(possible) == 1:
        return possible[0]
    if possible:
        raise BadDataError(
            f"{uri}: the columns ({here}) fit more than one format: {', '.join(possible)}",
            advice=f"set spec.data.format to one of {', '.join(possible)}",
        )
    needs = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in NEEDED.items())
    suited = "" if task is None else f" for the task {task}"
    raise BadDataError(
        f"{uri}: the columns ({here}) fit no format{suited}",
        advice=f"set spec.data.format, and name the columns in spec.data.columns ({needs})",
    )


def _present(record: Collection[str], field: str, columns: Columns) -> bool:
    named = getattr(columns, field)
    return any(name in record for name in ((named,) if named else USUAL_NAMES[field]))


class Formatter:
    """Makes examples of one format. `renderer` is the chat template, where the tokenizer has one.

    `bos` and `eos` begin and end a text, unless they are empty. The tokenizer adds them to a text of Classification,
    the formatter adds them to others; either way a text that has them already does not get them twice.
    """

    def __init__(
        self,
        data_format: DataFormat,
        columns: Columns,
        renderer: ChatRenderer | None = None,
        *,
        bos: str = "",
        eos: str = "",
    ) -> None:
        self.data_format = data_format
        self.renderer = renderer
        self._columns = columns
        self._bos = bos
        self._eos = eos

    def __call__(self, record: Mapping[str, Any], place: Place) -> Example:
        """The example of a record. Raises RecordProblem for one that cannot be used."""
        if self.data_format is DataFormat.CLASSIFICATION:
            text = self._bare(record, "text")
            return Example(text, place, label=label_name(self._value(record, "label")[1]))
        if self.data_format is DataFormat.TEXT:
            bare = self._text(record, "text")
            text = self._ended(self._begun(bare))
            return Example(text, place, spans=((-1, len(text)),), divisible=True, parts=(self._stripped(bare),))
        if self.data_format is DataFormat.INSTRUCTION:
            return self._instruction(record, place)
        column, value = self._value(record, "messages")
        in_parquet = place.unit == "row"
        messages = parse_messages(value, column, nulls_are_absent=in_parquet)
        return self._chat(messages, place, template_values(record, nulls_are_absent=in_parquet))

    def prompt(self, prompt: str) -> str:
        """The text in front of an answer, as in the training data: what a model is given to continue.

        With a chat template that is the user's turn and the generation prompt; without one, an Instruction's prompt has
        a blank line behind it, and a Text is continued as it is. Nothing is to be added when it is tokenised.
        """
        if self.renderer is not None:
            return self.renderer.prompt(prompt)
        return self._begun(prompt) + ("" if self.data_format is DataFormat.TEXT else "\n\n")

    def take_counts(self) -> Counter[str]:
        """What happened to the conversations rendered since the last call."""
        return Counter() if self.renderer is None else self.renderer.take_counts()

    def remarks(self, counts: Counter[str] | None = None) -> tuple[str, ...]:
        """What a user should know about the conversations, one line each. Absent `counts`: those rendered so far."""
        return () if self.renderer is None else self.renderer.remarks(counts)

    def columns_of(self, names: Sequence[str]) -> list[str]:
        """Of a file's columns those that are read; all where a needed one is missing, since the error lists them."""
        found = [self._present_names(names, field) for field in NEEDED[self.data_format]]
        if not all(found):
            return list(names)
        used = {choice[0] for choice in found} | set(OPTIONAL_COLUMNS.get(self.data_format, ()))
        return [name for name in names if name in used]

    def _present_names(self, names: Collection[str], field: str) -> list[str]:
        named = getattr(self._columns, field)
        return [name for name in ((named,) if named else USUAL_NAMES[field]) if name in names]

    def _instruction(self, record: Mapping[str, Any], place: Place) -> Example:
        prompt, completion = self._text(record, "prompt"), self._text(record, "completion")
        more = record.get(INPUT_COLUMN)
        used = {self._value(record, field)[0] for field in NEEDED[DataFormat.INSTRUCTION]}
        refuse_media(record, used)
        if isinstance(more, str) and more.strip() and INPUT_COLUMN not in used:
            prompt = prompt + "\n\n" + encodable(self._unbegun(more), f"column {INPUT_COLUMN!r}")
        parts = (self._unbegun(prompt), self._stripped(completion))
        if self.renderer is not None:
            example = self._chat(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}], place
            )
            return replace(example, parts=parts)
        start = self._begun(prompt) + "\n\n"
        text = self._ended(start + self._bare(record, "completion"))
        return Example(text, place, spans=((len(start), len(text)),), parts=parts)

    def _chat(self, messages: list[Message], place: Place, values: Mapping[str, Any] | None = None) -> Example:
        assert self.renderer is not None, "Chat needs a template; prepare checks that"
        text, spans = self.renderer(messages, values)
        return Example(encodable(text, "the conversation"), place, spans=spans)

    def _begun(self, text: str) -> str:
        """The text with the begin token in front, which it may have already."""
        return text if self._bos and text.lstrip().startswith(self._bos) else self._bos + text

    def _ended(self, text: str) -> str:
        """The text with the end token as its end, which it may have already (with white space behind it)."""
        trimmed = text.rstrip()
        return trimmed if self._eos and trimmed.endswith(self._eos) else text + self._eos

    def _unbegun(self, text: str) -> str:
        """The text without begin tokens in front."""
        while self._bos and text.lstrip().startswith(self._bos):
            text = text.lstrip().removeprefix(self._bos)
        return text

    def _bare(self, record: Mapping[str, Any], field: str) -> str:
        """The text of a column without begin and end tokens around it. Raises RecordProblem where nothing is left."""
        text = self._stripped(self._text(record, field))
        if not text.strip():
            raise _empty(self._value(record, field)[0])
        return text

    def _stripped(self, text: str) -> str:
        """The text without begin and end tokens around it, which may leave nothing."""
        text = self._unbegun(text)
        while self._eos and text.rstrip().endswith(self._eos):
            text = text.rstrip().removesuffix(self._eos)
        return text

    def _value(self, record: Mapping[str, Any], field: str) -> tuple[str, Any]:
        """Name and value of the column that holds `field`."""
        named = getattr(self._columns, field)
        names = (named,) if named else USUAL_NAMES[field]
        found = [name for name in names if name in record]
        if not found:
            raise RecordProblem(
                "missing column",
                f"no column {' or '.join(map(repr, names))}; columns here: {listed(record)}",
                f"name the column that holds the {field} in spec.data.columns.{field}",
            )
        return found[0], record[found[0]]

    def _text(self, record: Mapping[str, Any], field: str) -> str:
        column, value = self._value(record, field)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise _empty(column)
        if not isinstance(value, str):
            what = f"column {column!r} must be text, not {type(value).__name__} {shown(value)}"
            raise RecordProblem("wrong type", what, f"write column {column!r} as text")
        return encodable(value, f"column {column!r}")


def _empty(column: str) -> RecordProblem:
    return RecordProblem("empty text", f"column {column!r} is empty", "fill it or remove the record")
