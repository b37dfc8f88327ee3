"""Every message of a conversation is accounted for: its text is in the tokens, with or without loss, or is rejected."""

import json

import pytest
from tokenizers.processors import TemplateProcessing

import tiny_models
from finetune_api.v1alpha1 import Data, DataFormat, TrainingSource
from finetune_trainer.data.messages import MEDIA_COLUMNS
from finetune_trainer.data.prepare import make_formatter
from finetune_trainer.data.problems import RecordProblem
from finetune_trainer.errors import ModelUnusableError
from formatted import ANSWER, ASKS, PLACE, RESULT, ROW, SYSTEM, USER, data_of, formatter_of, learnt

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
FAMILIES = {
    "SmolLM2": (tiny_models.SMOLLM2, "<|im_end|>"),
    "Llama 3": (tiny_models.LLAMA31, "<|eot_id|>"),
    "Qwen 3": (tiny_models.QWEN3, "<|im_end|>"),
    "Mistral": (tiny_models.MISTRAL, "</s>"),
    "Gemma": (tiny_models.GEMMA, "<end_of_turn>"),
}


def thought(reasoning, content):
    return {"role": "assistant", "reasoning_content": reasoning, "content": content}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("system", [False, True], ids=["", "system"])
def test_every_message_is_in_the_text_and_every_answer_carries_loss(name, system):
    template, end = FAMILIES[name]
    formatter, tokenizer = formatter_of(template)
    more = [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Encore"}]
    text, spans = learnt(formatter, tokenizer, {"messages": [*([SYSTEM] if system else []), USER, ANSWER, *more]})
    assert all(message["content"] in text for message in (USER, ANSWER, *more))
    assert ("Answer in French." in text) == system
    assert spans[0].strip() == f"Salut{end}"
    last = spans[1].removeprefix("<think>\n\n</think>\n\n") if name == "Qwen 3" else spans[1]
    assert last.strip() == f"Encore{end}"
    assert len(spans) == 2


@pytest.mark.parametrize("name", ["Llama 3", "Qwen 3"])
def test_tools_their_calls_and_results_are_in_the_text_and_the_calls_carry_loss(name):
    template, end = FAMILIES[name]
    formatter, tokenizer = formatter_of(template)
    text, spans = learnt(formatter, tokenizer, {"messages": [USER, ASKS, RESULT, ANSWER], "tools": [WEATHER]})
    assert json.dumps(WEATHER) in text
    assert len(spans) == 2
    assert '{"a": 2}' in spans[0]
    assert spans[0].endswith(end)
    assert spans[1].endswith(f"Salut{end}")


def test_a_tool_call_before_a_later_question_carries_loss_to_its_end():
    formatter, tokenizer = formatter_of(tiny_models.QWEN3)
    more = [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Encore"}]
    _, spans = learnt(formatter, tokenizer, {"messages": [USER, ASKS | {"content": "Wait."}, RESULT, ANSWER, *more]})
    assert spans == [
        'Wait.<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>',
        "Salut<|im_end|>",
        "<think>\n\n</think>\n\nEncore<|im_end|>",
    ]


def test_the_reasoning_of_every_turn_carries_loss_if_the_template_writes_it():
    formatter, tokenizer = formatter_of(tiny_models.REASONS)
    record = {"messages": [{"role": "user", "content": "2+2?"}, thought("two and two", "4"), USER, thought("hm", "5")]}
    _, spans = learnt(formatter, tokenizer, record)
    assert spans == ["<think>two and two</think>4<|im_end|>", "<think>hm</think>5<|im_end|>"]
    assert formatter.remarks() == ()


@pytest.mark.parametrize("inline", [False, True], ids=["field", "inline"])
def test_an_earlier_answer_without_its_reasoning_carries_no_loss_and_a_note_counts_it(inline):
    formatter, tokenizer = formatter_of(tiny_models.QWEN3)

    def turn(reasoning, content):
        if not inline:
            return thought(reasoning, content)
        return {"role": "assistant", "content": f"<think>\n{reasoning}\n</think>\n\n{content}"}

    text, spans = learnt(formatter, tokenizer, {"messages": [USER, turn("who?", "Me"), USER, turn("why?", "So")]})
    assert "who?" not in text
    assert spans == ["<think>\nwhy?\n</think>\n\nSo<|im_end|>"]
    (note,) = formatter.remarks()
    assert note.startswith("1 assistant turns carry no loss: the chat template omits their reasoning")


def test_a_conversation_whose_only_answer_loses_its_reasoning_is_a_bad_record():
    formatter, _ = formatter_of(tiny_models.QWEN3)
    with pytest.raises(RecordProblem, match="omits the reasoning of every answer"):
        formatter({"messages": [USER, thought("who?", "Me"), USER]}, PLACE)


def test_a_template_without_reasoning_trains_on_the_answers_and_a_note_counts_them():
    formatter, tokenizer = formatter_of(tiny_models.CHATML)
    _, spans = learnt(formatter, tokenizer, {"messages": [USER, thought("who?", "Me")]})
    assert spans == ["Me<|im_end|>"]
    (note,) = formatter.remarks()
    assert note.startswith("the chat template omits the reasoning of 1 assistant turns")


def test_reasoning_outside_of_generation_marks_is_counted_in_a_note():
    template = tiny_models.REASONS.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    formatter, tokenizer = formatter_of(template)
    _, spans = learnt(formatter, tokenizer, {"messages": [thought("who?", "Me")]})
    assert spans == ["Me<|im_end|>"]
    assert any("the reasoning of 1 assistant turns carries no loss" in note for note in formatter.remarks())


def marked(before="", content="{{ m.content }}", between="", calls="{{ CALLS }}", end="<|im_end|>"):
    """A template with marks in the parts of an assistant turn."""
    written = "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}</call>{% endfor %}"
    turn = before + content + between + calls.replace("{{ CALLS }}", written) + end
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        + turn
        + "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
        + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


BEGIN, END = "{% generation %}", "{% endgeneration %}"
CONTENT = BEGIN + "{{ m.content }}" + END
MORE = [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Encore"}]


@pytest.mark.parametrize(
    ("template", "first", "outside"),
    [
        (marked(content=CONTENT), ["Wait."], 1),
        (marked(content=CONTENT, end=BEGIN + "<|im_end|>" + END), ["Wait.", "<|im_end|>"], 1),
        (marked(content=CONTENT, end=""), ["Wait."], 1),
        (marked(before="Note: ", content=CONTENT), ["Wait."], 3),
        (marked(content=CONTENT, end="</s><|im_end|>"), ["Wait."], 3),
        (marked(before=BEGIN, end="<|im_end|>" + END), ["Wait.<call>add</call><|im_end|>"], 0),
        (marked(before=BEGIN, end=END + " \n<|im_end|>"), ["Wait.<call>add</call> \n<|im_end|>"], 0),
        (marked(before="\n", content=CONTENT, calls="", end="\n\n<|im_end|>"), None, 0),
        (marked(content=CONTENT, between="\n", calls=BEGIN + "{{ CALLS }}<|im_end|>" + END, end=""), None, 0),
    ],
    ids=["calls", "between", "no end token", "front", "end tokens", "all", "spaces", "white space", "two marks"],
)
def test_turns_with_text_outside_of_generation_marks_are_counted_in_a_note(template, first, outside):
    formatter, tokenizer = formatter_of(template)
    call = {"type": "function", "function": {"name": "add"}}
    asks = {"role": "assistant", "content": "Wait."} | ({"tool_calls": [call]} if "call.function" in template else {})
    record = {"messages": [USER, asks, USER, ANSWER, *MORE]}
    _, spans = learnt(formatter, tokenizer, record)
    assert first is None or spans[: len(first)] == first
    formatter(record, PLACE)
    notes = (
        f"{2 * outside} assistant turns have text outside of the chat template's generation marks, such as tool calls "
        "or the end token, which carries no loss; put everything that the assistant generates inside "
        "{% generation %} ... {% endgeneration %}",
    )
    assert formatter.remarks() == (notes if outside else ())


def test_reasoning_outside_of_the_marks_is_in_one_note():
    formatter, _ = formatter_of(marked(before="<think>{{ m.reasoning_content }}</think>\n", content=CONTENT))
    formatter({"messages": [USER, thought("who?", "Me")]}, PLACE)
    (note,) = formatter.remarks()
    assert note.startswith("the reasoning of 1 assistant turns carries no loss")


def test_reasoning_that_the_generation_prompt_opens_carries_loss_from_there():
    template = tiny_models.REASONS.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    formatter, tokenizer = formatter_of(template)
    _, spans = learnt(formatter, tokenizer, {"messages": [USER, thought("who?", "Me")]})
    assert spans == ["who?</think>Me<|im_end|>"]


def test_a_system_prompt_that_the_template_omits_is_merged_with_a_note():
    formatter, tokenizer = formatter_of(tiny_models.USER_AND_ASSISTANT)
    text, spans = learnt(formatter, tokenizer, {"messages": [SYSTEM, USER, ANSWER]})
    assert "<|im_start|>user\nAnswer in French.\n\nHi<|im_end|>" in text
    assert spans == ["Salut<|im_end|>"]
    assert formatter.remarks() == (
        "the chat template has no system role: 1 system messages were merged into the first user message",
    )


def test_a_developer_message_replaces_a_system_message():
    formatter, tokenizer = formatter_of(tiny_models.QWEN3)
    text, _ = learnt(formatter, tokenizer, {"messages": [SYSTEM | {"role": "developer"}, USER, ANSWER]})
    assert text.startswith("<|im_start|>system\nAnswer in French.")


@pytest.mark.parametrize(
    ("messages", "lost"),
    [
        ([USER, ANSWER, RESULT, ANSWER], "message 3 (tool)"),
        ([USER, SYSTEM, ANSWER], "message 2 (system)"),
        ([USER, ASKS | {"content": "Wait."}, USER, ANSWER], "tool call 1 of message 2 (assistant)"),
    ],
)
def test_a_message_that_the_template_omits_is_a_bad_record(messages, lost):
    formatter, _ = formatter_of(tiny_models.USER_AND_ASSISTANT)
    with pytest.raises(RecordProblem, match="chat template omits") as caught:
        formatter({"messages": messages}, PLACE)
    assert lost in caught.value.what


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([WEATHER], PLACE),
        (json.dumps([WEATHER]), PLACE),
        ([json.dumps(WEATHER)], PLACE),
        ([WEATHER | {"strict": None}], ROW),
    ],
    ids=["list", "JSON text", "list of JSON text", "Parquet"],
)
def test_the_tools_of_a_record_reach_the_template(value, place):
    template = "{% if tools %}TOOLS {{ tools | tojson }}{% endif %}" + tiny_models.CHATML
    formatter, tokenizer = formatter_of(template)
    text, spans = learnt(formatter, tokenizer, {"messages": [USER, ANSWER], "tools": value}, place)
    assert text.startswith(f"TOOLS {json.dumps([WEATHER])}")
    assert spans == ["Salut<|im_end|>"]
    assert formatter.remarks() == ()


def test_documents_and_template_arguments_reach_the_template():
    template = "{% if documents %}{{ documents[0].text }}|{% endif %}{{ mood or '' }}" + tiny_models.CHATML
    formatter, tokenizer = formatter_of(template)
    record = {"messages": [USER, ANSWER], "documents": [{"text": "facts"}], "chat_template_kwargs": '{"mood": "calm"}'}
    assert learnt(formatter, tokenizer, record)[0].startswith("facts|calm<|im_start|>")


def test_unused_template_variables_are_counted_in_a_note():
    formatter, _ = formatter_of(tiny_models.CHATML)
    record = {"messages": [USER, ANSWER], "tools": [WEATHER], "chat_template_kwargs": {"enable_thnking": False}}
    formatter(record, PLACE)
    formatter(record, PLACE)
    assert formatter.remarks() == ("the chat template does not use: tools (2 records), enable_thnking (2 records)",)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"tools": "[oops"}, "column 'tools' must be JSON"),
        ({"tools": {"name": "weather"}}, "column 'tools' must be a list of objects"),
        ({"tools": ["weather"]}, "column 'tools' must be a list of objects"),
        ({"documents": [1]}, "column 'documents' must be a list of objects"),
        ({"chat_template_kwargs": [1]}, "column 'chat_template_kwargs' must be an object"),
        ({"chat_template_kwargs": {"messages": []}}, "'messages' cannot be set in column 'chat_template_kwargs'"),
        ({"images": ["a.png"]}, "column 'images'"),
        ({"image": "a.png"}, "column 'image'"),
        ({"image_url": "a.png"}, "column 'image_url'"),
    ],
)
def test_unusable_columns_are_bad_records(more, expected):
    formatter, _ = formatter_of(tiny_models.CHATML)
    with pytest.raises(RecordProblem) as caught:
        formatter({"messages": [USER, ANSWER]} | more, PLACE)
    assert expected in caught.value.what


