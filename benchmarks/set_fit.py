"""Benchmark SetFit against fine-tuning all parameters, with few examples of each class.

All sides train all-MiniLM-L6-v2 on the same eight questions of each topic of `make demo`, and are measured on the same
held-out questions; each seed draws another split and another subset. SetFit computes two texts in a row, so it takes
half the steps. The linear baseline is fitted to the same subset.

    python benchmarks/set_fit.py [--seeds 5] [--per-class 8] [--steps 120] [--results FILE]

Every result is appended to the file of `--results` as a line of JSON; a result that is there already is not measured
again, so an interrupted benchmark continues. Prints a table and, as the last line, a JSON object with the mean accuracy
of each side, its standard deviation over the seeds, and the mean of the paired differences to `full` with its standard
error.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from augmentation import LINEAR, measured
from small_trainings import NEVER, minilm, training_config

from finetune_api.trainer_config import StorageSettings, TrainerConfig

RATES = {"full": 2e-4, "setFit": 2e-5}
"""Method -> learning rate: those of the demo and of the paper."""


def config_of(
    side: str, seed: int, files: tuple[str, str], settings: StorageSettings, options: argparse.Namespace
) -> TrainerConfig:
    """Return the configuration of a job with defaults for all other settings."""
    method = "full" if side == LINEAR else side
    steps = options.steps // 2 if method == "setFit" else options.steps
    spec = {
        "model": {"uri": minilm()},
        "data": {
            "train": [{"uri": files[0]}],
            "validation": {"sources": [{"uri": files[1]}]},
            "test": {"fraction": 0.0},
            "fewShot": {"perClass": options.per_class},
            "maxLength": 64,
        },
        "method": {method: {}},
        "training": {
            "batching": "Padded",
            "maxSteps": steps,
            "learningRate": options.rate or RATES[method],
            "seed": seed,
            "gradientCheckpointing": False,
        },
        "evaluation": {"everySteps": steps},
        "checkpoint": {"everySteps": NEVER},
        "output": {"uri": f"s3://bench/{side.replace(' ', '-').lower()}-{seed}"},
    }
    return training_config(spec, settings)


def report(found: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and the JSON object."""
    sides = {side: {row["seed"]: row for row in found if row["side"] == side} for side in (LINEAR, *RATES)}
    summary: dict[str, Any] = {"benchmark": "set_fit", "seeds": options.seeds, "perClass": options.per_class}
    print(f"\n{'side':<16} {'rows':>6} {'accuracy':>9} {'deviation':>10} {'minus full':>20} {'seconds':>8}")
    for side, rows in sides.items():
        accuracies = [row["accuracy"] for row in rows.values()]
        differences = [row["accuracy"] - sides["full"][seed]["accuracy"] for seed, row in rows.items()]
        mean, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        size, seconds = (statistics.fmean(row[name] for row in rows.values()) for name in ("rows", "seconds"))
        accuracy, deviation = statistics.fmean(accuracies), statistics.stdev(accuracies)
        print(
            f"{side:<16} {size:>6.0f} {accuracy:>9.1%} {deviation:>10.1%} {mean:>+11.1%} ± {error:.1%} {seconds:>10.0f}"
        )
        summary[side] = {
            "accuracy": round(accuracy, 4),
            "deviation": round(deviation, 4),
            "difference": round(mean, 4),
            "error": round(error, 4),
            "seconds": round(seconds, 1),
        }
    print(json.dumps(summary))


def main() -> None:
    """Measure what is not in the file of results, and print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of the full fine-tune")
    parser.add_argument("--rate", type=float, help="learning rate of all methods, instead of those in this file")
    parser.add_argument("--results", type=Path, help="file of results; default: none is kept")
    options = parser.parse_args()
    key = {"perClass": options.per_class, "steps": options.steps, "rate": options.rate}
    found = measured((LINEAR, *RATES), config_of, key, options)
    report(found, options)


if __name__ == "__main__":
    main()
