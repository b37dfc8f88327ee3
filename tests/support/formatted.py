"""Formats conversations, and shows which parts of the text carry loss."""

import tiny_models
from finetune_api.v1alpha1 import Data, DataFormat, Task, TrainingSource
from finetune_trainer.data.prepare import make_formatter
from finetune_trainer.data.problems import Place
from tokenized import tokenized

PLACE, ROW = Place("s3://b/a.jsonl", 3), Place("s3://b/a.parquet", 3, "row")
SYSTEM = {"role": "system", "content": "Answer in French."}
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Salut"}
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
ASKS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "add", "content": 'It is "4".\nSure.'}


def data_of(data_format):
    return Data(train=(TrainingSource(uri="s3://bucket/a.jsonl"),), format=data_format)


def formatter_of(template, data_format=DataFormat.CHAT, **tokenizer):
    tokens = tiny_models.tiny_tokenizer(template, **tokenizer)
    return make_formatter(data_format, data_of(data_format), tokens, "s3://bucket/model"), tokens


def learnt(formatter, tokenizer, record, place=PLACE):
    """The complete text, and the parts of it that carry loss."""
    rows, _ = tokenized([formatter(record, place)], tokenizer, Task.CAUSAL_LM, max_length=512)
    ((tokens, loss),) = rows
    stretches: list[list[int]] = []
    for index, token in enumerate(tokens.tolist()):
        if loss[index]:
            if not index or not loss[index - 1]:
                stretches.append([])
            stretches[-1].append(token)
    return tokenizer.decode(tokens), [tokenizer.decode(stretch) for stretch in stretches]