@pytest.mark.parametrize("column", MEDIA_COLUMNS)
@pytest.mark.parametrize("template", [None, tiny_models.CHATML], ids=["plain", "template"])
def test_an_instruction_about_an_image_is_a_bad_record(template, column):
    formatter, _ = formatter_of(template, DataFormat.INSTRUCTION)
    record = {"prompt": "What is in the picture?", "completion": "A cat"}
    with pytest.raises(RecordProblem, match=f"column '{column}' must be empty: only text can be trained on") as caught:
        formatter(record | {column: ["a.png"]}, PLACE)
    assert caught.value.rule == "not text"
    assert "A cat" in formatter(record | {column: [], "id": 7}, PLACE).text


def test_a_prompt_may_be_in_a_column_with_the_name_of_an_image_column():
    data = Data(train=(TrainingSource(uri="s3://bucket/a.jsonl"),), columns={"prompt": "image", "completion": "output"})
    formatter = make_formatter(DataFormat.INSTRUCTION, data, tiny_models.tiny_tokenizer(), "s3://bucket/model")
    assert formatter({"image": "A cat on a mat", "output": "cat"}, PLACE).text == "A cat on a mat\n\ncat</s>"


@pytest.mark.parametrize("key", MEDIA_COLUMNS)
def test_a_message_with_an_image_next_to_its_content_is_a_bad_record(key):
    formatter, _ = formatter_of(tiny_models.CHATML)
    with pytest.raises(RecordProblem, match=f"message 1 has '{key}'") as caught:
        formatter({"messages": [USER | {key: {"url": "a.png"}}, ANSWER]}, PLACE)
    assert caught.value.rule == "not text"
    assert "Hi" in formatter({"messages": [USER | {key: None}, ANSWER]}, PLACE).text


