"""Benchmark `spec.method.full.pruning`: accuracy before pruning, after it and after healing, size, and speed.

all-MiniLM-L6-v2 is fine-tuned on the questions of `make demo`. Every side prunes this classifier, and trains it again
for a few epochs ("healing") with the same rows in the same order; `none` is trained again without pruning. Each seed
draws another split. Uses the trainer's algorithms and masks, with AdamW in one process. The speed is the median over
repeated passes over the held-out questions, in which the sides take turns.

    python benchmarks/pruning.py [--seeds 3] [--epochs 6] [--healing 2]

Prints a table, means over the seeds, and as the last line a JSON object.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from finetune_api.v1alpha1 import Dtype, FullFineTune, Pruning, PruningAlgorithm, Task
from finetune_cli.local import demo_assets
from finetune_trainer.evaluate.pruned import stored_size
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.pruning import PRUNERS
from finetune_trainer.model.load import load_model
from finetune_trainer.model.pruning import check_zeros, keep_zeros, set_zeros
from finetune_trainer.tasks import TASKS
from finetune_trainer.train.pruning import CALIBRATION_ROWS

TASK = Task.SEQUENCE_CLASSIFICATION
SIDES: dict[str, Pruning | None] = {
    "none": None,
    **{
        f"{algorithm} {sparsity:g}": Pruning(algorithm=algorithm, sparsity=sparsity)
        for algorithm in (PruningAlgorithm.MAGNITUDE, PruningAlgorithm.WANDA)
        for sparsity in (0.3, 0.5, 0.7)
    },
    **{f"DropLayers {count}": Pruning(algorithm=PruningAlgorithm.DROP_LAYERS, layers=count) for count in (1, 2, 3)},
}
BATCH, LEARNING_RATE, MAX_LENGTH = 16, 2e-4, 32
TIMED_PASSES = 5


@dataclass(frozen=True)
class Questions:
    """Tokenized questions with the numbers of their topics."""

    texts: list[list[int]]
    topics: list[int]

    def batch(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Return inputs (rows, width) and labels (rows,)."""
        width = max(len(self.texts[row]) for row in rows)
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            text = torch.tensor(self.texts[row])
            ids[place, : len(text)], mask[place, : len(text)] = text, 1
        labels = torch.tensor([self.topics[row] for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def train(model: Any, questions: Questions, *, epochs: int, seed: int) -> None:
    """Train with a linear schedule, without weight decay."""
    torch.manual_seed(seed)
    steps = epochs * -(-len(questions.texts) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(questions.texts)).split(BATCH):
            model(**questions.batch(rows.tolist())).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


@torch.inference_mode()
def accuracy(model: Any, questions: Questions) -> float:
    """Return the share of right answers."""
    model.eval()
    right = 0
    for start in range(0, len(questions.texts), 64):
        batch = questions.batch(list(range(start, min(start + 64, len(questions.texts)))))
        right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return right / len(questions.texts)


def split(seed: int, folder: Path) -> tuple[Questions, Questions, tuple[str, ...]]:
    """Return training and held-out questions, and the topics."""
    found = demo_assets.frequent(demo_assets.read_questions(demo_assets.corpus_folder()))
    random.Random(seed).shuffle(found)
    topics = tuple(sorted({topic for _, topic in found}))
    tokens = AutoTokenizer.from_pretrained(folder)([text for text, _ in found], truncation=True, max_length=MAX_LENGTH)
    numbers = [topics.index(topic) for _, topic in found]
    cut = len(found) // 4
    ids: list[list[int]] = tokens["input_ids"]
    return Questions(ids[cut:], numbers[cut:]), Questions(ids[:cut], numbers[:cut]), topics


def pruned(
    load: Callable[[], Any], pruning: Pruning | None, questions: Questions, seed: int
) -> tuple[Any, dict[str, Any]]:
    """Return the pruned classifier, whose zeros stay, and its masks."""
    model = load().eval()
    if pruning is None:
        return model, {}

    def run_rows() -> None:
        for row in random.Random(seed).sample(range(len(questions.texts)), CALIBRATION_ROWS):
            batch = questions.batch([row])
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    with torch.no_grad():
        masks = PRUNERS[pruning.algorithm].masks(model, pruning, run_rows)
    METHODS["full"].apply(model, FullFineTune(pruning=pruning), TASKS[TASK], seed=seed)
    set_zeros(model, masks)
    keep_zeros(model, masks)
    return model, masks


def measure(seed: int, folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the figures of every side."""
    base = demo_assets.model_folder()
    questions, held_out, topics = split(seed, base)
    dense = load_model(base, task=TASK, labels=topics, dtype=Dtype.FLOAT32, seed=seed)
    train(dense, questions, epochs=options.epochs, seed=seed)
    dense.save_pretrained(folder / "dense")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "dense")
    before, found, models = accuracy(dense, held_out), {}, {}
    for side, pruning in SIDES.items():
        model, masks = pruned(
            lambda: load_model(folder / "dense", task=TASK, labels=topics, dtype=Dtype.FLOAT32, seed=seed),
            pruning,
            questions,
            seed,
        )
        figures = {"before": before, "pruned": accuracy(model, held_out)}
        train(model, questions, epochs=options.healing, seed=seed + 1)
        check_zeros(model, masks)
        model.save_pretrained(folder / side)
        size = stored_size(folder / side)
        figures |= {"healed": accuracy(model, held_out), "bytes": size.bytes, "gzip": size.compressed}
        found[side] = figures | {"nonzero": size.nonzero}
        models[side] = model
        print(f"  seed {seed}, {side}: {figures['pruned']:.1%}, healed {figures['healed']:.1%}", flush=True)
    for side, seconds in timed(models, held_out).items():
        found[side]["seconds"] = seconds
    return found


def timed(models: dict[str, Any], held_out: Questions) -> dict[str, float]:
    """Return the median time of a pass of each model; the models take turns."""
    seconds: dict[str, list[float]] = {side: [] for side in models}
    for _ in range(TIMED_PASSES + 1):
        for side, model in models.items():
            started = time.perf_counter()
            accuracy(model, held_out)
            seconds[side].append(time.perf_counter() - started)
    return {side: statistics.median(values[1:]) for side, values in seconds.items()}


def main() -> None:
    """Print the table and the JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--healing", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for seed in range(1, options.seeds + 1):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(seed, Path(folder), options))
    mean = {
        side: {name: statistics.fmean(each[side][name] for each in found) for name in found[0][side]} for side in SIDES
    }
    titles = ("before", "pruned", "healed", "not zero", "MB", "gzip MB", "speed")
    widths = (7, 7, 7, 11, 6, 8, 6)
    print(f"\n{'side':<14} {' '.join(f'{title:>{width}}' for title, width in zip(titles, widths, strict=True))}")
    for side, figures in mean.items():
        figures["speed"] = mean["none"]["seconds"] / figures["seconds"]
        print(
            f"{side:<14} {figures['before']:>7.1%} {figures['pruned']:>7.1%} {figures['healed']:>7.1%} "
            f"{figures['nonzero']:>11,.0f} {figures['bytes'] / 1e6:>6.1f} {figures['gzip'] / 1e6:>8.1f} "
            f"{figures['speed']:>6.2f}"
        )
    rounded = {side: {name: round(value, 4) for name, value in figures.items()} for side, figures in mean.items()}
    print(json.dumps({"benchmark": "pruning", "seeds": options.seeds, "healing": options.healing, **rounded}))


if __name__ == "__main__":
    main()
