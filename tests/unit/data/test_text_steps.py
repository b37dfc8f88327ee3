"""The rules of `spec.data.cleaning` that change the texts of records, for every format."""

from typing import Any

import pytest

import tiny_models
from finetune_api.v1alpha1 import BadRecordAction, DataFormat, Spec
from finetune_trainer.data.formats import Example, Formatter
from finetune_trainer.data.pipeline import Phase, Tally, format_records, optional
from finetune_trainer.data.prepare import make_formatter
from finetune_trainer.data.problems import BadRecords, Place
from finetune_trainer.data.readers import Record


def spec_of(cleaning: dict[str, Any], data_format: str = "Text") -> Spec:
    return Spec.model_validate(
        {
            "model": {"uri": "s3://bucket/model"},
            "data": {"train": [{"uri": "s3://bucket/a.jsonl"}], "format": data_format, "cleaning": cleaning},
            "training": {"learningRate": 1e-3},
            "output": {"uri": "s3://bucket/out"},
        }
    )


def formatter_of(spec: Spec) -> Formatter:
    tokenizer = tiny_models.tiny_tokenizer(tiny_models.CHATML if spec.data.format is DataFormat.CHAT else None)
    return make_formatter(DataFormat(spec.data.format), spec.data, tokenizer, "s3://bucket/model")


def cleaned(
    cleaning: dict[str, Any],
    data_format: str,
    records: list[dict[str, Any]],
    *,
    unit: str = "line",
    training: bool = True,
) -> tuple[list[Example], dict[str, Tally]]:
    """The examples of the records, and the counts of each step."""
    spec = spec_of(cleaning, data_format)
    formatter = formatter_of(spec)
    bad = BadRecords(BadRecordAction.SKIP)
    tallies = {}
    items: Any = (Record(values, Place("a", number, unit)) for number, values in enumerate(records, start=1))
    for phase in (Phase.TEXTS, Phase.EXAMPLES):
        for step in optional(spec, phase, formatter):
            tallies[step.name] = Tally(bad, in_training=training)
            items = step.apply(items, tallies[step.name])
        if phase is Phase.TEXTS:
            items = format_records(formatter, items, Tally(bad))
    return list(items), tallies


EVERY = {"unicode": True, "whitespace": True, "redact": ["Email"]}
INTENDED = "\u201cq\u201d \ufb01 &amp; \uff21 e\u0301\r\n"
MOJIBAKE, REPAIRED = "caf\u00c3\u00a9 \x07open", "caf\u00e9 open"


