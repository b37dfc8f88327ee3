"""Formats and tokenizes the prompts of `spec.evaluation` like the training data.

The prepare stage checks them and the evaluate stage generates from them, both with this code.
"""

from collections.abc import Sequence
from typing import Any

from ..errors import ModelUnusableError
from ..model.tokenizer import embedding_too_small
from .formats import Formatter
from .problems import RecordProblem, shown

_FIELD = "spec.evaluation.prompts"


def format_prompts(prompts: Sequence[str], formatter: Formatter, uri: str) -> list[str]:
    """The prompts as the model at `uri` gets them. Raises ModelUnusableError if its chat template rejects one."""
    formatted = []
    for index, prompt in enumerate(prompts):
        try:
            formatted.append(formatter.prompt(prompt))
        except RecordProblem as problem:
            raise ModelUnusableError(
                f"{uri}: {_FIELD}[{index}] cannot be used: {problem.what}", advice=f"remove {_FIELD}[{index}]"
            ) from problem
    return formatted


def prompt_tokens(tokenizer: Any, formatted: str) -> list[int]:
    """Token ids of a formatted prompt, which already has its begin token."""
    return list(tokenizer(formatted, add_special_tokens=False, verbose=False).input_ids)


def check_prompts(formatted: Sequence[str], tokenizer: Any, rows: int | None, uri: str) -> None:
    """Raise ModelUnusableError for a prompt without tokens, which no model answers, and for one with a token id that is
    not in an embedding of `rows` rows. `rows` None: it is unknown."""
    for index, prompt in enumerate(formatted):
        tokens = prompt_tokens(tokenizer, prompt)
        if not tokens:
            raise ModelUnusableError(
                f"{_FIELD}[{index}] must have a token, but the tokenizer of {uri} keeps nothing of it: {shown(prompt)}",
                advice=f"change or remove {_FIELD}[{index}]",
            )
        if rows is not None and max(tokens) >= rows:
            raise embedding_too_small(tokenizer, max(tokens), rows, uri, f"{_FIELD}[{index}]: its token")
