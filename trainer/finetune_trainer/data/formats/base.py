"""Records -> examples: what a format is, and what all formats share."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from finetune_api.v1alpha1 import Columns, DataFormat

from ...registry import Registry
from ..chat import ChatRenderer, Span
from ..messages import Message, encodable
from ..problems import Place, RecordProblem, listed, shown


@dataclass(frozen=True, slots=True)
class Example:
    """One training example before tokenising."""

    text: str
    place: Place
    label: str = ""
    """Label name; Classification only."""
    spans: tuple[Span, ...] = ()
    """Characters of `text` that carry loss, or that have a label each; in order, without overlap. Not of texts with
    one label."""
    span_labels: tuple[str, ...] = ()
    """Label names of `spans`, where these have labels."""
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


class TemplateUse(Enum):
    """What a format needs the tokenizer's chat template for."""

    NEVER = "never"
    OPTIONAL = "optional"
    """Examples are formed by the template where there is one."""
    REQUIRED = "required"


class RecordFormat(ABC):
    """What the records of one format have, and how they become examples."""

    name: ClassVar[DataFormat]
    version: ClassVar[int] = 1
    """Raised when the same records would give other examples; part of the digest of a data set."""
    columns: ClassVar[Mapping[str, tuple[str, ...]]]
    """Fields of `spec.data.columns` that it reads -> the column names that stand for each unless the field is set."""
    optional_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that it looks at where they are. Of Parquet files no others are read."""
    preferred_to: ClassVar[tuple[DataFormat, ...]] = ()
    """Formats that it is chosen over where the columns of a file fit both and the spec names none."""
    template: ClassVar[TemplateUse] = TemplateUse.NEVER
    tokenizer_adds_ends: ClassVar[bool] = False
    """Whether the tokenizer adds the special tokens around a text; otherwise the formatter writes them."""
    is_divisible: ClassVar[bool] = False
    """Whether an example that is longer than a row becomes several rows."""

    @abstractmethod
    def example(self, record: Mapping[str, Any], place: Place, formatter: "Formatter") -> Example:
        """The example of a record. Raises RecordProblem for one that cannot be used."""

    def prompt(self, prompt: str, formatter: "Formatter") -> str:
        """What a model without a chat template is given to continue: the prompt and a blank line."""
        return formatter.begun(prompt) + "\n\n"


FORMATS: Registry[RecordFormat] = Registry(__package__, "spec.data.format")
"""Format by name."""


def column_names(fields: Mapping[str, tuple[str, ...]], columns: Columns, field: str) -> tuple[str, ...]:
    """Names that the column of a field may have."""
    named = getattr(columns, field)
    return (named,) if named else fields[field]


class Formatter:
    """Makes examples of one format. `renderer` is the chat template, where the tokenizer has one.

    `bos` and `eos` begin and end a text, unless they are empty. The tokenizer adds them to a text of a format with
    `tokenizer_adds_ends`, the formatter adds them to others; either way a text that has them already does not get them
    twice.
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
        self._format = FORMATS[data_format]
        self._columns = columns
        self._bos = bos
        self._eos = eos

    def __call__(self, record: Mapping[str, Any], place: Place) -> Example:
        """The example of a record. Raises RecordProblem for one that cannot be used."""
        return self._format.example(record, place, self)

    @property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """Fields of `spec.data.columns` that are read -> the names that the column of each may have."""
        return {field: self._names(field) for field in self._format.columns}

    def prompt(self, prompt: str) -> str:
        """The text in front of an answer, as in the training data: what a model is given to continue.

        With a chat template that is the user's turn and the generation prompt; without one, an Instruction's prompt has
        a blank line behind it, and a Text is continued as it is. Nothing is to be added when it is tokenised.
        """
        if self.renderer is not None:
            return self.renderer.prompt(prompt)
        return self._format.prompt(prompt, self)

    def take_counts(self) -> Counter[str]:
        """What happened to the conversations rendered since the last call."""
        return Counter() if self.renderer is None else self.renderer.take_counts()

    def remarks(self, counts: Counter[str] | None = None) -> tuple[str, ...]:
        """What a user should know about the conversations, one line each. Absent `counts`: those rendered so far."""
        return () if self.renderer is None else self.renderer.remarks(counts)

    def columns_of(self, names: Sequence[str]) -> list[str]:
        """Of a file's columns those that are read; all where a needed one is missing, since the error lists them."""
        found = [self._present(names, field) for field in self._format.columns]
        if not all(found):
            return list(names)
        used = {choice[0] for choice in found} | set(self._format.optional_columns)
        return [name for name in names if name in used]

    # ---- for the formats ----

    def value(self, record: Mapping[str, Any], field: str) -> tuple[str, Any]:
        """Name and value of the column that holds `field`. Raises RecordProblem where there is none."""
        found = self._present(record, field)
        if not found:
            raise RecordProblem(
                "missing column",
                f"no column {' or '.join(map(repr, self._names(field)))}; columns here: {listed(record)}",
                f"name the column that holds the {field} in spec.data.columns.{field}",
            )
        return found[0], record[found[0]]

    def text(self, record: Mapping[str, Any], field: str) -> str:
        """The text of a column. Raises RecordProblem for one that is empty or no text."""
        column, value = self.value(record, field)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise _empty(column)
        if not isinstance(value, str):
            what = f"column {column!r} must be text, not {type(value).__name__} {shown(value)}"
            raise RecordProblem("wrong type", what, f"write column {column!r} as text")
        return encodable(value, f"column {column!r}")

    def bare(self, record: Mapping[str, Any], field: str) -> str:
        """The text of a column without begin and end tokens around it. Raises RecordProblem where nothing is left."""
        text = self.stripped(self.text(record, field))
        if not text.strip():
            raise _empty(self.value(record, field)[0])
        return text

    def stripped(self, text: str) -> str:
        """The text without begin and end tokens around it, which may leave nothing."""
        text = self.unbegun(text)
        while self._eos and text.rstrip().endswith(self._eos):
            text = text.rstrip().removesuffix(self._eos)
        return text

    def chat(self, messages: list[Message], place: Place, values: Mapping[str, Any] | None = None) -> Example:
        """A conversation as the chat template writes it."""
        assert self.renderer is not None, "Chat needs a template; prepare checks that"
        text, spans = self.renderer(messages, values)
        return Example(encodable(text, "the conversation"), place, spans=spans)

    def begun(self, text: str) -> str:
        """The text with the begin token in front, which it may have already."""
        return text if self._bos and text.lstrip().startswith(self._bos) else self._bos + text

    def ended(self, text: str) -> str:
        """The text with the end token as its end, which it may have already (with white space behind it)."""
        trimmed = text.rstrip()
        return trimmed if self._eos and trimmed.endswith(self._eos) else text + self._eos

    def unbegun(self, text: str) -> str:
        """The text without begin tokens in front."""
        while self._bos and text.lstrip().startswith(self._bos):
            text = text.lstrip().removeprefix(self._bos)
        return text

    def _names(self, field: str) -> tuple[str, ...]:
        return column_names(self._format.columns, self._columns, field)

    def _present(self, names: Collection[str], field: str) -> list[str]:
        return [name for name in self._names(field) if name in names]


def _empty(column: str) -> RecordProblem:
    return RecordProblem("empty text", f"column {column!r} is empty", "fill it or remove the record")
