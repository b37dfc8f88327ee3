"""LoRA on SmolLM2-135M with and without quantization: loss, bytes of the base model, and time of a step on the CPU.

    python benchmarks/quantization.py --model FOLDER [--steps 30]

`FOLDER` has SmolLM2-135M-Instruct in Hugging Face layout. Prints a table and, as the last line, a JSON object.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from transformers import AutoTokenizer

from finetune_api.v1alpha1 import Dtype, Lora, Quantization, Task
from finetune_cli.local import demo_assets
from finetune_trainer.methods import METHODS
from finetune_trainer.model.load import load_model
from finetune_trainer.model.quantize import BaseQuantization
from finetune_trainer.tasks import TASKS

ROWS, TOKENS, RATE = 8, 48, 5e-4


def texts() -> list[str]:
    found = []
    for path in sorted(demo_assets.corpus_folder().glob("*.yml")):
        turns = YAML(typ="safe", pure=True).load(path)["conversations"]
        found += [f"Q: {turn[0]} A: {turn[1]}" for turn in turns if len(turn) > 1]
    random.Random(1).shuffle(found)
    return found


def batches(folder: Path) -> list[torch.Tensor]:
    """Rows of TOKENS tokens, shape (ROWS, TOKENS) each."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [number for text in texts() for number in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    count = len(ids) // (ROWS * TOKENS)
    return list(torch.tensor(ids[: count * ROWS * TOKENS]).view(count, ROWS, TOKENS))


def loss_of(model: Any, batch: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=batch, labels=batch).loss
    return loss


def held_out(model: Any, rows: list[torch.Tensor]) -> float:
    model.eval()
    with torch.no_grad():
        return sum(loss_of(model, batch).item() for batch in rows) / len(rows)


def measured(folder: Path, kind: Quantization | None, steps: int) -> dict[str, Any]:
    *train, first, second, third, fourth = batches(folder)
    test = [first, second, third, fourth]
    started = time.perf_counter()
    how = kind and BaseQuantization(kind)
    model: Any = load_model(folder, task=Task.CAUSAL_LM, labels=(), dtype=Dtype.FLOAT32, seed=1, quantization=how)
    loading = time.perf_counter() - started
    size = sum(value.nbytes for value in model.state_dict(keep_vars=True).values()) - model.lm_head.weight.nbytes
    adapted: Any = METHODS["lora"].apply(model, Lora(rank=8), TASKS[Task.CAUSAL_LM], seed=1)
    before = held_out(adapted, test)
    adapted.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    trained = [value for value in adapted.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    adapted.train()
    times = []
    for step in range(steps):
        started = time.perf_counter()
        loss_of(adapted, train[step % len(train)]).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return {
        "quantization": str(kind or "absent"),
        "baseMib": size / 2**20,
        "loadSeconds": loading,
        "stepSeconds": sorted(times)[len(times) // 2],
        "lossBefore": before,
        "lossAfter": held_out(adapted, test),
    }


def main(folder: Path, steps: int) -> None:
    rows = [measured(folder, kind, steps) for kind in (None, *Quantization)]
    print(f"{'quantization':14}{'base MiB':>10}{'load s':>8}{'step s':>8}{'before':>9}{'after':>9}")
    for row in rows:
        print(
            f"{row['quantization']:14}{row['baseMib']:10.1f}{row['loadSeconds']:8.1f}{row['stepSeconds']:8.2f}"
            f"{row['lossBefore']:9.4f}{row['lossAfter']:9.4f}"
        )
    print(json.dumps({"quantization": rows}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    main(options.model, options.steps)
