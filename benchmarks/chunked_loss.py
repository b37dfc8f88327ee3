"""Benchmark the chunked loss: memory and time of a step with and without it, each in a process of its own.

The model has the shape of SmolLM2-135M (vocabulary 49,152) with random weights, and rows of 2,048 tokens. All
parameters are trained, or LoRA adapters of rank 16.
"""

import argparse
import json
import multiprocessing as mp
import os
import resource
import time

from new_process import in_new_process

from finetune_trainer.bitsandbytes_import import disable_bitsandbytes

disable_bitsandbytes()  # as in a rank

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: E402

from finetune_api.v1alpha1 import Task  # noqa: E402
from finetune_trainer.allocator import return_freed_memory  # noqa: E402
from finetune_trainer.tasks import TASKS  # noqa: E402
from finetune_trainer.tasks.chunked_loss import defer_logits  # noqa: E402

SHAPE = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
TOKENS = 2_048


def measure(
    method: str,
    is_chunked: bool,
    share: float,
    steps: int,
    results: "mp.SimpleQueue",  # type: ignore[type-arg]
) -> None:
    """Put peak resident bytes, median CPU seconds of a step, and the loss into the queue."""
    return_freed_memory(os.environ)  # as in a rank
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPE)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if method == "lora":
        model.enable_input_require_grads()
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    task = TASKS[Task.CAUSAL_LM]
    if is_chunked:
        defer_logits(model)
    ids = torch.randint(0, SHAPE.vocab_size, (1, TOKENS))
    labels = ids.clone()
    labels[:, int(share * TOKENS) :] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    seconds, found = [], 0.0
    for _ in range(steps):
        model.zero_grad()
        started = time.process_time()
        loss = task.loss(model(**task.inputs(batch)).logits, batch) / task.targets(batch)
        loss.backward()
        seconds.append(time.process_time() - started)
        found = float(loss.detach())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.put((peak, sorted(seconds)[len(seconds) // 2], found))


def main() -> None:
    """Print a table and a JSON object with the ratios chunked / plain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.25], help="of the tokens that carry loss")
    parser.add_argument("--steps", type=int, default=3, help="of each process")
    arguments = parser.parse_args()
    names = ("method", "targets", "plain MiB", "chunked", "ratio", "CPU s", "chunked", "loss")
    print(" ".join(f"{name:>9}" for name in names))
    rows = []
    for method in arguments.methods:
        for share in arguments.shares:
            plain, chunked = (in_new_process(measure, method, each, share, arguments.steps) for each in (False, True))
            difference = abs(chunked[2] - plain[2]) / plain[2]
            rows.append(
                {
                    "method": method,
                    "targetShare": share,
                    "chunkedLossMemoryRatio": chunked[0] / plain[0],
                    "chunkedLossTimeRatio": chunked[1] / plain[1],
                    "lossDifference": difference,
                }
            )
            print(
                f"{method:>9} {share:>9.0%} {plain[0] / 2**20:>9,.0f} {chunked[0] / 2**20:>9,.0f} "
                f"{chunked[0] / plain[0]:>9.2f} {plain[1]:>9.2f} {chunked[1]:>9.2f} {difference:>9.1e}"
            )
    print(json.dumps({"chunkedLoss": rows}))


if __name__ == "__main__":
    main()
