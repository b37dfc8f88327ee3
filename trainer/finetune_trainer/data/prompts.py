"""The prompts of `spec.evaluation` in the form and the tokens of the training data.

The prepare stage checks them and the evaluate stage asks them; both by this code, so that what passes can be asked.
"""

from collections.abc import Sequence
from typing import Any

from ..errors import ModelUnusableError
from ..model.tokenizer import embedding_too_small
from .formats import Formatter
from .problems import RecordProblem

_FIELD = "spec.evaluation.prompts"


def formed_prompts(prompts: Sequence[str], formatter: Formatter, uri: str) -> list[str]:
    """The prompts as the model at `uri` is asked. Raises ModelUnusableError where its chat template refuses one."""
    formed = []
    for index, prompt in enumerate(prompts):
        try:
            formed.append(formatter.prompt(prompt))
        except RecordProblem as problem:
            raise ModelUnusableError(
                f"{uri}: {_FIELD}[{index}] cannot be asked: {problem.what}", advice=f"remove {_FIELD}[{index}]"
            ) from problem
    return formed


def prompt_tokens(tokenizer: Any, formed: str) -> list[int]:
    """Token ids of a formed prompt, which has its begin token already."""
    return list(tokenizer(formed, add_special_tokens=False, verbose=False).input_ids)


def check_prompts(formed: Sequence[str], tokenizer: Any, rows: int, uri: str) -> None:
    """Raise ModelUnusableError for a prompt with a token that has no row in an embedding of `rows` rows."""
    for index, prompt in enumerate(formed):
        largest = max(prompt_tokens(tokenizer, prompt), default=0)
        if largest >= rows:
            raise embedding_too_small(tokenizer, largest, rows, uri, f"{_FIELD}[{index}]: its token")
