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
    """Greedy continuations of at most `max_new_tokens` tokens, one for each prompt.

    The prompts are tokenised as they are: `Formatter.prompt` gives them the form of the training data, with the begin
    token. A prompt that leaves no room in the model's context keeps its end. `virtual_tokens` are the positions that
    the model puts before every prompt.
    """
    model.eval()
    set_seed(seed)  # greedy search is deterministic, but a model may draw random numbers
    greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_end_tokens(model, tokenizer),
    )
    found = []
    for number, prompt in enumerate(prompts, start=1):
        tokens = prompt_tokens(tokenizer, prompt)[-_room(model, max_new_tokens + virtual_tokens) :]
        ids = torch.tensor([tokens], dtype=torch.long, device=model.device)
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        found.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip())
        report(number)
    return found


def _room(model: Any, reserved: int) -> int:
    """Tokens that a prompt may have, where `reserved` positions are for others."""
    context = getattr(model.config, "max_position_embeddings", None) or 1_000_000
    return max(1, int(context) - reserved)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer: those of the model (chat models have several) and of the tokenizer."""
    own = model.generation_config.eos_token_id
    listed = [] if own is None else [own] if isinstance(own, int) else list(own)
    return sorted({token for token in (*listed, tokenizer.eos_token_id) if token is not None})