@pytest.mark.parametrize("name", ["tojson", "text"])
@pytest.mark.parametrize("arguments", [{"a": 2}, '{"a": 2}'], ids=["object", "JSON text"])
def test_the_arguments_of_a_call_are_not_quoted_twice(name, arguments):
    template = tiny_models.CALLS_TOOLS
    if name == "text":
        template = template.replace("(call.function.arguments | tojson)", "call.function.arguments")
    formatter, tokenizer = formatter_of(template)
    asks = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": arguments}}]}
    assert learnt(formatter, tokenizer, {"messages": [USER, asks]})[1] == [
        '<tool_call>add {"a": 2}</tool_call><|im_end|>'
    ]


def test_arguments_that_are_not_json_are_a_bad_record():
    formatter, _ = formatter_of(tiny_models.CALLS_TOOLS)
    asks = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": '}}]}
    with pytest.raises(RecordProblem, match="arguments of tool call 1 of message 2"):
        formatter({"messages": [USER, asks]}, PLACE)


@pytest.mark.parametrize("arguments", ["null", " null ", "", " ", None, "{}", {}])
def test_a_call_without_arguments_has_an_empty_object(arguments):
    formatter, tokenizer = formatter_of(tiny_models.CALLS_TOOLS)
    asks = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": arguments}}]}
    assert learnt(formatter, tokenizer, {"messages": [USER, asks]})[1] == ["<tool_call>add {}</tool_call><|im_end|>"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [("[1, 2]", "[1, 2]"), ('"{}"', "'{}'"), ('""', "''"), ("7", "7"), ("true", "True"), ([1, 2], "[1, 2]"), (7, "7")],
)
def test_arguments_that_are_not_an_object_are_a_bad_record(arguments, named):
    formatter, _ = formatter_of(tiny_models.CALLS_TOOLS)
    asks = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": arguments}}]}
    with pytest.raises(RecordProblem) as caught:
        formatter({"messages": [USER, asks]}, PLACE)
    assert caught.value.what == f"arguments of tool call 1 of message 2 must be an object, not {named}"
    assert "an object" in caught.value.remedy


