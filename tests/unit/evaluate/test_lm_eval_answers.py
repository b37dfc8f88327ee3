"""The rows of a test split as texts for lm-evaluation-harness, which must have the tokens of the rows."""

from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from finetune_api.v1alpha1 import Dtype, Task
from finetune_trainer.data.formats import Example
from finetune_trainer.data.problems import Place
from finetune_trainer.evaluate import lm_eval_utils
from finetune_trainer.evaluate.lm_eval import Answer, RowNotWritableError, Texts, answers_of, model_dtype
from finetune_trainer.tasks import IGNORED
from lm_eval_reader import encoded_pair
from tiny_models import tiny_tokenizer
from tokenized import tokenized

PLACE = Place("s3://b/x.jsonl", 1, "line")
TURN = "<|im_start|>user\nis the fox good?<|im_end|>\n<|im_start|>assistant\n"


def merging_tokenizer() -> Any:
    """As those of Llama 3 and Qwen: a question mark and the line breaks after it are one token."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("?\n\n", normalized=False)])
    return tokenizer


def gpt2_tokenizer() -> Any:
    """Two line breaks at the end of a text are one token, and two tokens before a word."""
    return tiny_tokenizer().train_new_from_iterator(["a good one?\n\n"] * 9, vocab_size=400)


def sentencepiece_tokenizer() -> Any:
    """As that of Llama 2: decoding drops the space before the first word."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(["the fox is good", "is the fox good? yes no \n"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def rows_of(text: str, spans: list[str], tokenizer: Any, *, max_length: int = 64) -> list[dict[str, Any]]:
    """The rows of a text in which these parts carry loss. Without any, the text is divided and all of it does."""
    ranges: tuple[tuple[int, int], ...] = ((-1, len(text)),)
    if spans:
        starts = [text.index(span) for span in spans]
        ranges = tuple((start, start + len(span)) for start, span in zip(starts, spans, strict=True))
    example = Example(text, PLACE, spans=ranges, divisible=not spans)
    rows, _ = tokenized([example], tokenizer, Task.CAUSAL_LM, max_length=max_length)
    return [{"input_ids": ids.astype(np.int64), "labels": np.where(flags, ids, IGNORED)} for ids, flags in rows]


def check(row: dict[str, Any], answers: list[Answer], texts: Texts) -> None:
    """lm-eval scores exactly the tokens that carry loss, with all tokens before them as context."""
    ids, scored = row["input_ids"].tolist(), []
    for answer in answers:
        doc = vars(answer)
        pairs = [
            encoded_pair(lm_eval_utils.context(doc), text, texts.encode) for text in lm_eval_utils.continuations(doc)
        ]
        ends = [len(before) + len(after) for before, after in pairs]
        assert [before + after for before, after in pairs] == [ids[:end] for end in ends]
        begin = ends[1] if len(ends) == 2 else len(pairs[0][0])
        assert len({len(before) for before, _ in pairs}) == 1
        assert ends[0] - begin == answer.tokens
        scored += range(begin, ends[0])
    labels = row["labels"]
    assert scored == [position for position in range(1, len(ids)) if labels[position] != IGNORED]


