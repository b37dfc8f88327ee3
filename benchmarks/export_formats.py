"""Exports with quantized weights: size, loss, accuracy of the next token, and speed of each on the CPU.

A model folder in Hugging Face layout is exported as Int8, as every type of GGUF and with every scheme of
CompressedTensors that it can have, with the code of the trainer. Each export is loaded with its reader and compared
weight by weight. Loss and accuracy are those of the demo's questions and answers, in rows of 64 tokens. The speed is
the median over repeated passes over these rows, in which the sides take turns.

    python benchmarks/export_formats.py MODEL_FOLDER [--rows 64] [--passes 5] [--formats Int8]

Prints a table, and as the last line a JSON object.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_api.constants import Stage
from finetune_api.trainer_config import (
    BatchPlan,
    JobRef,
    Prepared,
    PreparedConfig,
    SplitCounts,
    StorageSettings,
    TrainerConfig,
    World,
)
from finetune_api.v1alpha1 import ArtifactFormat, CompressedTensorsScheme, GgufType, Spec, Task
from finetune_cli.local import demo_assets
from finetune_trainer.errors import BadConfigError
from finetune_trainer.logs import quiet_libraries
from finetune_trainer.model.quantized_formats import quantized_exports, write_quantized

TOKENS, BATCH = 64, 8
OUTPUTS: tuple[dict[str, Any], ...] = (
    {"formats": [ArtifactFormat.INT8]},
    *({"formats": [ArtifactFormat.GGUF], "gguf": {"types": [kind]}} for kind in GgufType),
    *(
        {"formats": [ArtifactFormat.COMPRESSED_TENSORS], "compressedTensors": {"scheme": scheme}}
        for scheme in CompressedTensorsScheme
    ),
)
"""`spec.output` of each export."""


@dataclass
class Side:
    """A model, and what was measured."""

    name: str
    model: Any
    bytes: int
    load_seconds: float
    write_seconds: float = 0.0
    losses: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """Of every row."""
    correct: float = 0.0
    seconds: list[float] = field(default_factory=list)


def rows_of(folder: Path, count: int) -> torch.Tensor:
    """Rows of TOKENS tokens, shape (count, TOKENS)."""
    texts = []
    for path in sorted(demo_assets.corpus_folder().glob("*.yml")):
        turns = YAML(typ="safe", pure=True).load(path)["conversations"]
        texts += [f"Q: {turn[0]} A: {turn[1]}" for turn in turns if len(turn) > 1]
    random.Random(1).shuffle(texts)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [number for text in texts for number in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    return torch.tensor(ids[: count * TOKENS]).view(count, TOKENS)


@torch.no_grad()
def measure(side: Side, rows: torch.Tensor) -> None:
    """One pass over all rows."""
    losses, correct, started = [], 0, time.perf_counter()
    for batch in rows.split(BATCH):
        logits = side.model(input_ids=batch).logits[:, :-1].float()
        targets = batch[:, 1:]
        losses.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1))
        correct += int((logits.argmax(-1) == targets).sum())
    side.seconds.append(time.perf_counter() - started)
    side.losses, side.correct = torch.cat(losses), correct / (rows.shape[0] * (TOKENS - 1))


def job_of(folder: Path, output: dict[str, Any]) -> PreparedConfig:
    """A finished job."""
    document = {
        "model": {"uri": f"file://{folder}"},
        "data": {"train": [{"uri": "s3://bucket/x.jsonl"}], "format": "Text"},
        "training": {"maxSteps": 1},
        "output": {"uri": "s3://bucket/out", **output},
    }
    config = TrainerConfig(
        job=JobRef(namespace="default", name="benchmark", uid="u"),
        run=1,
        stage=Stage.EVALUATE,
        spec=Spec.model_validate(document),
        storage=StorageSettings(),
        world=World(),
        batch=BatchPlan(global_size=16, micro_size=16, accumulation=1),
    )
    prepared = Prepared(
        dataset_uri="s3://bucket/out/datasets/d",
        dataset_digest="d",
        model_digest="m",
        task=Task.CAUSAL_LM,
        format="Text",
        dtype="Float32",
        batching="Padded",
        zero_stage=2,
        counts=SplitCounts(train=1),
    )
    return PreparedConfig.of(config, prepared)


def exported(folder: Path, work: Path, output: dict[str, Any]) -> Side | None:
    """Write, reload and check one export. None if the format cannot hold the model."""
    config = job_of(folder, output)
    (export,) = quantized_exports(config.spec)
    target = work / export.title.replace(" ", "-")
    target.mkdir()
    started = time.perf_counter()
    try:
        write_quantized(export.artifact, folder, target, config, scratch=work)
    except BadConfigError as error:
        print(error)
        return None
    written = time.perf_counter()
    model = export.reload(target, str(target), config.prepared, "cpu")
    loaded = time.perf_counter()
    export.check(model, folder, target, str(target), ())
    files = [export.path(target)] if export.file else list(target.iterdir())
    size = sum(path.stat().st_size for path in files)
    return Side(export.title, model, size, loaded - written, write_seconds=written - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--formats", nargs="+", choices=[one for one in ArtifactFormat if one.is_quantized])
    arguments = parser.parse_args()
    quiet_libraries()
    folder, rows = arguments.folder, rows_of(arguments.folder, arguments.rows)
    with tempfile.TemporaryDirectory() as work:
        started = time.perf_counter()
        trained = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        sides = [Side("trained model", trained, size, time.perf_counter() - started)]
        for output in OUTPUTS:
            if arguments.formats and output["formats"][0] not in arguments.formats:
                continue
            if side := exported(folder, Path(work), output):
                sides.append(side)
        for _ in range(arguments.passes):
            for side in sides:
                measure(side, rows)
    found = {}
    print(f"{'export':24}{'MB':>8}{'write s':>9}{'load s':>8}{'loss':>9}{'row diff':>10}{'correct':>9}{'rows/s':>8}")
    for side in sides:
        difference = float((side.losses - sides[0].losses).abs().mean())
        speed, loss = len(rows) / statistics.median(side.seconds), float(side.losses.mean())
        print(
            f"{side.name:24}{side.bytes / 1e6:8.1f}{side.write_seconds:9.1f}{side.load_seconds:8.1f}{loss:9.4f}"
            f"{difference:10.4f}{side.correct:9.2%}{speed:8.2f}",
            flush=True,
        )
        found[side.name] = {
            "bytes": side.bytes,
            "writeSeconds": side.write_seconds,
            "loadSeconds": side.load_seconds,
            "loss": loss,
            "rowDifference": difference,
            "correct": side.correct,
            "rowsPerSecond": speed,
        }
    print(json.dumps({"exports": found}))


if __name__ == "__main__":
    main()
