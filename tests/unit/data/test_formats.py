import pytest

from finetune_api.v1alpha1 import Columns, DataFormat, Task
from finetune_trainer.data.formats import FORMATS, Formatter, detect_format
from finetune_trainer.data.messages import parse_messages
from finetune_trainer.data.problems import Place, RecordProblem
from finetune_trainer.errors import BadDataError

PLACE = Place("s3://b/a.jsonl", 3)
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.mark.parametrize(
    ("record", "columns", "task", "expected"),
    [
        ({"text": "x"}, {}, None, DataFormat.TEXT),
        ({"text": "x", "label": 1, "id": 7}, {}, None, DataFormat.CLASSIFICATION),
        ({"text": "x", "label": 1}, {}, Task.CAUSAL_LM, DataFormat.TEXT),
        ({"review": "x", "stars": 1}, {"text": "review", "label": "stars"}, None, DataFormat.CLASSIFICATION),
        ({"instruction": "x", "input": "", "output": "y"}, {}, None, DataFormat.INSTRUCTION),
        ({"prompt": "x", "response": "y"}, {}, None, DataFormat.INSTRUCTION),
        ({"messages": CHAT}, {}, None, DataFormat.CHAT),
        ({"conversations": []}, {}, None, DataFormat.CHAT),
    ],
)
def test_the_first_record_determines_the_format(record, columns, task, expected):
    assert detect_format(record, Columns(**columns), task, "s3://b/a.jsonl") is expected


def test_columns_that_match_two_formats_are_an_error_with_the_fix():
    record = {"instruction": "x", "output": "y", "text": "x y"}
    with pytest.raises(BadDataError, match="match more than one format: Text, Instruction") as caught:
        detect_format(record, Columns(), None, "s3://b/a.jsonl")
    assert caught.value.advice == "set spec.data.format to one of Text, Instruction"


@pytest.mark.parametrize(("record", "task"), [({"body": "x"}, None), ({"text": "x"}, Task.SEQUENCE_CLASSIFICATION)])
def test_columns_that_match_no_format_are_an_error_with_the_fix(record, task):
    with pytest.raises(BadDataError, match=r"a\.jsonl: the columns \((body|text)\) match no format") as caught:
        detect_format(record, Columns(), task, "s3://b/a.jsonl")
    assert "spec.data.columns" in caught.value.advice


def test_a_classification_record_becomes_text_and_label():
    example = Formatter(DataFormat.CLASSIFICATION, Columns(label="stars"))({"text": "good", "stars": 5.0}, PLACE)
    assert (example.text, example.label, str(example.place)) == ("good", "5", "s3://b/a.jsonl line 3")


def test_an_entire_text_carries_loss_and_ends_with_the_end_token():
    example = Formatter(DataFormat.TEXT, Columns(), bos="<s>", eos="</s>")({"text": "once"}, PLACE)
    assert example.text == "<s>once</s>"
    assert example.spans == ((-1, 11),)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "2+2?", "completion": "4"}, "2+2?\n\n4</s>"),
        ({"instruction": "Translate", "input": "chat", "output": "cat"}, "Translate\n\nchat\n\ncat</s>"),
        ({"instruction": "Say", "input": "", "response": "so"}, "Say\n\nso</s>"),
    ],
)
def test_without_a_template_only_the_completion_and_the_end_token_carry_loss(record, expected):
    example = Formatter(DataFormat.INSTRUCTION, Columns(), eos="</s>")(record, PLACE)
    assert example.text == expected
    ((start, end),) = example.spans
    assert example.text[start:end] == expected.rsplit("\n\n", 1)[1]