def test_the_plain_text_input_of_a_tool_is_not_json():
    formatter, tokenizer = formatter_of(tiny_models.CALLS_TOOLS)
    asks = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "run", "arguments": "[ -f a ]"}}]}
    assert '<tool_call>run "[ -f a ]"</tool_call>' in learnt(formatter, tokenizer, {"messages": [USER, asks]})[0]


def test_a_parquet_row_has_no_nulls_of_other_rows_in_its_calls():
    formatter, tokenizer = formatter_of(tiny_models.CALLS_TOOLS)
    asks = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1, "b": None}}}],
    }
    assert '{"a": 1}' in learnt(formatter, tokenizer, {"messages": [USER, asks]}, ROW)[0]
    assert '{"a": 1, "b": null}' in learnt(formatter, tokenizer, {"messages": [USER, asks]}, PLACE)[0]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image"},
        {"type": "input_audio", "input_audio": {}},
        {"image": "a.png"},
        {"type": "thinking", "thinking": "who?"},
        7,
    ],
)
def test_parts_that_are_not_text_are_a_bad_record(part):
    formatter, _ = formatter_of(tiny_models.CHATML)
    user = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}
    with pytest.raises(RecordProblem, match="message 1 has a part") as caught:
        formatter({"messages": [user, ANSWER]}, PLACE)
    assert caught.value.rule == "not text"


