"""Benchmark the settings of a language model's training, one after the other, on the same texts.

Each variant is a training with the product's own stages, on one process with one thread. It has the settings of another
variant, its base, and one more. Texts, model and tokens per optimizer step are those of packing.py, with a larger
vocabulary, so that the logits are the largest tensor, as in large models. The second of two epochs is measured. The
loss of held-out texts is compared after the last step, when all variants have seen the same tokens.

    python benchmarks/training_settings.py [--rounds 1] [--rows 160] [--capacity 256] [--vocabulary 32768]

`torch.compile` is no setting of a job: that variant compiles the forward pass in the benchmark, to show whether it
would pay within a run. LoRA has ten times the learning rate, as its default has. Prints a table and, as the last
line, a JSON object with the same figures. Memory is the peak of the process, above that of the imports.
"""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packing import RATE, held_out_loss, prepared_config, upload_texts
from small_trainings import bench_storage
from training_speed import COMPILED, Timed, timed

from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import Batching


@dataclass(frozen=True)
class Variant:
    """One setting that is added to those of its base."""

    base: str | None = None
    training: tuple[tuple[str, Any], ...] = ()
    method: str = "full"
    is_compiled: bool = False


VARIANTS = {
    "padded": Variant(training=(("batching", Batching.PADDED.value),)),
    "grouped": Variant("padded", (("batching", Batching.LENGTH_GROUPED.value),)),
    "packed": Variant("padded", (("batching", Batching.PACKED.value),)),
    "packed, chunked loss": Variant("packed", (("chunkedLoss", True),)),
    "packed, checkpointing": Variant("packed", (("gradientCheckpointing", True),)),
    "packed, both": Variant("packed, chunked loss", (("gradientCheckpointing", True),)),
    "packed, LoRA": Variant("packed", (("learningRate", 10 * RATE),), method="lora"),
    "packed, compiled": Variant("packed", is_compiled=True),
}


@dataclass(frozen=True)
class Found:
    """Results of one training."""

    speed: Timed
    held_out_loss: float


def settings_of(name: str) -> dict[str, Any]:
    """Return the settings of a variant and of its bases."""
    variant = VARIANTS[name]
    return (settings_of(variant.base) if variant.base else {}) | dict(variant.training)


def measure(name: str, seed: int, options: argparse.Namespace, settings: StorageSettings, folder: Path) -> Found:
    """Run one training."""
    from finetune_trainer.store.client import ObjectStore

    label, variant = name.replace(", ", "-").replace(" ", "-"), VARIANTS[name]
    config = prepared_config(label, settings_of(name), seed, options, settings, folder, method=variant.method)
    side = COMPILED if variant.is_compiled else "ours"
    speed = timed(side, config, folder / f"ranks-{label}-{seed}")
    loss = held_out_loss(config, ObjectStore.connect(settings))
    rate = round(speed.tokens_per_cpu_second)
    print(f"  round {seed}, {name}: {rate} tokens per CPU second, loss {loss:.4f}", flush=True)
    return Found(speed, loss)


def report(found: dict[str, list[Found]], options: argparse.Namespace) -> None:
    """Print the table and the JSON object."""

    def median(name: str, figure: Any) -> float:
        return statistics.median(figure(entry) for entry in found[name])

    rows = []
    for name, variant in VARIANTS.items():
        base = variant.base
        speed = median(name, lambda entry: entry.speed.tokens_per_cpu_second)
        rows.append(
            {
                "variant": name,
                "base": base,
                "tokensPerCpuSecond": round(speed),
                "speedToBase": base and round(speed / median(base, lambda entry: entry.speed.tokens_per_cpu_second), 2),
                "memoryMiB": round(median(name, lambda entry: entry.speed.peak_bytes) / 2**20),
                "firstStepSeconds": round(median(name, lambda entry: entry.speed.first_step_seconds), 1),
                "heldOutLoss": round(median(name, lambda entry: entry.held_out_loss), 4),
            }
        )
    print(f"\n{'variant':<22} {'tokens/CPU s':>12} {'to base':>8} {'memory MiB':>11} {'first step s':>13} {'loss':>8}")
    for row in rows:
        ratio = "" if row["speedToBase"] is None else f"{row['speedToBase']:.2f}"
        print(
            f"{row['variant']:<22} {row['tokensPerCpuSecond']:>12} {ratio:>8} {row['memoryMiB']:>11} "
            f"{row['firstStepSeconds']:>13} {row['heldOutLoss']:>8.4f}"
        )
    settings = {"rows": options.rows, "rounds": options.rounds, "vocabulary": options.vocabulary}
    print(json.dumps({"benchmark": "trainingSettings", **settings, "packTokens": options.capacity, "variants": rows}))


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=1, help="trainings per variant, each with another seed")
    parser.add_argument("--rows", type=int, default=160, help="texts to train on")
    parser.add_argument("--capacity", type=int, default=256, help="tokens per pack, and per example at most")
    parser.add_argument("--vocabulary", type=int, default=32_768, help="rows of the embedding of the model")
    options = parser.parse_args()
    with bench_storage() as (folder, settings, store):
        upload_texts(store, folder, options, options.vocabulary)
        found: dict[str, list[Found]] = {name: [] for name in VARIANTS}
        for seed in range(1, options.rounds + 1):
            for name in VARIANTS if seed % 2 else reversed(VARIANTS):
                found[name].append(measure(name, seed, options, settings, folder))
    report(found, options)


if __name__ == "__main__":
    main()
