"""Converts records to examples: the interface of a format, and what all formats share."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar

from finetune_api.v1alpha1 import Columns, DataFormat

from ...registry import Registry
from ..chat import ChatRenderer, Span
from ..labels import canonical_name
from ..messages import Message, encodable, is_encodable
from ..problems import Place, RecordProblem, listed, shown


@dataclass(frozen=True, slots=True)
class Example:
    """One training example before tokenizing."""

    text: str
    place: Place
    label: str = ""
    """Label name; only for Classification."""
    spans: tuple[Span, ...] = ()
    """Character ranges of `text` that carry loss, or that each have a label; sorted, without overlap. Empty for texts
    with one label."""
    span_labels: tuple[str, ...] = ()
    """Label names of `spans`, if they have labels."""
    divisible: bool = False
    """Whether a text that is longer than a row is split into several rows instead of truncated."""
    parts: tuple[str, ...] = field(default=(), compare=False)
    """The record's texts, if `text` adds begin and end tokens or a template to them."""
    rejected: "Example | None" = None
    """For Preference: the other answer to the same prompt. `text` and `spans` are those of the chosen one."""
    group: str = ""
    """Of a training record, if groups are held out: records of one group are in the same split."""
    messages: tuple[str, ...] = field(default=(), compare=False)
    """For Chat: the contents of the messages, except those of the system and the developer."""
    copies: "tuple[Example, ...] | None" = field(default=None, compare=False)
    """Changed copies, which are only used if the example gets into the training split. None: without augmentation."""

    @property
    def content(self) -> tuple[str, ...]:
        """The record's own texts, for steps that compare records: without what every example has in common.

        The rendered conversation for Chat, prompt and completion for Instruction, otherwise the text.
        """
        return self.parts or (self.text,)

    @property
    def own_texts(self) -> tuple[str, ...]:
        """Like `content`, but the contents of the messages for Chat: without what a template or a system message adds
        to every conversation."""
        return self.messages or self.content


def everywhere(text: str) -> tuple[Span, ...]:
    """The spans of a text of which every token carries loss, also one of zero width at its start."""
    return ((-1, len(text)),)


class TemplateUse(Enum):
    """What a format uses the tokenizer's chat template for."""

    NEVER = "never"
    OPTIONAL = "optional"
    """Examples are rendered with the template, if there is one."""
    REQUIRED = "required"


class RecordFormat(ABC):
    """Fields of the records of one format, and how they are converted to examples."""

    name: ClassVar[DataFormat]
    version: ClassVar[int] = 1
    """Increased when the same records would give different examples; part of the dataset's digest."""
    columns: ClassVar[Mapping[str, tuple[str, ...]]]
    """Fields of `spec.data.columns` that it reads -> default column names of each."""
    optional_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Like `columns`, for fields that a record may lack."""
    optional_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that it uses if present. No other columns are read from Parquet files."""
    preferred_to: ClassVar[tuple[DataFormat, ...]] = ()
    """Formats that it takes precedence over when the columns of a file match both and the spec names none."""
    template: ClassVar[TemplateUse] = TemplateUse.NEVER
    tokenizer_adds_ends: ClassVar[bool] = False
    """Whether the tokenizer adds the special tokens around a text; if not, the formatter does."""
    is_divisible: ClassVar[bool] = False
    """Whether an example that is longer than a row is split into several rows."""

    text_fields: ClassVar[tuple[str, ...]] = ("text",)
    """Fields of `columns` whose values are text or lists of words."""

    def with_texts(
        self, record: Mapping[str, Any], place: Place, change: Callable[[str], str], formatter: "Formatter"
    ) -> dict[str, Any]:
        """The record with every text replaced by `change(text)`. Raises RecordProblem for an unusable record."""
        del place
        changed = dict(record)
        for name in self.text_fields:
            column, value = formatter.value(record, name)
            changed[column] = changed_texts(value, change)
        return changed

    @abstractmethod
    def example(self, record: Mapping[str, Any], place: Place, formatter: "Formatter") -> Example:
        """Convert a record to an example. Raises RecordProblem for an unusable record."""

    def prompt(self, prompt: str, formatter: "Formatter") -> str:
        """The prompt as a model without a chat template gets it: followed by a blank line."""
        return formatter.with_bos(prompt) + "\n\n"