@pytest.mark.parametrize(
    ("cleaning", "before", "after"),
    [
        ({"unicode": True}, MOJIBAKE, REPAIRED),
        ({"unicode": True}, "\ufeffa\x1b[31mb", "ab"),
        ({"unicode": True}, INTENDED, INTENDED),
        ({"whitespace": True}, " a \t b\u00a0\u00a0c \r\n d\n\n\n\ne ", "a b c\nd\n\ne"),
        ({"whitespace": True}, "a b\n\nc", "a b\n\nc"),
        ({"redact": ["Email"]}, "ask jo@example.com or +14155552671", "ask [EMAIL] or +14155552671"),
        ({"redact": ["Email", "Phone"]}, "ask jo@example.com or +14155552671", "ask [EMAIL] or [PHONE]"),
        (EVERY, " jo\x07@example.com  \u00c3\u00a9", "[EMAIL] \u00e9"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_the_texts_of_all_splits_are_changed_and_counted(cleaning, before, after, training):
    examples, tallies = cleaned(cleaning, "Text", [{"text": "same"}, {"text": before}], training=training)
    assert [example.content for example in examples] == [("same",), (after,)]
    assert [tally.changed for tally in tallies.values()] == [int(before != after)] * len(tallies)
    assert all(tally.dropped == 0 for tally in tallies.values())


def test_every_text_of_every_format_is_changed():
    cleaning = {"unicode": True}
    ((classified,), _) = cleaned(cleaning, "Classification", [{"text": MOJIBAKE, "label": MOJIBAKE}])
    assert (classified.text, classified.label) == (REPAIRED, MOJIBAKE)
    record = {"prompt": MOJIBAKE, "input": MOJIBAKE, "completion": MOJIBAKE}
    ((asked,), _) = cleaned(cleaning, "Instruction", [record])
    assert asked.content == (f"{REPAIRED}\n\n{REPAIRED}", REPAIRED)
    ((tagged,), _) = cleaned(cleaning, "TokenClassification", [{"tokens": [MOJIBAKE, "b"], "tags": ["X", "O"]}])
    assert (tagged.text, tagged.span_labels, len(tagged.spans)) == (f"{REPAIRED} b", ("X", "O"), 2)


@pytest.mark.parametrize("unit", ["line", "row"])
def test_the_messages_of_a_conversation_are_changed_but_not_their_roles(unit):
    arguments = '{"q": "caf\u00c3\u00a9", "none": null}'
    call = {"type": "function", "function": {"name": MOJIBAKE, "arguments": arguments}}
    record: dict[str, Any] = {
        "messages": [
            {"from": "system", "value": MOJIBAKE},
            {"from": "human", "value": [{"type": "text", "text": MOJIBAKE}]},
            {"role": "assistant", "content": MOJIBAKE, "tool_calls": [call], "reasoning_content": MOJIBAKE},
        ],
        "documents": [{"title": MOJIBAKE}],
        "tools": [{"name": MOJIBAKE}],
    }  # fmt: skip
    spec = spec_of({"unicode": True}, "Chat")
    formatter = formatter_of(spec)
    (step,) = optional(spec, Phase.TEXTS, formatter)
    (found,) = step.apply(iter([Record(record, Place("a", 1, unit))]), Tally(BadRecords(BadRecordAction.FAIL)))
    system, user, assistant = found.values["messages"]
    assert (system["content"], user["content"], assistant["content"]) == (REPAIRED,) * 3
    assert assistant["reasoning_content"] == REPAIRED
    function = assistant["tool_calls"][0]["function"]
    assert function == {"name": MOJIBAKE, "arguments": '{"q": "caf\u00e9", "none": null}'}
    assert found.values["documents"] == [{"title": REPAIRED}]
    assert found.values["tools"] == record["tools"]
    del record["messages"][2]["tool_calls"], record["messages"][2]["reasoning_content"]
    ((example,), _) = cleaned({"unicode": True}, "Chat", [record], unit=unit)
    assert example.messages == (REPAIRED, REPAIRED)


def test_unusable_records_are_left_to_the_format():
    records = [
        {"text": None},
        {"other": "a"},
        {"text": 3},
        {"text": "\ud83d \u00c3\u00a9"},
        {"text": "\x07"},
        {"text": "ok"},
    ]
    examples, tallies = cleaned({"unicode": True, "minChars": 1}, "Text", records)
    assert [example.content for example in examples] == [("ok",)]
    assert [(tally.changed, tally.dropped) for tally in tallies.values()] == [(1, 0), (0, 0)]


@pytest.mark.parametrize(
    ("training", "left"), [(True, ["hi [EMAIL]"]), (False, ["[EMAIL]", "[EMAIL], [PHONE].", "hi [EMAIL]"])]
)
def test_training_records_without_other_words_than_placeholders_are_dropped(training, left):
    records = [{"text": text} for text in ("jo@example.com", "jo@example.com, +14155552671.", "hi jo@example.com")]
    examples, tallies = cleaned({"redact": ["Email", "Phone"]}, "Text", records, training=training)
    assert [example.content[0] for example in examples] == left
    tally = tallies["redaction"]
    assert (tally.dropped, tally.changed) == (3 - len(left), len(left))
    assert [shown.text for shown in tally.examples] == ["[EMAIL]", "[EMAIL] [PHONE]", "[EMAIL]"]
    assert [shown.place for shown in tally.examples] == ["a line 1", "a line 2", "a line 3"]


@pytest.mark.parametrize(
    ("cleaning", "lengths"),
    [({"minChars": 3}, [3, 5, 9]), ({"maxChars": 5}, [2, 3, 5]), ({"minChars": 3, "maxChars": 5}, [3, 5])],
)
def test_training_records_outside_of_the_bounds_are_dropped(cleaning, lengths):
    records = [{"text": "x" * length} for length in (2, 3, 5, 9)]
    examples, tallies = cleaned(cleaning, "Text", records)
    assert [len(example.content[0]) for example in examples] == lengths
    assert tallies["length"].dropped == 4 - len(lengths)
    assert len(cleaned(cleaning, "Text", records, training=False)[0]) == 4


def test_the_length_of_a_record_is_that_of_its_own_texts():
    answer = {"role": "assistant", "content": "1234"}
    records = [{"messages": [{"role": "system", "content": "x" * 50}, {"role": "user", "content": "123"}, answer]}]
    for most, left in ((6, 0), (7, 1)):
        assert len(cleaned({"maxChars": most}, "Chat", records)[0]) == left
        assert len(cleaned({"maxChars": most}, "Instruction", [{"prompt": "123", "completion": "1234"}])[0]) == left


def test_at_most_three_records_of_a_rule_are_shown():
    records = [{"text": f"caf\u00c3\u00a9 {number}"} for number in range(9)]
    _, tallies = cleaned({"unicode": True, "maxChars": 2}, "Text", records)
    assert [len(tally.examples) for tally in tallies.values()] == [3, 3]
    assert tallies["unicode repair"].examples[1].text == "'caf\u00c3\u00a9 1' is now 'caf\u00e9 1'"
    assert tallies["length"].examples[0].text == "6 characters: caf\u00e9 0"
