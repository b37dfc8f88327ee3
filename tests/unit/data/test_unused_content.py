"""Content of a record that is not learned: weights of messages, other columns, and what a template shortens."""

import pytest
from tokenizers.processors import TemplateProcessing

import tiny_models
from finetune_api.v1alpha1 import DataFormat
from finetune_trainer.data.prepare import make_formatter
from finetune_trainer.data.problems import RecordProblem
from formatted import ANSWER, ASKS, PLACE, RESULT, ROW, SYSTEM, USER, data_of, formatter_of, learnt

TURNS = [USER, {"role": "assistant", "content": "Hallo"}, {"role": "user", "content": "And now?"}, ANSWER]
LINE = "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"


def weighted(*weights):
    return [turn if weight is None else turn | {"weight": weight} for turn, weight in zip(TURNS, weights, strict=True)]


@pytest.mark.parametrize("template", [tiny_models.SMOLLM2, tiny_models.MISTRAL, tiny_models.MARKED])
def test_an_answer_with_weight_0_carries_no_loss(template):
    formatter, tokenizer = formatter_of(template)
    every, all_spans = learnt(formatter, tokenizer, {"messages": TURNS})
    text, spans = learnt(formatter, tokenizer, {"messages": weighted(None, 0, None, 1)})
    assert text == every
    assert spans == all_spans[1:] != []


def test_an_answer_with_weight_0_is_found_behind_a_system_message_that_is_merged():
    formatter, tokenizer = formatter_of(tiny_models.GEMMA)
    _, spans = learnt(formatter, tokenizer, {"messages": [SYSTEM, *weighted(None, 0, None, None)]})
    assert len(spans) == 1
    assert spans[0].startswith("Salut")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((None, 0.5, None, None), r"weight of message 2 \(assistant\) must be 0 or 1, not 0.5"),
        ((None, "0", None, None), r"weight of message 2 \(assistant\) must be 0 or 1, not '0'"),
        ((1, None, None, None), r"weight of message 1 \(user\) must be 0 or absent"),
        ((None, 0, None, 0), "weight of every assistant message is 0"),
    ],
)
def test_other_weights_and_conversations_without_loss_are_bad_records(weights, message):
    formatter, _ = formatter_of(tiny_models.SMOLLM2)
    with pytest.raises(RecordProblem, match=message):
        formatter({"messages": weighted(*weights)}, PLACE)


@pytest.mark.parametrize(
    ("data_format", "record"),
    [
        (DataFormat.CHAT, {"messages": [USER, ANSWER]}),
        (DataFormat.INSTRUCTION, {"instruction": "Hi", "output": "Salut"}),
    ],
)
def test_a_column_system_is_the_system_message(data_format, record):
    formatter, _ = formatter_of(tiny_models.SMOLLM2, data_format)
    expected = formatter_of(tiny_models.SMOLLM2)[0]({"messages": [SYSTEM, USER, ANSWER]}, PLACE)
    found = formatter(record | {"system": SYSTEM["content"]}, PLACE)
    assert (found.text, found.spans) == (expected.text, expected.spans)
    assert formatter.remarks() == ()
    changed = formatter.with_texts(record | {"system": SYSTEM["content"]}, PLACE, str.upper)
    assert changed["system"] == SYSTEM["content"].upper()


def test_a_conversation_has_one_system_message():
    formatter, _ = formatter_of(tiny_models.SMOLLM2)
    formatter({"messages": [SYSTEM, USER, ANSWER], "system": SYSTEM["content"]}, PLACE)
    with pytest.raises(RecordProblem, match="must not both be a system message"):
        formatter({"messages": [SYSTEM, USER, ANSWER], "system": "Be brief."}, PLACE)
    with pytest.raises(RecordProblem, match="column 'system' must be text, not 7"):
        formatter({"messages": [USER, ANSWER], "system": 7}, PLACE)


def test_functions_are_tools():
    formatter, _ = formatter_of(tiny_models.QWEN3)
    function = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    record = {"messages": [USER, ANSWER]}
    expected = formatter(record | {"tools": [{"type": "function", "function": function}]}, PLACE)
    assert formatter(record | {"functions": [function]}, PLACE).text == expected.text
    with pytest.raises(RecordProblem, match="'functions' and 'tools' must not both"):
        formatter(record | {"functions": [function], "tools": [function]}, PLACE)