def test_text_parts_are_joined():
    formatter, tokenizer = formatter_of(tiny_models.CHATML)
    parts = [{"type": "text", "text": "One, ", "image": None}, {"type": "input_text", "text": "two"}, "."]
    assert (
        "user\nOne, two.<|im_end|>"
        in learnt(formatter, tokenizer, {"messages": [USER | {"content": parts}, ANSWER]})[0]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<s>[INST]Hi[/INST]Salut</s>", "<s>[INST]Hi[/INST]Salut</s>"),
        ("<s>[INST]Hi[/INST]Salut</s>\n", "<s>[INST]Hi[/INST]Salut</s>"),
        ("Hi", "<s>Hi</s>"),
        ("<s>Hi", "<s>Hi</s>"),
    ],
)
def test_a_text_has_begin_and_end_token_once(text, expected):
    formatter, tokenizer = formatter_of(None, DataFormat.TEXT, adds_bos=True)
    example = formatter({"text": text}, PLACE)
    assert example.text == expected
    assert tokenizer.convert_tokens_to_ids("<s>") in tokenizer(example.text, add_special_tokens=False).input_ids


def test_a_text_rendered_by_a_chat_template_ends_with_one_end_token():
    formatter, _ = formatter_of(tiny_models.SMOLLM2, DataFormat.TEXT, eos="<|im_end|>")
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nSalut<|im_end|>"
    assert formatter({"text": text + "\n"}, PLACE).text == text


def test_a_template_for_tools_renders_the_records_with_tools():
    with_tools = "{{ tools | tojson }}" + tiny_models.CHATML
    formatter, tokenizer = formatter_of({"default": tiny_models.CHATML, "tool_use": with_tools})
    assert learnt(formatter, tokenizer, {"messages": [USER, ANSWER], "tools": [WEATHER]})[0].startswith('[{"type"')
    assert learnt(formatter, tokenizer, {"messages": [USER, ANSWER]})[0].startswith("<|im_start|>user")
    assert formatter.remarks() == ()


@pytest.mark.parametrize("prompt", ["Hi", "<s>Hi"])
@pytest.mark.parametrize("completion", ["Salut", "Salut</s>", "<s>Salut</s>", " <s>Salut</s></s>\n"])
def test_an_instruction_without_a_template_has_its_special_tokens_once(prompt, completion):
    formatter, tokenizer = formatter_of(None, DataFormat.INSTRUCTION, adds_bos=True)
    text, spans = learnt(formatter, tokenizer, {"prompt": prompt, "completion": completion})
    assert text == "<s>Hi\n\nSalut</s>"
    assert spans == ["Salut</s>"]


def test_the_input_of_an_instruction_has_no_begin_token():
    formatter, _ = formatter_of(None, DataFormat.INSTRUCTION, adds_bos=True)
    record = {"prompt": "<s>Translate", "input": "<s>Hi", "completion": "Salut"}
    assert formatter(record, PLACE).text == "<s>Translate\n\nHi\n\nSalut</s>"