@pytest.mark.parametrize(
    ("record", "rule", "expected"),
    [
        ({"body": "x", "label": 1}, "missing column", "no column 'text'; columns here: body, label"),
        ({"text": "x"}, "missing column", "no column 'label'; columns here: text"),
        ({"text": " \n", "label": 1}, "empty text", "column 'text' is empty"),
        ({"text": None, "label": 1}, "empty text", "column 'text' is empty"),
        ({"text": 7, "label": 1}, "wrong type", "column 'text' must be text, not int 7"),
        ({"text": "a\ud800", "label": 1}, "undecodable bytes", "an unpaired surrogate"),
        ({"text": "x", "label": None}, "missing label", "the label is empty"),
        ({"text": "x", "label": "  "}, "missing label", "the label is empty"),
        ({"text": "x", "label": float("inf")}, "wrong type", "the label is float inf"),
        ({"text": "x", "label": ["a"]}, "wrong type", "the label is list ['a']"),
        ({"text": "x", "label": "a\ud800"}, "undecodable bytes", "the label contains an unpaired surrogate"),
    ],
)
def test_an_unusable_record_has_a_reason(record, rule, expected):
    with pytest.raises(RecordProblem) as caught:
        Formatter(DataFormat.CLASSIFICATION, Columns())(record, PLACE)
    assert caught.value.rule == rule
    assert expected in caught.value.what
    if rule == "missing column":
        assert "spec.data.columns." in caught.value.remedy


@pytest.mark.parametrize(
    "value",
    [
        CHAT,
        [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}],
        '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]',
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, CHAT[1]],
        [CHAT[0] | {"tool_calls": None}, CHAT[1]],
    ],
)
def test_conversations_are_read_in_all_common_shapes(value):
    assert parse_messages(value, "messages") == CHAT


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "must be a list of messages"),
        ("hello", "must be a list of messages"),
        ("[oops", "must be JSON"),
        (["hi"], "message 1 must be an object, not 'hi'"),
        ([{"role": "boss", "content": "hi"}], "message 1 has the role 'boss'"),
        ([CHAT[0], {"role": "assistant", "content": " "}], "message 2 (assistant) is empty"),
        ([CHAT[0], {"role": "assistant", "content": 4}], "the content of message 2 must be text, not 4"),
        ([CHAT[0]], "no assistant message"),
    ],
)
def test_an_unusable_conversation_is_reported_with_its_message(value, expected):
    with pytest.raises(RecordProblem) as caught:
        parse_messages(value, "messages")
    assert expected in caught.value.what


@pytest.mark.parametrize(
    ("data_format", "columns", "names", "expected"),
    [
        (DataFormat.CLASSIFICATION, {}, ["id", "text", "label", "embedding"], ["text", "label"]),
        (DataFormat.CLASSIFICATION, {"label": "stars"}, ["text", "label", "stars"], ["text", "stars"]),
        (DataFormat.INSTRUCTION, {}, ["id", "input", "prompt", "output", "response"], ["input", "prompt", "output"]),
        (DataFormat.INSTRUCTION, {}, ["id", "prompt", "output", "images"], ["prompt", "output", "images"]),
        (DataFormat.CHAT, {}, ["id", "messages", "tools", "images"], ["messages", "tools", "images"]),
        (DataFormat.TEXT, {}, ["id", "body"], ["id", "body"]),  # the error lists all
    ],
)
def test_only_used_columns_are_read(data_format, columns, names, expected):
    assert Formatter(data_format, Columns(**columns)).columns_of(names) == expected


def test_every_format_of_the_api_is_registered_with_columns_that_can_be_configured():
    assert set(FORMATS) == set(DataFormat)
    fields = {field for name in FORMATS for field in FORMATS[name].columns}
    assert fields == set(Columns.model_fields)


@pytest.mark.parametrize(
    ("values", "group"),
    [
        ((1, 1.0, "1", "1.0", " 1.0 "), "1"),
        ((True, "true", "TRUE", "True"), "true"),
        ((0.0, -0.0, "0.0", "-0.0"), "0"),
        (("caf\u00e9", "cafe\u0301"), "caf\u00e9"),
        (("1.5",), "1.5"),
        (("01",), "01"),
        (("User",), "User"),
    ],
)
def test_equal_values_of_all_file_types_are_one_group(values, group):
    formatter = Formatter(DataFormat.TEXT, Columns(), group_by="user")
    assert {formatter.group({"text": "x", "user": value}) for value in values} == {group}
