"""Records with two answers become two rendered conversations with the same prompt, or a bad record with its reason."""

from typing import Any

import pytest

import tiny_models
from finetune_api.v1alpha1 import Columns, DataFormat, Task
from finetune_trainer.data.formats import Example, detect_format
from finetune_trainer.data.problems import Place, RecordProblem
from finetune_trainer.data.tokenize import FastTokenizer, encode_pairs
from formatted import formatter_of

PLACE, ROW = Place("s3://b/a.jsonl", 3), Place("s3://b/a.parquet", 3, "row")
QUESTION, MORE = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Again?"}
GOOD, BAD = {"role": "assistant", "content": "Salut"}, {"role": "assistant", "content": "No"}
FORMATTER, TOKENIZER = formatter_of(tiny_models.CHATML, DataFormat.PREFERENCE)


def learned(example: Example) -> list[str]:
    return [example.text[start:end] for start, end in example.spans]


def rendered(*messages: dict[str, str]) -> str:
    return "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in messages)


@pytest.mark.parametrize("place", [PLACE, ROW])
@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "Hi", "chosen": "Salut", "rejected": "No"}, (QUESTION,)),
        ({"instruction": "Hi", "chosen": "Salut", "rejected": "No"}, (QUESTION,)),
        ({"chosen": "Hi Salut", "rejected": "Hi No"}, (QUESTION,)),
        ({"prompt": None, "chosen": "Hi Salut", "rejected": "Hi No"}, (QUESTION,)),
        ({"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD]}, (QUESTION,)),
        ({"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]}, (QUESTION,)),
        ({"prompt": [QUESTION], "chosen": "Salut", "rejected": "No"}, (QUESTION,)),
        ({"chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]}, (QUESTION,)),
        ({"prompt": "Hi", "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]}, (QUESTION,)),
        (
            {"chosen": [QUESTION, BAD, MORE, GOOD], "rejected": [QUESTION, BAD, MORE, BAD]},
            (QUESTION, BAD, MORE),
        ),
        (
            {"system": "Be brief.", "prompt": "Hi", "chosen": "Salut", "rejected": "No"},
            ({"role": "system", "content": "Be brief."}, QUESTION),
        ),
    ],
)
def test_only_the_answers_after_the_common_prompt_carry_loss(
    record: dict[str, Any], prompt: tuple[dict[str, str], ...], place: Place
) -> None:
    example = FORMATTER(record, place)
    assert example.rejected is not None
    assert (example.text, example.rejected.text) == (rendered(*prompt, GOOD), rendered(*prompt, BAD))
    assert [learned(each) for each in (example, example.rejected)] == [["Salut<|im_end|>"], ["No<|im_end|>"]]


@pytest.mark.parametrize(
    ("record", "rule", "reason"),
    [
        ({"prompt": "Hi", "chosen": "No", "rejected": "No"}, "equal answers", "have the same answer"),
        ({"chosen": [QUESTION, BAD], "rejected": [QUESTION, BAD]}, "equal answers", "have the same answer"),
        ({"prompt": "Hi", "chosen": " ", "rejected": "No"}, "empty text", "'chosen' is empty"),
        ({"prompt": "Hi", "chosen": "No"}, "missing column", "no column 'rejected'"),
        ({"prompt": [QUESTION], "chosen": [GOOD], "rejected": []}, "no assistant message", "no assistant message"),
        ({"prompt": [QUESTION, GOOD, MORE], "chosen": [GOOD], "rejected": []}, "no assistant message", "'rejected'"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no prompt", "no common beginning"),
        ({"chosen": "Salut", "rejected": "No"}, "no prompt", "no common beginning"),
        ({"prompt": [], "chosen": "Salut", "rejected": "No"}, "no prompt", "no prompt"),
        ({"chosen": "Hi you ", "rejected": "Hi you  "}, "empty text", "beginning of the other"),
        ({"prompt": "Ho", "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]}, "two prompts", "not the prompt"),
        ({"prompt": "Hi", "chosen": "Salut", "rejected": [BAD]}, "wrong type", "'rejected' must be text"),
        ({"prompt": "Hi", "chosen": "Salut", "rejected": "No", "image": "x"}, "not text", "'image' must be empty"),
    ],
)
def test_an_unusable_pair_is_a_bad_record_with_a_reason(record: dict[str, Any], rule: str, reason: str) -> None:
    with pytest.raises(RecordProblem, match=reason) as caught:
        FORMATTER(record, PLACE)
    assert caught.value.rule == rule
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("task", "expected"),
    [(None, DataFormat.PREFERENCE), (Task.PREFERENCE, DataFormat.PREFERENCE), (Task.CAUSAL_LM, DataFormat.CHAT)],
)
def test_pairs_with_messages_are_preferences_unless_the_task_says_otherwise(
    task: Task | None, expected: DataFormat
) -> None:
    columns = ("prompt", "chosen", "rejected", "messages")
    assert detect_format(columns, Columns(), task, "s3://b/a.jsonl") is expected


def test_each_answer_is_truncated_and_a_pair_without_an_answer_is_left_out() -> None:
    records = [
        {"prompt": "Hi", "chosen": "Salut", "rejected": "No"},
        {"prompt": "Hi", "chosen": "Salut " * 200, "rejected": "No"},
        {"prompt": "Hi " * 200, "chosen": "Salut", "rejected": "No"},
    ]
    examples, tokenizer = [FORMATTER(record, PLACE) for record in records], FastTokenizer.of(TOKENIZER)
    whole, limit = encode_pairs(examples, tokenizer, 10_000), 60
    cut = encode_pairs(examples, tokenizer, limit)
    assert cut.first_lengths is not None
    assert cut.rows.tolist() == [1, 1, 0]
    assert cut.truncated.tolist() == [False, True, True]
    assert cut.first_lengths.tolist() == [cut.row_lengths[0] - (cut.row_lengths[1] - limit), limit]
    assert (cut.row_lengths.sum() + cut.dropped.sum()) == whole.row_lengths.sum()
    assert cut.loss is not None
    first, second = np_split(cut.tokens, cut.loss, int(cut.row_lengths[0]), int(cut.first_lengths[0]))
    assert [TOKENIZER.decode(part) for part in (first, second)] == ["Salut<|im_end|>", "No<|im_end|>"]


def np_split(tokens: Any, loss: Any, length: int, first: int) -> tuple[Any, Any]:
    """The tokens that carry loss, of both texts of the first row."""
    return tokens[:first][loss[:first]], tokens[first:length][loss[first:length]]


def test_cleaning_changes_the_texts_of_prompt_and_answers() -> None:
    record = {"prompt": [QUESTION], "chosen": [GOOD], "rejected": "No"}
    changed = FORMATTER.with_texts(record, PLACE, str.upper)
    assert [changed["prompt"][0]["content"], changed["chosen"][0]["content"], changed["rejected"]] == [
        "HI",
        "SALUT",
        "NO",
    ]
