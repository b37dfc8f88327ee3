"""Answers to the user's prompts, before and after. Needs torch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, set_seed

from finetune_api.v1alpha1 import DataFormat


@torch.inference_mode()
def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    data_format: DataFormat,
    max_new_tokens: int,
    seed: int,
    report: Callable[[int], None],
) -> list[str]:
    """Greedy continuations of at most `max_new_tokens` tokens, one for each prompt.

    A prompt gets the form that the training data had: the user's turn in the tokenizer's chat template where it has
    one; without, Instruction's blank line behind it; plain Text is continued as it is. A prompt that leaves no room in
    the model's context keeps its end.
    """
    model.eval()
    set_seed(seed)  # greedy search draws nothing; a model with randomness of its own would
    greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_end_tokens(model, tokenizer),
    )
    found = []
    for number, prompt in enumerate(prompts, start=1):
        ids = _encoded(tokenizer, prompt, data_format)[:, -_room(model, max_new_tokens) :].to(model.device)
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        found.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip())
        report(number)
    return found


def _encoded(tokenizer: Any, prompt: str, data_format: DataFormat) -> torch.Tensor:
    """Token ids of shape (1, length)."""
    if tokenizer.chat_template and data_format is not DataFormat.TEXT:
        turn = [{"role": "user", "content": prompt}]
        encoded = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    else:
        # As the prepare stage writes it: the begin token in the text where the tokenizer would put it, no end token.
        begin = tokenizer.bos_token or ""
        if begin and tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]:
            begin = ""
        text = begin + prompt + ("" if data_format is DataFormat.TEXT else "\n\n")
        encoded = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    return torch.as_tensor(encoded["input_ids"])


def _room(model: Any, max_new_tokens: int) -> int:
    """Tokens that a prompt may have."""
    context = getattr(model.config, "max_position_embeddings", None) or 1_000_000
    return max(1, int(context) - max_new_tokens)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """What ends an answer: the model's own list (chat models often end a turn otherwise) and the tokenizer's token."""
    own = model.generation_config.eos_token_id
    listed = [] if own is None else [own] if isinstance(own, int) else list(own)
    return sorted({token for token in (*listed, tokenizer.eos_token_id) if token is not None})
