"""Functions of a task for lm-evaluation-harness, which `finetune lm-eval` has copied into this folder.

lm-eval moves white space at the end of a prompt to the continuation, and would count its tokens. Therefore the context
that it gets ends earlier, and the likelihood of the rest of the prompt is subtracted.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DATA_FILE = "test.jsonl"
"""One line per answer: `row` of the test split, `prompt`, `answer`, `tokens` of the answer, and `context`, the number
of characters of the prompt that lm-eval gets as context."""


def test_split(**_: Any) -> dict[str, Any]:
    """Return the documents: those of DATA_FILE, which is next to this file."""
    from datasets import Dataset

    with Path(__file__).with_name(DATA_FILE).open(encoding="utf-8") as file:
        return {"test": Dataset.from_list([json.loads(line) for line in file])}


def context(doc: dict[str, Any]) -> str:
    """Return the context of the request."""
    prompt: str = doc["prompt"]
    return prompt[: doc["context"]]


def continuations(doc: dict[str, Any]) -> list[str]:
    """Return the texts whose likelihoods are requested: up to the end of the answer, and the rest of the prompt."""
    rest = doc["prompt"][doc["context"] :]
    return [rest + doc["answer"], rest] if rest else [doc["answer"]]


def process_results(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Return the log-likelihood of the answer in nats, and the number of its tokens, for each metric."""
    likelihood = results[0][0] - sum(result[0] for result in results[1:])
    return {"loss": (likelihood, doc["tokens"]), "perplexity": (likelihood, doc["tokens"])}


def loss(items: Sequence[tuple[float, int]]) -> float:
    """Return the mean over all tokens, in nats."""
    return -math.fsum(likelihood for likelihood, _ in items) / sum(tokens for _, tokens in items)
