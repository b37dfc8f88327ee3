"""`spec.method.promptTuning`."""

from .prompt_learning import PromptLearning


class PromptTuning(PromptLearning):
    """Learned embeddings before every text (Lester et al. 2021, arXiv 2104.08691), through PEFT; the base model stays
    frozen. They are no part of the model's weights, so there is no merged model: `output.formats` must be [Adapter]."""