@pytest.mark.parametrize(
    ("make", "text", "spans", "expected"),
    [
        (tiny_tokenizer, "<s>is it good?\n\nyes</s>", ["yes</s>"], [("<s>is it good?\n\n", "yes</s>")]),
        (merging_tokenizer, "<s>is it good?\n\nyes</s>", ["yes</s>"], [("<s>is it good?\n\n", "yes</s>")]),
        (tiny_tokenizer, "is it? good", ["good"], [("is it?", " good")]),  # the space is in the answer's token
        (tiny_tokenizer, f"{TURN}yes<|im_end|>\n", ["yes<|im_end|>"], [(TURN, "yes<|im_end|>")]),
        (
            tiny_tokenizer,
            f"{TURN}yes<|im_end|>\n{TURN}no<|im_end|>\n",
            ["yes<|im_end|>", "no<|im_end|>"],
            [(TURN, "yes<|im_end|>"), (f"{TURN}yes<|im_end|>\n{TURN}", "no<|im_end|>")],
        ),
        (tiny_tokenizer, "<s>the fox\n\n is  good 狐 </s>", [], [("<s>", "the fox\n\n is  good 狐 </s>")]),
        (tiny_tokenizer, "the fox", [], [("the", " fox")]),
        (sentencepiece_tokenizer, "the fox is good", [], [("the", " fox is good")]),
        (sentencepiece_tokenizer, "is the fox good? yes", ["yes"], [("is the fox good?", " yes")]),
    ],
    ids=["instruction", "merged", "space", "chat", "turns", "text", "no begin token", "sentencepiece", "spaces"],
)
def test_the_texts_have_the_tokens_of_the_row(
    make: Any, text: str, spans: list[str], expected: list[tuple[str, str]]
) -> None:
    texts = Texts(tokenizer := make())
    (row,) = rows_of(text, spans, tokenizer)
    answers = list(answers_of(row, texts))
    assert [(answer.prompt, answer.answer) for answer in answers] == expected
    check(row, answers, texts)


def test_the_rows_of_a_divided_text_are_written_or_refused() -> None:
    texts = Texts(tokenizer := tiny_tokenizer())
    rows = rows_of("<s>" + "the fox is good, " * 8 + "狐" * 9 + "\n\n the fox</s>", [], tokenizer, max_length=7)
    written, refused = 0, []
    for row in rows:
        try:
            answers = list(answers_of(row, texts))
        except RowNotWritableError as error:
            refused.append(str(error))
            continue
        check(row, answers, texts)
        written += 1
    assert written > 3
    assert written + len(refused) == len(rows)
    assert "re-encoding the text gives different tokens" in refused  # it begins or ends within a character


@pytest.mark.parametrize(("text", "spans"), [("\n fox", []), ("  \nyes", ["yes"])])
def test_a_prompt_of_white_space_is_refused(text: str, spans: list[str]) -> None:
    texts = Texts(tokenizer := tiny_tokenizer())
    (row,) = rows_of(text, spans, tokenizer)
    with pytest.raises(RowNotWritableError, match="only white space precedes the answer"):
        list(answers_of(row, texts))


def test_a_prompt_that_has_other_tokens_without_its_answer_is_refused() -> None:
    texts = Texts(tokenizer := gpt2_tokenizer())
    (row,) = rows_of("<s>is it good?\n\nyes</s>", ["yes</s>"], tokenizer)
    assert texts.encode(texts.decode(row["input_ids"].tolist())) == row["input_ids"].tolist()
    with pytest.raises(RowNotWritableError, match="re-encoding the prompt without the answer gives different tokens"):
        list(answers_of(row, texts))


def test_tokens_that_no_text_gives_are_refused() -> None:
    texts = Texts(tiny_tokenizer())
    letters = [texts.encode(letter)[0] for letter in " fox"]
    assert texts.encode(" fox") != letters
    row = {"input_ids": np.array([1, *letters]), "labels": np.array([1, *letters])}
    with pytest.raises(RowNotWritableError, match="re-encoding the text gives different tokens"):
        list(answers_of(row, texts))


def test_loss_and_perplexity_are_those_of_all_tokens() -> None:
    docs = [{"tokens": 3}, {"tokens": 1}]
    results = [[(-8.0, False), (-2.0, True)], [(-4.0, False)]]
    items = [lm_eval_utils.process_results(doc, each)["loss"] for doc, each in zip(docs, results, strict=True)]
    assert items == [(-6.0, 3), (-4.0, 1)]
    assert lm_eval_utils.loss(items) == 2.5


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": "float32"}, "float32"),
        ({}, "bfloat16"),
        ({"dtype": "float32,trust_remote_code=True"}, "bfloat16"),
    ],
)
def test_the_type_is_that_of_the_exported_model(config: dict[str, str], expected: str) -> None:
    """A GPU without BFloat16 has trained it in Float16."""
    assert model_dtype(config, Dtype.BFLOAT16) == expected
