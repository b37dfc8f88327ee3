"""Which tokens carry loss: labels are decoded and compared with what the assistant wrote."""

import pytest
from tokenizers.pre_tokenizers import PreTokenizer

import tiny_models
from finetune_api.v1alpha1 import Columns, Data, DataFormat, Task, TrainingSource
from finetune_trainer.data.chat import renderer_of
from finetune_trainer.data.formats import Formatter
from finetune_trainer.data.prepare import make_formatter
from finetune_trainer.data.problems import Place, RecordProblem
from finetune_trainer.data.tokenize import FastTokenizer, loss_flags
from finetune_trainer.errors import ModelUnusableError
from tokenized import Tokenized, tokenized

PLACE = Place("s3://b/a.jsonl", 3)
USER, SYSTEM = {"role": "user", "content": "What is 2+2?"}, {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "It is 4."}
MORE = [{"role": "user", "content": "It is 4. Sure?\n"}, {"role": "assistant", "content": "Yes, it is 4. Ünï → ok"}]
TEMPLATES = {
    "chatml": (tiny_models.CHATML, "<|im_end|>", ""),
    "llama3": (tiny_models.LLAMA3, "<|eot_id|>", ""),
    "mistral": (tiny_models.MISTRAL, "</s>", " "),
    "gemma": (tiny_models.GEMMA, "<end_of_turn>", ""),
    "marked": (tiny_models.MARKED, "<|im_end|>", ""),
    "drops-reasoning": (tiny_models.DROPS_REASONING, "<|im_end|>", ""),
}
"""Template, the token that ends a turn, and the text between the prompt and the answer."""


def data(data_format: DataFormat) -> Data:
    return Data(train=(TrainingSource(uri="s3://bucket/a.jsonl"),), format=data_format)


def chat_formatter(template: str) -> tuple[Formatter, object]:
    tokenizer = tiny_models.tiny_tokenizer(template)
    return make_formatter(DataFormat.CHAT, data(DataFormat.CHAT), tokenizer, "s3://bucket/model"), tokenizer


def learnt(formatter: Formatter, tokenizer, record: dict, max_length: int = 512) -> list[str]:
    """The runs of tokens that carry loss, decoded."""
    example = formatter(record, PLACE)
    rows, _ = tokenized([example], tokenizer, Task.CAUSAL_LM, max_length=max_length)
    ((tokens, loss),) = rows
    stretches: list[list[int]] = []
    for index, token in enumerate(tokens.tolist()):
        if loss[index]:
            if not index or not loss[index - 1]:
                stretches.append([])
            stretches[-1].append(token)
    return [tokenizer.decode(stretch, clean_up_tokenization_spaces=False) for stretch in stretches]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [False, True], ids=["", "system"])
def test_only_answers_and_their_end_tokens_carry_loss(name, system):
    template, end, gap = TEMPLATES[name]
    formatter, tokenizer = chat_formatter(template)
    messages = [*([SYSTEM] if system else []), USER, ANSWER, *MORE]
    last = "<think>\n\n</think>\n\n" if name == "drops-reasoning" else gap
    assert learnt(formatter, tokenizer, {"messages": messages}) == [
        f"{gap}{ANSWER['content']}{end}",
        f"{last}{MORE[1]['content']}{end}",
    ]


def test_a_tool_call_carries_loss_but_the_tools_result_does_not():
    formatter, tokenizer = chat_formatter(tiny_models.CALLS_TOOLS)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    asks = {"role": "assistant", "content": None, "tool_calls": [call]}
    answers = {"role": "tool", "name": "add", "content": "It is 4."}
    assert learnt(formatter, tokenizer, {"messages": [USER, asks, answers, ANSWER]}) == [
        '<tool_call>add {"a": 2}</tool_call><|im_end|>',
        f"{ANSWER['content']}<|im_end|>",
    ]


def test_an_instruction_is_rendered_with_the_chat_template_if_there_is_one():
    tokenizer = tiny_models.tiny_tokenizer(tiny_models.CHATML)
    formatter = make_formatter(DataFormat.INSTRUCTION, data(DataFormat.INSTRUCTION), tokenizer, "s3://bucket/model")
    record = {"instruction": "Add", "input": "2 2", "output": "4"}
    assert "<|im_start|>user\nAdd\n\n2 2<|im_end|>" in formatter(record, PLACE).text
    assert learnt(formatter, tokenizer, record) == ["4<|im_end|>"]


@pytest.mark.parametrize("adds_bos", [False, True])
def test_an_instruction_without_a_template_ends_with_the_end_token(adds_bos):
    tokenizer = tiny_models.tiny_tokenizer(adds_bos=adds_bos)
    formatter = make_formatter(DataFormat.INSTRUCTION, data(DataFormat.INSTRUCTION), tokenizer, "s3://bucket/model")
    record = {"prompt": "Say it", "completion": "so be it"}
    assert formatter(record, PLACE).text == ("<s>" if adds_bos else "") + "Say it\n\nso be it</s>"
    assert learnt(formatter, tokenizer, record) == ["so be it</s>"]


