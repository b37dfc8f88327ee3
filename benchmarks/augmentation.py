"""Benchmark the effect of `spec.data.augmentation` on a few-shot classifier.

All sides train all-MiniLM-L6-v2 on ten questions of each topic of `make demo` for the same number of steps, and are
measured on the same held-out questions. They differ in `spec.data.augmentation`; each seed draws another split and
another subset. The linear baseline is fitted to the same subset without copies.

    python benchmarks/augmentation.py [--seeds 5] [--per-class 10] [--steps 120] [--results FILE]

Every result is appended to the file of `--results` as a line of JSON; a result that is there already is not measured
again, so an interrupted benchmark continues. Prints a table and, as the last line, a JSON object with the mean accuracy
of each side, its standard deviation over the seeds, and the mean of the paired differences to `plain` with its standard
error.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from small_trainings import NEVER, bench_storage, minilm, prepared, training_config
from training_speed import timed

from finetune_api.trainer_config import StorageSettings, TrainerConfig
from finetune_api.v1alpha1 import SimpleBaseline
from finetune_cli.local import demo_assets

SIDES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "noise": {"copies": 3, "methods": ["CharacterNoise"]},
    "words": {"copies": 3, "methods": ["WordDropout", "WordSwap"]},
}
LINEAR = "linear baseline"


def question_files(store: Any, seed: int) -> tuple[str, str]:
    """Upload a separate split for every seed; returns the addresses of training and held-out questions."""
    questions = demo_assets.frequent(demo_assets.read_questions(demo_assets.corpus_folder()))
    random.Random(seed).shuffle(questions)
    addresses = (f"s3://bench/{seed}/train.jsonl", f"s3://bench/{seed}/held-out.jsonl")
    cut = len(questions) // 4
    for address, rows in zip(addresses, (questions[cut:], questions[:cut]), strict=True):
        store.put(address, demo_assets.as_jsonl(rows))
    return addresses


ConfigOf = Callable[[str, int, tuple[str, str], StorageSettings, argparse.Namespace], TrainerConfig]
"""Side, seed, files, storage and options -> the configuration of a job."""


def config_of(
    side: str, seed: int, files: tuple[str, str], settings: StorageSettings, options: argparse.Namespace
) -> TrainerConfig:
    """Return the configuration of a job with defaults for all other settings."""
    data: dict[str, Any] = {
        "train": [{"uri": files[0]}],
        "validation": {"sources": [{"uri": files[1]}]},
        "test": {"fraction": 0.0},
        "fewShot": {"perClass": options.per_class},
        "maxLength": 64,
    }
    if SIDES.get(side) is not None:
        data["augmentation"] = SIDES[side]
    spec = {
        "model": {"uri": minilm()},
        "data": data,
        "training": {
            "maxSteps": options.steps,
            "learningRate": 2e-4,
            "batching": "Padded",
            "seed": seed,
            "gradientCheckpointing": False,
        },
        "evaluation": {"everySteps": options.steps},
        "checkpoint": {"everySteps": NEVER},
        "output": {"uri": f"s3://bench/{side.replace(' ', '-')}-{seed}"},
    }
    return training_config(spec, settings)


def measure(config: TrainerConfig, store: Any, folder: Path, *, linear: bool) -> dict[str, float]:
    """Prepare and train, or fit the linear baseline. Returns held-out accuracy and training rows."""
    from finetune_trainer.data.info import read_dataset_info
    from finetune_trainer.data.shards import TokenDataset
    from finetune_trainer.evaluate.baselines import BASELINES
    from finetune_trainer.evaluate.simple_baselines import TrainingSplit, classified

    config = prepared(config, folder / "prepare")
    assert config.prepared is not None
    found = {"rows": float(config.prepared.counts.train)}
    if linear:
        uri = config.prepared.dataset_uri
        info = read_dataset_info(store, uri)
        train, held_out = (TokenDataset.open(store, uri, split, folder / "cache") for split in ("train", "validation"))
        predictor = BASELINES[SimpleBaseline.TFIDF_LOGISTIC_REGRESSION].fit(TrainingSplit.of(info, lambda _: train))
        answers = classified(predictor, held_out)
        return found | {"accuracy": float(np.mean(answers.predictions == answers.targets))}
    timed("ours", config, folder / "train")
    log = store.get_json(f"{config.run_uri}/training.json")["log"]
    last = next(entry for entry in reversed(log) if "eval_accuracy" in entry)
    return found | {"accuracy": last["eval_accuracy"], "loss": last["eval_loss"]}


def measured(
    sides: Sequence[str], config_of: ConfigOf, key: dict[str, Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure each side with each seed, unless the file of results has it. Return all results with the settings `key`,
    in the order of their measurement."""
    with bench_storage() as (folder, settings, store):
        results = options.results or folder / "results.jsonl"
        kept = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        found = [row for row in kept if row.items() >= key.items() and row["seed"] <= options.seeds]
        for seed in range(1, options.seeds + 1):
            files = question_files(store, seed)
            for side in sides:
                if any((row["side"], row["seed"]) == (side, seed) for row in found):
                    continue
                config, started = config_of(side, seed, files, settings, options), time.perf_counter()
                row = {"side": side, "seed": seed, **key}
                row |= measure(config, store, folder / f"{side}-{seed}", linear=side == LINEAR)
                row["seconds"] = time.perf_counter() - started
                print(f"  seed {seed}, {side}: accuracy {row['accuracy']:.1%}", flush=True)
                found.append(row)
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return found


def report(found: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and the JSON object."""
    sides = {side: {row["seed"]: row for row in found if row["side"] == side} for side in (LINEAR, *SIDES)}
    summary: dict[str, Any] = {"benchmark": "augmentation", "seeds": options.seeds, "perClass": options.per_class}
    print(f"\n{'side':<16} {'rows':>6} {'accuracy':>9} {'deviation':>10} {'minus plain':>20}")
    for side, rows in sides.items():
        accuracies = [row["accuracy"] for row in rows.values()]
        differences = [row["accuracy"] - sides["plain"][seed]["accuracy"] for seed, row in rows.items()]
        mean, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        size, deviation = statistics.fmean(row["rows"] for row in rows.values()), statistics.stdev(accuracies)
        accuracy = statistics.fmean(accuracies)
        print(f"{side:<16} {size:>6.0f} {accuracy:>9.1%} {deviation:>10.1%} {mean:>+11.1%} ± {error:.1%}")
        summary[side] = {
            "accuracy": round(accuracy, 4),
            "deviation": round(deviation, 4),
            "difference": round(mean, 4),
            "error": round(error, 4),
        }
    print(json.dumps(summary))


def main() -> None:
    """Measure what is not in the file of results, and print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--results", type=Path, help="file of results; default: none is kept")
    options = parser.parse_args()
    key = {"perClass": options.per_class, "steps": options.steps}
    found = measured((LINEAR, *SIDES), config_of, key, options)
    report(found, options)


if __name__ == "__main__":
    main()
