"""LoRA on SmolLM2-135M with each `init`: loss after some steps, and the time of the initial weights, on the CPU.

Run: python benchmarks/lora_init.py MODEL_FOLDER [STEPS]
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from quantization import batches, held_out, loss_of

from finetune_api.v1alpha1 import Dtype, Lora, Task
from finetune_api.v1alpha1.methods.lora import LoraInit
from finetune_trainer.methods import METHODS
from finetune_trainer.model.initial_weights import begin_with
from finetune_trainer.model.load import load_model
from finetune_trainer.tasks import TASKS

RANK, RATES = 8, (5e-4,)


def measured(folder: Path, init: LoraInit, rate: float, steps: int) -> dict[str, Any]:
    """Train from the base model, and return the losses on held-out rows."""
    *train, first, second = batches(folder)
    block, method = Lora(rank=RANK, init=init), METHODS["lora"]
    base: Any = load_model(folder, task=Task.CAUSAL_LM, labels=(), dtype=Dtype.FLOAT32, seed=1)
    model: Any = method.apply(base, block, TASKS[Task.CAUSAL_LM], seed=1)
    started = time.perf_counter()
    if method.has_initial_weights(block):
        begin_with(model, method, block, method.initial_weights(model, block, seed=1))
    seconds = time.perf_counter() - started
    before = held_out(model, [first, second])
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=rate)
    model.train()
    for step in range(steps):
        loss_of(model, train[step % len(train)]).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = held_out(model, [first, second])
    return {"init": str(init), "rate": rate, "initSeconds": seconds, "lossBefore": before, "lossAfter": after}


def main(folder: Path, steps: int) -> None:
    rows = [measured(folder, init, rate, steps) for rate in RATES for init in (LoraInit.KAIMING, LoraInit.PISSA)]
    print(f"{'init':10}{'rate':>9}{'init s':>8}{'before':>9}{'after':>9}")
    for row in rows:
        print(
            f"{row['init']:10}{row['rate']:9g}{row['initSeconds']:8.1f}{row['lossBefore']:9.4f}{row['lossAfter']:9.4f}"
        )
    print(json.dumps({"loraInit": rows}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 15)