@pytest.mark.parametrize("completion", ["<s>", "</s>", " <s> </s>\n"])
def test_a_completion_of_only_begin_and_end_tokens_is_empty(completion):
    formatter, _ = formatter_of(None, DataFormat.INSTRUCTION, adds_bos=True)
    with pytest.raises(RecordProblem, match="column 'completion' is empty"):
        formatter({"prompt": "Hi", "completion": completion}, PLACE)


@pytest.mark.parametrize("text", ["so", "<s>so", "so</s>", "<s>so</s>\n"])
def test_a_classified_text_has_the_special_tokens_of_the_tokenizer_once(text):
    tokenizer = tiny_models.tiny_tokenizer()
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    formatter = make_formatter(DataFormat.CLASSIFICATION, data_of(DataFormat.CLASSIFICATION), tokenizer, "s3://b/m")
    example = formatter({"text": text, "label": "a"}, PLACE)
    assert tokenizer(example.text).input_ids == tokenizer("so").input_ids
    with pytest.raises(RecordProblem, match="column 'text' is empty"):
        formatter({"text": "<s></s>", "label": "a"}, PLACE)


def test_a_classified_text_keeps_special_tokens_that_the_tokenizer_does_not_add():
    formatter, _ = formatter_of(None, DataFormat.CLASSIFICATION, adds_bos=True)
    assert formatter({"text": "<s> so</s>", "label": "a"}, PLACE).text == " so</s>"
    formatter, _ = formatter_of(None, DataFormat.CLASSIFICATION)
    assert formatter({"text": "<s>so</s>", "label": "a"}, PLACE).text == "<s>so</s>"


@pytest.mark.parametrize("data_format", [DataFormat.CHAT, DataFormat.INSTRUCTION])
def test_an_answer_that_ends_with_the_end_token_has_it_once(data_format):
    formatter, tokenizer = formatter_of(tiny_models.LLAMA31, data_format)
    user, answer = "<s>Hi<|eot_id|>", "Salut<|eot_id|>\n"
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    record = {"messages": messages} if data_format is DataFormat.CHAT else {"prompt": user, "completion": answer}
    text, spans = learnt(formatter, tokenizer, record)
    assert text.count("<s>") == 1
    assert text.count("<|eot_id|>") == 3
    assert spans == ["Salut<|eot_id|>"]


@pytest.mark.parametrize(
    ("template", "data_format", "prompt", "expected"),
    [
        (None, DataFormat.TEXT, "<s>Hi", "<s>Hi"),
        (None, DataFormat.TEXT, "Hi", "<s>Hi"),
        (None, DataFormat.INSTRUCTION, "<s>Hi", "<s>Hi\n\n"),
        (tiny_models.CHATML, DataFormat.TEXT, "Hi", "<s>Hi"),
        (tiny_models.LLAMA3, DataFormat.CHAT, "<s>Hi", "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"),
    ],
)
def test_a_prompt_has_the_format_and_tokens_of_the_training_data(template, data_format, prompt, expected):
    formatter, _ = formatter_of(template, data_format, adds_bos=True)
    assert formatter.prompt(prompt).removesuffix("<|start_header_id|>assistant<|end_header_id|>\n\n") == expected


def test_the_date_in_a_template_is_always_the_same():
    formatter, tokenizer = formatter_of(tiny_models.LLAMA31)
    text, _ = learnt(formatter, tokenizer, {"messages": [USER, ANSWER]})
    assert "Today Date: 01 Jan 2025\n" in text
    assert "Today Date: 01 Jan 2025\n" in formatter.prompt("Hi")
    assert any("01 Jan 2025" in note for note in formatter.remarks())
    record = {"messages": [USER, ANSWER], "chat_template_kwargs": {"date_string": "31 Dec 2030"}}
    assert "Today Date: 31 Dec 2030\n" in learnt(formatter, tokenizer, record)[0]


@pytest.mark.parametrize("chance", ["{{ [1, 2] | random }}", "{{ lipsum() }}"])
def test_a_template_with_random_values_is_rejected(chance):
    with pytest.raises(ModelUnusableError, match="random"):
        formatter_of(chance + tiny_models.CHATML)


def test_a_template_that_is_not_jinja_is_rejected():
    with pytest.raises(ModelUnusableError, match="chat template"):
        formatter_of("{% for m in %}")
