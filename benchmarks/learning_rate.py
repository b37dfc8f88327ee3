"""Benchmark the learning rate that a range test chooses, compared with a grid of six rates.

The quickstart's training without `spec.training.learningRate`, and with each rate of the grid: all-MiniLM-L6-v2 on the
questions of `make demo`, 470 for training and 265 held out, with another split for each seed, and a global batch of 16.
All sides use our train stage on one worker and differ only in the learning rate. With `--method lora`, the grid is ten
times as high.

    python benchmarks/learning_rate.py [--method full|lora] [--seeds 3] [--epochs 5] [--parallel 2]

Prints a table and, as the last line, a JSON object: `accuracyGap` is the mean held-out accuracy of the best rate of the
grid minus that of the chosen rate, in points; `testSeconds` is the duration of the test and `trainSeconds` that of the
steps of the training.
"""

import argparse
import json
import random
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_trainings import NEVER, bench_storage, minilm, prepared, training_config
from training_speed import timed

from finetune_api.trainer_config import StorageSettings, TrainerConfig
from finetune_cli.local import demo_assets

GRID = {
    "full": (2e-5, 6e-5, 2e-4, 6e-4, 2e-3, 6e-3),
    "lora": (2e-4, 6e-4, 2e-3, 6e-3, 2e-2, 6e-2),
}
CHOSEN = "chosen"
TRAIN_ROWS = 470


@dataclass(frozen=True)
class Found:
    """Results of one training."""

    rate: float
    loss: float
    accuracy: float
    test_seconds: float
    train_seconds: float
    curve: dict[str, Any] | None


def upload(seed: int, store: Any) -> str:
    """Upload a separate split for every seed, and return its prefix."""
    questions = demo_assets.frequent(demo_assets.read_questions(demo_assets.corpus_folder()))
    random.Random(seed).shuffle(questions)
    prefix = f"s3://bench/questions-{seed}"
    store.put(f"{prefix}/train.jsonl", demo_assets.as_jsonl(questions[:TRAIN_ROWS]))
    store.put(f"{prefix}/held-out.jsonl", demo_assets.as_jsonl(questions[TRAIN_ROWS:]))
    return prefix


def config_of(
    side: str, seed: int, prefix: str, options: argparse.Namespace, settings: StorageSettings
) -> TrainerConfig:
    """Return the configuration of a job with defaults for all other settings."""
    training: dict[str, Any] = {"epochs": options.epochs, "seed": seed, "gradientCheckpointing": False}
    if side != CHOSEN:
        training["learningRate"] = float(side)
    spec: dict[str, Any] = {
        "model": {"uri": minilm()},
        "data": {
            "train": [{"uri": f"{prefix}/train.jsonl"}],
            "validation": {"sources": [{"uri": f"{prefix}/held-out.jsonl"}]},
            "test": {"fraction": 0.0},
        },
        "method": {options.method: {}},
        "training": training,
        "evaluation": {"everySteps": NEVER},
        "checkpoint": {"everySteps": NEVER},
        "output": {"uri": f"s3://bench/{side}-{seed}"},
    }
    return training_config(spec, settings)


def measure(side: str, seed: int, prefix: str, options: Any, settings: StorageSettings, folder: Path) -> Found:
    """Run one training, and return the held-out figures after its last step."""
    from finetune_trainer.store.client import ObjectStore

    store = ObjectStore.connect(settings)
    config = prepared(config_of(side, seed, prefix, options, settings), folder / f"prepare-{side}-{seed}")
    timed("ours", config, folder / f"{side}-{seed}")
    document = store.get_json(config.layout.training_log)
    last = next(entry for entry in reversed(document["log"]) if "eval_loss" in entry)
    curve = store.get_json(config.layout.learning_rate) if side == CHOSEN else None
    seconds = document["phase_seconds"]
    found = Found(
        rate=curve["learning_rate"] if curve else float(side),
        loss=last["eval_loss"],
        accuracy=last["eval_accuracy"],
        test_seconds=seconds.get("rate test", 0.0),
        train_seconds=seconds["steps"],
        curve=curve,
    )
    print(f"  seed {seed}, {side}: {found.rate:g}, loss {found.loss:.4f}, accuracy {found.accuracy:.1%}", flush=True)
    return found


def report(found: dict[str, list[Found]], options: argparse.Namespace) -> None:
    """Print the table and the JSON object."""
    print(f"\n{'learning rate':<24} {'held-out loss':>14} {'accuracy (min to max)':>24}")
    for side, entries in found.items():
        rates = f" ({', '.join(f'{entry.rate:g}' for entry in entries)})" if side == CHOSEN else ""
        accuracies = [entry.accuracy for entry in entries]
        accuracy = f"{statistics.fmean(accuracies):.1%} ({min(accuracies):.1%} to {max(accuracies):.1%})"
        print(f"{side + rates:<24} {statistics.fmean(entry.loss for entry in entries):>14.4f} {accuracy:>24}")
    means = {side: statistics.fmean(entry.accuracy for entry in entries) for side, entries in found.items()}
    best = max((side for side in found if side != CHOSEN), key=means.__getitem__)
    chosen = found[CHOSEN]
    summary = {
        "benchmark": "learning_rate",
        "method": options.method,
        "seeds": options.seeds,
        "epochs": options.epochs,
        "chosenRates": [entry.rate for entry in chosen],
        "bestRate": float(best),
        "chosenAccuracy": round(means[CHOSEN], 4),
        "bestAccuracy": round(means[best], 4),
        "accuracyGap": round(100 * (means[best] - means[CHOSEN]), 2),
        "testSeconds": round(statistics.median(entry.test_seconds for entry in chosen), 1),
        "trainSeconds": round(statistics.median(entry.train_seconds for entry in chosen), 1),
    }
    print(json.dumps(summary))


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--method", choices=GRID, default="full")
    parser.add_argument("--seeds", type=int, default=3, help="splits, each with all trainings")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=1, help="concurrent seeds; a training uses one thread")
    parser.add_argument("--curves", type=Path, help="file for the losses of the tests")
    options = parser.parse_args()
    with bench_storage() as (folder, settings, store):
        sides = (CHOSEN, *(f"{rate:g}" for rate in GRID[options.method]))

        def of_seed(seed: int) -> dict[str, Found]:
            prefix = upload(seed, store)
            return {side: measure(side, seed, prefix, options, settings, folder) for side in sides}

        with ThreadPoolExecutor(options.parallel) as pool:
            seeds = list(pool.map(of_seed, range(1, options.seeds + 1)))
    if options.curves:
        options.curves.write_text(json.dumps([one[CHOSEN].curve for one in seeds]))
    report({side: [one[side] for one in seeds] for side in sides}, options)


if __name__ == "__main__":
    main()
