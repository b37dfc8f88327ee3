"""`spec.method.promptTuning`."""

from typing import Annotated

from pydantic import Field

from .prompt_learning import PromptLearning


class PromptTuning(PromptLearning):
    """Learned embeddings before every text (Lester et al. 2021, arXiv 2104.08691), through PEFT; the base model stays
    frozen. They are no part of the model's weights, so there is no merged model: `output.formats` must be [Adapter]."""

    initial_text: Annotated[str, Field(min_length=1, max_length=8192)] | None = None
    """Text whose tokens the embeddings start from, such as the instruction of the task, repeated if it has fewer than
    `virtualTokens`; it must not have more. Absent: tokens of the vocabulary that are drawn with `training.seed`."""