def changed_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A text, or the texts of a list, after `change`; other values as they are."""
    if isinstance(value, list):
        return [changed_texts(item, change) if isinstance(item, str) else item for item in value]
    return change(value) if isinstance(value, str) and is_encodable(value) else value


FORMATS: Registry[RecordFormat] = Registry(__package__, "spec.data.format")
"""Format by name."""


def column_names(fields: Mapping[str, tuple[str, ...]], columns: Columns, field: str) -> tuple[str, ...]:
    """Possible names of the column of a field."""
    named = getattr(columns, field)
    return (named,) if named else fields[field]


class Formatter:
    """Makes examples of one format. `renderer` renders the chat template, if the tokenizer has one.

    `bos` and `eos` begin and end a text, unless they are empty. For formats with `tokenizer_adds_ends` the tokenizer
    adds them, for others the formatter does. Either way, a text that already has them does not get them
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
        group_by: str | None = None,
        train_on_inputs: bool = False,
    ) -> None:
        self.data_format = data_format
        self.train_on_inputs = train_on_inputs
        """Whether the whole text of a record with a prompt carries loss, not only its answers."""
        self.group_by = group_by
        """Column with the group of a training record, if groups are held out."""
        self.renderer = renderer
        self._format = FORMATS[data_format]
        fields = {**self._format.optional_fields, **self._format.columns}
        self._names = {field: column_names(fields, columns, field) for field in fields}
        """Field -> possible names of its column."""
        self._bos = bos
        self._eos = eos
        self._counts: Counter[str] = Counter()
        """`column NAME` -> records with a value in a column that is not used."""
        self._used: dict[tuple[str, ...], frozenset[str]] = {}
        """Columns of a record -> those that are used."""

    def __call__(self, record: Mapping[str, Any], place: Place) -> Example:
        """Convert a record to an example. Raises RecordProblem for an unusable record."""
        names = tuple(record)
        if names not in self._used:
            if len(self._used) >= _MOST_LAYOUTS:
                self._used.clear()
            self._used[names] = frozenset(self.columns_of(names))
        if len(used := self._used[names]) < len(names) and len(self._counts) < _MOST_LAYOUTS:
            self._counts.update(f"{_COLUMN}{name}" for name in names if name not in used and record[name])
        example = self._format.example(record, place, self)
        return replace(example, spans=everywhere(example.text)) if self.train_on_inputs else example

    def with_texts(self, record: Mapping[str, Any], place: Place, change: Callable[[str], str]) -> dict[str, Any]:
        """The record with every text replaced by `change(text)`. Raises RecordProblem for an unusable record."""
        return self._format.with_texts(record, place, change, self)

    @property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """Fields of `spec.data.columns` that are read -> possible column names of each."""
        return {field: self._names[field] for field in self._format.columns}

    def prompt(self, prompt: str) -> str:
        """Format a prompt as in the training data, for generation.

        With a chat template: the user's turn and the generation prompt. Without one, a blank line follows an
        Instruction's prompt, and a Text prompt is used unchanged. The tokenizer must not add special tokens to the
        result.
        """
        if self.renderer is not None:
            return self.renderer.prompt(prompt)
        return self._format.prompt(prompt, self)

    def group(self, record: Mapping[str, Any]) -> str:
        """The group of a training record as text; empty without `group_by`. Raises RecordProblem if it has none.

        As labels, equal numbers and booleans are the same group in all file types.
        """
        column = self.group_by
        if column is None:
            return ""
        remedy = "name the column with the group of each record in spec.data.validation.groupBy and test.groupBy"
        if column not in record:
            raise RecordProblem("missing column", f"no column {column!r}; columns here: {listed(record)}", remedy)
        value = record[column]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise RecordProblem("missing group", f"column {column!r} is empty", "fill it or remove the record")
        if not isinstance(value, str | int):
            what = f"column {column!r} must be text or a whole number, not {type(value).__name__} {shown(value)}"
            raise RecordProblem("wrong type", what, remedy)
        group = encodable(str(value).strip(), f"column {column!r}")
        return canonical_name(group, floats_are_whole=True)

    def take_counts(self) -> Counter[str]:
        """Return and reset the counters of the records converted so far."""
        taken, self._counts = self._counts, Counter()
        return taken if self.renderer is None else taken + self.renderer.take_counts()

    def remarks(self, counts: Counter[str] | None = None) -> tuple[str, ...]:
        """Remarks for the user about the records, one line each. Without `counts`: those converted so far."""
        found = () if self.renderer is None else self.renderer.remarks(counts)
        every = self._counts if counts is None else counts
        unused = Counter({key.removeprefix(_COLUMN): count for key, count in every.items() if key.startswith(_COLUMN)})
        if not unused:
            return found
        names = [f"{shown(name)} ({count:,} records)" for name, count in unused.most_common()]
        return (*found, f"columns that the format {self.data_format} does not use: {listed(names, most=6)}")

    def columns_of(self, names: Sequence[str]) -> list[str]:
        """The columns of a file that are read; all of them if a required one is missing, because the error lists
        them."""
        found = [self._present(names, field) for field in self._format.columns]
        if not all(found):
            return list(names)
        more = [self._present(names, field) for field in self._format.optional_fields]
        used = {choice[0] for choice in (*found, *more) if choice} | {*self._format.optional_columns, self.group_by}
        return [name for name in names if name in used]

    # ---- used by the formats ----

    def value(self, record: Mapping[str, Any], field: str) -> tuple[str, Any]:
        """Name and value of the column that holds `field`. Raises RecordProblem if there is none."""
        found = self._present(record, field)
        if not found:
            raise RecordProblem(
                "missing column",
                f"no column {' or '.join(map(repr, self._names[field]))}; columns here: {listed(record)}",
                f"name the column that holds the {field} in spec.data.columns.{field}",
            )
        return found[0], record[found[0]]

    def has(self, record: Mapping[str, Any], field: str) -> bool:
        """Whether the record has a value of a field that it may lack."""
        found = self._present(record, field)
        return bool(found) and record[found[0]] is not None

    def text(self, record: Mapping[str, Any], field: str) -> str:
        """The text of a column. Raises RecordProblem if it is empty or not text."""
        column, value = self.value(record, field)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise _empty(column)
        if not isinstance(value, str):
            what = f"column {column!r} must be text, not {type(value).__name__} {shown(value)}"
            raise RecordProblem("wrong type", what, f"write column {column!r} as text")
        return encodable(value, f"column {column!r}")

    def text_without_bos_eos(self, record: Mapping[str, Any], field: str) -> str:
        """The text of a column without begin and end tokens around it. Raises RecordProblem if nothing is left."""
        text = self.without_bos_eos(self.text(record, field))
        if not text.strip():
            raise _empty(self.value(record, field)[0])
        return text

    def without_bos_eos(self, text: str) -> str:
        """The text without begin and end tokens around it; may be empty."""
        text = self.without_bos(text)
        while self._eos and text.rstrip().endswith(self._eos):
            text = text.rstrip().removesuffix(self._eos)
        return text

    def with_bos_eos(self, text: str) -> str:
        """The text between one begin and one end token, however many of them it has already."""
        bare = self.without_bos_eos(text)
        return text if self._bos + bare + self._eos == text else self._bos + bare + self._eos

    def is_bos_or_eos(self, word: str) -> bool:
        """Whether a word is the begin or the end token."""
        return bool(word) and word in (self._bos, self._eos)

    def chat(self, messages: list[Message], place: Place, values: Mapping[str, Any] | None = None) -> Example:
        """A conversation rendered with the chat template."""
        assert self.renderer is not None, "the prepare stage checks that Chat has a template"
        text, spans = self.renderer(messages, values)
        return Example(encodable(text, "the conversation"), place, spans=spans)

    def with_bos(self, text: str) -> str:
        """The text with the begin token in front, added unless it is there already."""
        return text if self._bos and text.lstrip().startswith(self._bos) else self._bos + text

    def with_eos(self, text: str) -> str:
        """The text with the end token at its end, added unless it is there already (white space may follow it)."""
        trimmed = text.rstrip()
        return trimmed if self._eos and trimmed.endswith(self._eos) else text + self._eos

    def without_bos(self, text: str) -> str:
        """The text without begin tokens in front."""
        while self._bos and text.lstrip().startswith(self._bos):
            text = text.lstrip().removeprefix(self._bos)
        return text

    def _present(self, names: Collection[str], field: str) -> list[str]:
        return [name for name in self._names[field] if name in names]


_COLUMN = "column "
_MOST_LAYOUTS = 1000
"""Of different sets of columns, for records of JSON that have many."""


def _empty(column: str) -> RecordProblem:
    return RecordProblem("empty text", f"column {column!r} is empty", "fill it or remove the record")