def test_a_text_is_tokenized_as_by_the_tokenizer_itself():
    tokenizer = tiny_models.tiny_tokenizer(adds_bos=True)
    formatter = make_formatter(DataFormat.TEXT, data(DataFormat.TEXT), tokenizer, "s3://bucket/model")
    example = formatter({"text": "the quick fox"}, PLACE)
    ((tokens, loss),), _ = tokenized([example], tokenizer, Task.CAUSAL_LM, max_length=99)
    assert tokens.tolist() == [*tokenizer("the quick fox").input_ids, tokenizer.eos_token_id]
    assert loss.all()


def test_a_chat_is_rejected_for_a_model_without_a_template():
    with pytest.raises(ModelUnusableError, match="hf://x/y has no chat template"):
        make_formatter(DataFormat.CHAT, data(DataFormat.CHAT), tiny_models.tiny_tokenizer(), "hf://x/y")


def test_a_template_that_hides_the_answer_is_rejected_with_the_fix():
    formatter, _ = chat_formatter(tiny_models.SHOUTS)
    with pytest.raises(RecordProblem, match="cannot be located in the output") as caught:
        formatter({"messages": [USER, ANSWER, *MORE]}, PLACE)
    assert "{% generation %}" in caught.value.remedy


def test_a_record_that_a_template_rejects_is_a_bad_record():
    formatter, _ = chat_formatter("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RecordProblem, match="roles must alternate"):
        formatter({"messages": [USER, ANSWER]}, PLACE)


def test_a_system_message_is_merged_if_the_template_has_no_such_role():
    renderer = renderer_of(tiny_models.tiny_tokenizer(tiny_models.GEMMA))
    assert renderer is not None
    text, _ = renderer([SYSTEM, USER, ANSWER])
    assert "<start_of_turn>user\nBe brief.\n\nWhat is 2+2?<end_of_turn>" in text
    assert (renderer.folds_system, renderer.folded) == (True, 1)


def test_rows_whose_answer_is_beyond_the_maximum_length_are_dropped_and_counted():
    formatter, tokenizer = chat_formatter(tiny_models.CHATML)
    long = {"messages": [USER | {"content": "why? " * 50}, ANSWER]}
    short = {"messages": [USER, ANSWER]}
    examples = [formatter(long, PLACE), formatter(short, PLACE)]
    rows, counts = tokenized(examples, tokenizer, Task.CAUSAL_LM, max_length=60)
    assert len(rows) == 1
    assert (counts.truncated, counts.without_loss) == (1, 1)
    assert counts.tokens == counts.dropped_tokens + len(rows[0][0])


def on_inputs(data_format: DataFormat, template: str | None, **options) -> tuple[Formatter, object]:
    tokenizer = tiny_models.tiny_tokenizer(template, **options)
    wanted = data(data_format).model_copy(update={"train_on_inputs": True})
    return make_formatter(data_format, wanted, tokenizer, "s3://bucket/model"), tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_whole_conversation_carries_loss_when_trained_on_inputs(name):
    template = TEMPLATES[name][0]
    formatter, tokenizer = on_inputs(DataFormat.CHAT, template)
    system = [] if name == "mistral" else [SYSTEM]
    record = {"messages": [*system, USER, ANSWER, *MORE]}
    example = formatter(record, PLACE)
    assert example.text == chat_formatter(template)[0](record, PLACE).text
    assert learnt(formatter, tokenizer, record) == [example.text]


@pytest.mark.parametrize(
    ("template", "options", "text"),
    [
        (tiny_models.CHATML, {}, "<|im_start|>user\nAdd<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"),
        (None, {"adds_bos": True}, "<s>Add\n\n4</s>"),
    ],
)
def test_prompt_and_completion_carry_loss_when_trained_on_inputs(template, options, text):
    formatter, tokenizer = on_inputs(DataFormat.INSTRUCTION, template, **options)
    assert learnt(formatter, tokenizer, {"prompt": "Add", "completion": "4"}) == [text]


def test_a_prompt_that_fills_a_row_is_learned_when_trained_on_inputs():
    formatter, tokenizer = on_inputs(DataFormat.CHAT, tiny_models.CHATML)
    record = {"messages": [USER | {"content": "why? " * 50}, ANSWER]}
    rows, counts = tokenized([formatter(record, PLACE)], tokenizer, Task.CAUSAL_LM, max_length=60)
    ((tokens, loss),) = rows
    assert (len(tokens), loss.all()) == (60, True)
    assert (counts.truncated, counts.without_loss) == (1, 0)


def test_a_template_that_hides_the_answer_can_be_trained_on_inputs():
    formatter, tokenizer = on_inputs(DataFormat.CHAT, tiny_models.SHOUTS)
    assert learnt(formatter, tokenizer, {"messages": [USER, ANSWER]}) == ["2WHAT IS 2+2?\n2IT IS 4.\n"]


def test_omitted_reasoning_is_reported_when_trained_on_inputs():
    formatter, _ = on_inputs(DataFormat.CHAT, tiny_models.QWEN3)
    thought = ANSWER | {"content": "<think>\nadd both\n</think>\n\nIt is 4."}
    formatter({"messages": [USER, thought, *MORE]}, PLACE)
    assert formatter.remarks() == (
        "the chat template omits the reasoning of 1 assistant turns; their answers carry loss",
    )


def test_a_classified_text_is_truncated_to_the_maximum_length_with_its_special_tokens():
    tokenizer = tiny_models.tiny_tokenizer(adds_bos=True)
    formatter = Formatter(DataFormat.CLASSIFICATION, Columns())
    examples = [formatter({"text": "very " * 30, "label": "b"}, PLACE), formatter({"text": "so", "label": "a"}, PLACE)]
    rows, counts = tokenized(examples, tokenizer, Task.SEQUENCE_CLASSIFICATION, max_length=9)
    assert [len(tokens) for tokens, _ in rows] == [9, len(tokenizer("so").input_ids)]
    assert [label for _, label in rows] == ["b", "a"]
    assert rows[0][0][0] == tokenizer.bos_token_id
    assert counts.truncated == 1
    whole = [len(tokenizer(text).input_ids) for text in ("very " * 30, "so")]
    assert (counts.tokens, counts.dropped_tokens) == (sum(whole), whole[0] - 9)


def text_rows(texts: list[str], max_length: int) -> tuple[list[tuple], Tokenized, object]:
    tokenizer = tiny_models.tiny_tokenizer(adds_bos=True)
    formatter = make_formatter(DataFormat.TEXT, data(DataFormat.TEXT), tokenizer, "s3://bucket/model")
    examples = [formatter({"text": text}, PLACE) for text in texts]
    rows, counts = tokenized(examples, tokenizer, Task.CAUSAL_LM, max_length=max_length)
    return rows, counts, tokenizer


@pytest.mark.parametrize("words", [1, 6, 7, 8, 13, 14, 15, 16, 60])
def test_a_long_text_is_split_into_rows_with_all_of_its_tokens(words):
    text = "very " * words
    rows, counts, tokenizer = text_rows([text], 8)
    tokens = [token for row, _ in rows for token in row.tolist()]
    assert tokens == [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    assert len(rows) == -(-len(tokens) // 8)
    assert all(2 <= len(row) <= 8 and len(row) == len(loss) and loss.all() for row, loss in rows)
    assert (counts.tokens, counts.dropped_tokens, counts.truncated) == (len(tokens), 0, 0)
    assert (counts.documents, counts.divided) == (1, int(len(rows) > 1))


def test_the_rows_of_split_texts_are_in_the_order_of_the_texts(monkeypatch):
    monkeypatch.setattr("finetune_trainer.data.tokenize.BATCH_CHARACTERS", 50)
    rows, counts, tokenizer = text_rows(["the quick " * 9, "so", "a good film " * 7], 16)
    starts = [index for index, (row, _) in enumerate(rows) if row[0] == tokenizer.bos_token_id]
    ends = [index for index, (row, _) in enumerate(rows) if row[-1] == tokenizer.eos_token_id]
    assert ends == [starts[1] - 1, starts[2] - 1, len(rows) - 1]
    assert (counts.documents, counts.divided) == (3, 2)


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([(0, 4), (4, 9), (9, 12)], [0, 1, 0]),
        ([(0, 4), (3, 6), (6, 9)], [0, 1, 1]),
        ([(0, 4), (4, 8), (8, 10)], [0, 1, 0]),
        ([(4, 4), (9, 9), (10, 10)], [0, 1, 0]),
    ],
    ids=["on the edges", "reaching in", "reaching out", "of no width"],
)
def test_a_token_carries_loss_when_it_ends_within_a_span(offsets, expected):
    assert loss_flags(offsets, [(4, 9)]).astype(int).tolist() == expected


def test_a_tokenizer_with_parts_written_in_python_is_not_picklable():
    class Spaces:
        def pre_tokenize(self, text):
            text.split(" ", "removed")

    tokenizer = tiny_models.tiny_tokenizer()
    assert FastTokenizer.of(tokenizer).is_picklable()
    tokenizer.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(Spaces())
    assert not FastTokenizer.of(tokenizer).is_picklable()