@pytest.mark.parametrize("history", [[["Hi", "Hallo"]], '[["Hi", "Hallo"]]'], ids=["list", "text"])
@pytest.mark.parametrize("template", [tiny_models.SMOLLM2, None], ids=["template", "none"])
def test_a_history_is_earlier_turns_without_loss(template, history):
    formatter, tokenizer = formatter_of(template, DataFormat.INSTRUCTION)
    record = {"instruction": "And now?", "output": "Salut", "system": "Answer in French.", "history": history}
    text, spans = learnt(formatter, tokenizer, record)
    places = [text.index(part) for part in ("Answer in French.", "Hi", "Hallo", "And now?", "Salut")]
    assert places == sorted(places)
    assert len(spans) == 1
    assert spans[0].startswith("Salut")


@pytest.mark.parametrize("history", [["Hi", "Hallo"], [["Hi"]], [["Hi", 7]], "Hi"])
def test_a_history_of_another_form_is_a_bad_record(history):
    formatter, _ = formatter_of(tiny_models.SMOLLM2, DataFormat.INSTRUCTION)
    with pytest.raises(RecordProblem, match=r"column 'history' must be a list of \[question, answer\]"):
        formatter({"instruction": "And now?", "output": "Salut", "history": history}, PLACE)


def test_columns_with_values_that_are_not_used_are_named():
    formatter, _ = formatter_of(tiny_models.SMOLLM2)
    for number in range(3):
        formatter({"messages": [USER, ANSWER], "img_path": "a.png", "note": "x" if number else None}, PLACE)
    (remark,) = formatter.remarks(formatter.take_counts())
    assert remark == "columns that the format Chat does not use: 'img_path' (3 records), 'note' (2 records)"
    assert formatter.take_counts() == {}


def test_contents_that_the_template_shortens_are_counted():
    formatter, _ = formatter_of(LINE.replace("m['content']", "m['content'][:9]"))
    formatter({"messages": [USER, ANSWER]}, PLACE)
    assert formatter.remarks() == ()
    formatter({"messages": [USER | {"content": "a long question"}, ANSWER]}, PLACE)
    assert formatter.remarks() == ("the chat template shortens or changes the content of 1 messages",)


def test_a_tool_call_without_its_arguments_is_a_bad_record():
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"
    record = {"messages": [USER, ASKS, RESULT, ANSWER]}
    formatter, _ = formatter_of(LINE.replace("<|im_end|>", f"{calls}<|im_end|>"))
    with pytest.raises(RecordProblem, match=r"omits the arguments of tool call 1 of message 2"):
        formatter(record, PLACE)
    with_keys = calls.replace("{{ c.function.name }}", "{{ c.function.name }} {{ c.function.arguments | tojson }}")
    formatter, _ = formatter_of(LINE.replace("<|im_end|>", f"{with_keys}<|im_end|>"))
    assert '{"a": 2}' in formatter(record, ROW).text


@pytest.mark.parametrize("words", [["a", "b"], ["<s>", "a", "b", "</s>"], ["<s>", "<s>", "a", "b"]], ids=len)
def test_words_that_are_begin_or_end_tokens_are_not_doubled(words):
    tokenizer = tiny_models.tiny_tokenizer()
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    data_format = DataFormat.TOKEN_CLASSIFICATION
    formatter = make_formatter(data_format, data_of(data_format), tokenizer, "s3://b/m")
    example = formatter({"tokens": words, "tags": [word.upper() for word in words]}, PLACE)
    assert (example.text, example.spans, example.span_labels) == ("a b", ((0, 1), (2, 3)), ("A", "B"))
    with pytest.raises(RecordProblem, match="column 'tokens' is empty"):
        formatter({"tokens": ["<s>", "</s>"], "tags": ["O", "O"]}, PLACE)


@pytest.mark.parametrize("text", ["<s><s>hi</s></s>", "<s> <s>hi</s>\n</s>\n", "hi"])
def test_a_text_with_two_begin_tokens_has_one(text):
    formatter, _ = formatter_of(None, DataFormat.TEXT, adds_bos=True)
    assert formatter({"text": text}, PLACE).text.replace(" ", "").replace("\n", "") == "<s>hi</s>"
