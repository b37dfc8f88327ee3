"""Benchmark gradient checkpointing of every n-th layer: memory and CPU time of a step, each in a process of its own.

The model has the architecture of Llama with twelve small layers and random weights, rows of 512 tokens, and one thread.
Memory is the peak of the process above that before the first step.

    python benchmarks/gradient_checkpointing.py [--rounds 3]
"""

import argparse
import json
import multiprocessing as mp
import resource
import statistics
import time

import torch
from new_process import in_new_process
from transformers import AutoModelForCausalLM, LlamaConfig

from finetune_api.v1alpha1 import Task
from finetune_trainer.model.checkpointed_layers import checkpoint_layers
from finetune_trainer.tasks import TASKS

SHAPE = LlamaConfig(
    vocab_size=2_048,
    hidden_size=256,
    intermediate_size=1_024,
    num_hidden_layers=12,
    num_attention_heads=4,
    use_cache=False,
)
ROWS, TOKENS, STEPS = 4, 512, 3
EVERY = (0, 6, 4, 3, 2, 1)
"""Values of gradientCheckpointingEveryNLayers. 0: gradientCheckpointing is false."""


def measure(every: int, results: "mp.SimpleQueue") -> None:  # type: ignore[type-arg]
    """Put the bytes that the steps need, the median CPU seconds of a step, and the last loss into the queue."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPE).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if every:
        checkpoint_layers(model, every=every)
    task = TASKS[Task.CAUSAL_LM]
    ids = torch.randint(0, SHAPE.vocab_size, (ROWS, TOKENS))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds, found = [], 0.0
    for _ in range(STEPS):
        started = time.process_time()
        loss = task.loss(model(**task.inputs(batch)).logits, batch) / task.targets(batch)
        loss.backward()
        seconds.append(time.process_time() - started)
        found = float(loss.detach())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.put((peak - before, statistics.median(seconds), found))


def main() -> None:
    """Print a table and, as the last line, a JSON object with the same figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="processes per value; the medians are printed")
    options = parser.parse_args()
    rows = []
    print(f"{'every':>6} {'MiB':>6} {'CPU s':>7} {'speed':>6}")
    for every in EVERY:
        found = [in_new_process(measure, every) for _ in range(options.rounds)]
        memory, seconds, loss = (statistics.median(column) for column in zip(*found, strict=True))
        rows.append({"everyNLayers": every, "MiB": round(memory / 2**20), "cpuSeconds": seconds, "loss": loss})
        speed = rows[0]["cpuSeconds"] / seconds
        print(f"{every or 'off':>6} {memory / 2**20:>6,.0f} {seconds:>7.3f} {speed:>6.2f}", flush=True)
    print(json.dumps({"benchmark": "gradientCheckpointing", "rounds": options.rounds, "settings": rows}))


if __name__ == "__main__":
    main()
