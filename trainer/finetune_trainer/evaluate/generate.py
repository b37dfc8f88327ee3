"""Generates answers to the user's prompts. Imports torch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, set_seed

from ..data.prompts import prompt_tokens


@torch.inference_mode()
def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    seed: int,
    report: Callable[[int], None],
    virtual_tokens: int = 0,
) -> list[str]:
    """Greedy completions of at most `max_new_tokens` tokens, one per prompt.

    The prompts are tokenized unchanged: `Formatter.prompt` has already formatted them like the training data, with the
    begin token. A prompt that does not fit into the model's context is truncated at its start. `virtual_tokens` is the
    number of positions that the model uses before every prompt.
    """
    model.eval()
    set_seed(seed)  # greedy search is deterministic, but a model may use random numbers
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_end_tokens(model, tokenizer),
    )
    found = []
    for number, prompt in enumerate(prompts, start=1):
        tokens = prompt_tokens(tokenizer, prompt)[-_max_prompt_length(model, max_new_tokens + virtual_tokens) :]
        ids = torch.tensor([tokens], dtype=torch.long, device=model.device)
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        found.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip())
        report(number)
    return found


def _max_prompt_length(model: Any, reserved: int) -> int:
    """Maximum tokens of a prompt if `reserved` positions are used otherwise."""
    context = getattr(model.config, "max_position_embeddings", None) or 1_000_000
    return max(1, int(context) - reserved)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Token ids that end an answer: the model's (chat models have several) and the tokenizer's."""
    own = model.generation_config.eos_token_id
    listed = [] if own is None else [own] if isinstance(own, int) else list(own)
    return sorted({token for token in (*listed, tokenizer.eos_token_id) if token is not None})
