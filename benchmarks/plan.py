"""Benchmark the plan: memory and time that it forecasts, compared with real trainings in control groups.

Jobs are drawn at random: method, ZeRO stage, offload, data type, length, micro-batch, workers, and an architecture with
1 to 140 million random parameters. Each one is prepared, which estimates its memory, and trained for three steps with a
checkpoint and an export. A worker is the supervisor, a fork server, the rank and its uploader, as in a pod, in a
control group of its own; the fork server, whose imports take most of the time, is kept for the next job.

Measured is the peak of anonymous pages, shared memory (snapshots are in it), memory of the kernel, and mapped files,
read every few milliseconds. The mapped files are the frozen weights of an adapter method, which the kernel could
reclaim, but every step reads them. Those of libraries are not counted, because another group has read them first.

    python benchmarks/plan.py [--cases 80] [--seed 1] [--limited 10] [--durations 10] [--results FILE]

`killedAlthoughFitting` counts jobs whose peak is above the memory that the plan demands, and `refusedButFitting` is
the share of jobs that fit in nine tenths of it. The first `--limited` jobs are also trained with each of the two
limits, and then count by whether the kernel has killed them. The first `--durations` jobs are trained twice again, with
8 and then 16 steps: the first training is the calibration for the second one. This is wall time, so that other work on
the machine counts.

Needs Linux, root and control groups. Every job is a line of JSON in the file of `--results`; one that is there already
is not trained again, so an interrupted benchmark continues. Prints a table and, as the last line, a JSON object.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from small_trainings import NEVER, bench_storage, prepared
from training_speed import free_port

from finetune_api.constants import Env, Stage
from finetune_api.rules import violations
from finetune_api.trainer_config import StorageSettings, TrainerConfig
from finetune_api.v1alpha1 import FineTuneJob
from finetune_operator.policy.world import stage_config
from finetune_trainer.forecast import forecast_job
from finetune_trainer.model.cpu_estimate import MARGIN
from finetune_trainer.run_record import record_run

STEPS = 3
MOST_NODES = 2
REFUSED_SHARE = 0.9
"""Limit of a refused training as a share of the memory that the plan demands."""
TOKENS_TIMES_PARAMETERS = 6e10
"""Most work of a training: 6 FLOP for each, so that it takes about 15 seconds."""
MILLION, MIB = 10**6, 2**20
DURATION_STEPS = (8, 16)
FAMILIES = ("llama", "llama", "llama", "gpt2", "bert", "bert", "distilbert")
METHODS: tuple[dict[str, Any], ...] = (
    {"full": {}},
    {"full": {}},
    {"full": {}},
    {"lora": {"rank": 8}},
    {"lora": {"rank": 32}},
    {"lora": {"rank": 8, "dropout": 0.1}},
    {"ia3": {}},
    {"layerNormTuning": {}},
    {"promptTuning": {"virtualTokens": 8}},
    {"prefixTuning": {"virtualTokens": 8}},
)
SAMPLE_SECONDS = 0.004


# ---- the jobs ----


@dataclass(frozen=True)
class Shape:
    """Sizes of a random model."""

    family: str
    vocabulary: int
    hidden: int
    layers: int

    @property
    def parameters(self) -> int:
        """About the number of parameters: embeddings, attention and a feed-forward layer of four times the width."""
        return self.vocabulary * self.hidden + 12 * self.layers * self.hidden**2


@dataclass(frozen=True)
class Case:
    """One job."""

    number: int
    shape: Shape
    spec: dict[str, Any]
    rows: int
    length: int


def drawn(seed: int, number: int) -> Case:
    """Return the job with this number. The same for the same seed."""
    draw = Random(f"{seed}-{number}")
    while True:
        shape = Shape(
            draw.choice(FAMILIES),
            draw.choice((1024, 4096, 16_384, 32_768, 49_152)),
            64 * draw.randint(2, 12),
            draw.randint(2, 16),
        )
        method, nodes = draw.choice(METHODS), draw.choice((1, 1, 1, MOST_NODES))
        micro, length = draw.choice((1, 2, 4, 8, 16)), draw.choice((32, 64, 128, 256, 512))
        accumulation = draw.choice((1, 1, 2))
        rows = STEPS * micro * nodes * accumulation
        is_encoder = "bert" in shape.family
        spec = {
            "model": {
                "uri": f"s3://bench/model-{number}",
                "dtype": draw.choice(("Float32", "Float32", "Float32", "BFloat16")),
            },
            "data": {
                "train": [{"uri": "s3://bench/rows.jsonl"}],
                "format": "Classification" if is_encoder or draw.random() < 0.3 else "Text",
                "validation": {"fraction": 0.0},
                "test": {"fraction": 0.0},
                "maxLength": length,
            },
            "method": method,
            "training": {
                "maxSteps": STEPS,
                "learningRate": 1e-4,
                "globalBatchSize": micro * nodes * accumulation,
                "microBatchSize": micro,
                "batching": "Padded",
                "gradientCheckpointing": draw.choice((False, True)),
            },
            "deepspeed": {
                "zeroStage": draw.choice((0, 1, 2, 3)),
                "offload": draw.choice(("None", "None", "Optimizer", "OptimizerAndParameters")),
            },
            "checkpoint": {"everySteps": 2},
            "workers": {"nodes": nodes},
            "output": {"uri": f"s3://bench/out-{number}"},
        }
        if not MILLION <= shape.parameters <= 140 * MILLION:
            continue
        if rows * length * shape.parameters > TOKENS_TIMES_PARAMETERS:
            continue
        if not violations(_job(spec).spec, local=True):
            return Case(number, shape, spec, rows, length)


def _job(spec: dict[str, Any]) -> FineTuneJob:
    return FineTuneJob.model_validate({"metadata": {"name": "bench", "namespace": "bench", "uid": "u"}, "spec": spec})


def save_model(shape: Shape, folder: Path) -> None:
    """Write the random model and a tokenizer of words, whose texts have one token per word."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = {word: number for number, word in enumerate([*special.values(), *(f"w{each}" for each in range(500))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    heads = shape.hidden // 64
    sizes = {"vocab_size": shape.vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    usual = sizes | {"hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": heads}
    wide = usual | {"intermediate_size": 4 * shape.hidden, "max_position_embeddings": 1024}
    gated = usual | {"intermediate_size": 64 * (shape.hidden // 24), "num_key_value_heads": heads}
    gated |= {"max_position_embeddings": 1024, "tie_word_embeddings": True}
    made: dict[str, tuple[str, str, dict[str, Any]]] = {
        "llama": ("LlamaForCausalLM", "LlamaConfig", gated),
        "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", gated),
        "gpt2": (
            "GPT2LMHeadModel",
            "GPT2Config",
            sizes | {"n_positions": 1024, "n_embd": shape.hidden, "n_layer": shape.layers, "n_head": heads},
        ),
        "bert": ("BertModel", "BertConfig", wide),
        "distilbert": (
            "DistilBertModel",
            "DistilBertConfig",
            sizes
            | {"dim": shape.hidden, "hidden_dim": 4 * shape.hidden, "n_layers": shape.layers, "n_heads": heads}
            | {"max_position_embeddings": 1024},
        ),
    }
    model, config, fields = made[shape.family]
    getattr(transformers, model)(getattr(transformers, config)(**fields)).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=1024, **special).save_pretrained(
        folder
    )


def rows_of(case: Case, draw: Random) -> Iterator[dict[str, str]]:
    """Yield texts that fill the rows."""
    for number in range(case.rows):
        words = " ".join(f"w{draw.randrange(500)}" for _ in range(2 * case.length))
        yield {"text": words, "label": f"c{number % 3}"}


# ---- control groups ----


class MemoryGroup:
    """A control group for the memory of one worker, version 1 or 2."""

    def __init__(self, name: str) -> None:
        first = Path("/sys/fs/cgroup/memory")
        self._is_first = first.is_dir()
        self._folder = (first if self._is_first else Path("/sys/fs/cgroup")) / name
        self._folder.mkdir()

    def limit(self, limit: int | None) -> None:
        """Set the limit in bytes; None: no limit."""
        name, unlimited = ("memory.limit_in_bytes", "-1") if self._is_first else ("memory.max", "max")
        (self._folder / name).write_text(unlimited if limit is None else str(limit))

    @property
    def members(self) -> Path:
        """File that a process writes its id to."""
        return self._folder / "cgroup.procs"

    def used(self) -> int:
        """Return the bytes of anonymous and shared memory, of mapped files, and of the kernel."""
        lines = (line.split() for line in (self._folder / "memory.stat").read_text().splitlines())
        stat = {name: int(value) for name, value in lines}
        if self._is_first:
            kernel = int((self._folder / "memory.kmem.usage_in_bytes").read_text())
            return stat["total_rss"] + max(stat["total_shmem"], stat["total_mapped_file"]) + kernel
        kernel = stat["kernel"] - stat["slab_reclaimable"]
        # Snapshots are shared memory, and mapped, too.
        return stat["anon"] + max(stat["shmem"], stat["file_mapped"]) + kernel

    def kills(self) -> int:
        """Return how many processes the kernel has killed."""
        name = "memory.oom_control" if self._is_first else "memory.events"
        return int(dict(line.split() for line in (self._folder / name).read_text().splitlines())["oom_kill"])

    def remove(self) -> None:
        """Remove the empty group."""
        for _ in range(100):
            try:
                self._folder.rmdir()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise SystemExit(f"{self._folder} cannot be removed: {self.members.read_text()}")


@contextmanager
def watched(groups: Sequence[MemoryGroup]) -> Iterator[list[int]]:
    """Yield the peaks of the groups in bytes, which are measured meanwhile."""
    peaks, ended = [0 for _ in groups], threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            peaks[:] = [max(peak, group.used()) for peak, group in zip(peaks, groups, strict=True)]

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


# ---- a training ----


class Worker:
    """A control group with a fork server, which imports the libraries once, as in a pod.

    It is kept for the next training, which finds the same memory: that of the fork server alone.
    """

    def __init__(self, folder: Path, node: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._node = folder, node
        self.group = MemoryGroup(f"plan-{os.getpid()}-{node}")
        self._server: subprocess.Popen[bytes] | None = None

    def start(self, config: Path, scratch: Path, port: int) -> "subprocess.Popen[bytes]":
        """Start the supervisor of a training."""
        scratch.mkdir(parents=True)
        socket = self._running_server()
        environment = os.environ | {
            Env.NODE_RANK: str(self._node),
            Env.MASTER_ADDR: "127.0.0.1",
            Env.MASTER_PORT: str(port),
            Env.PROGRESS_HOST: "127.0.0.1",
            Env.PROGRESS_PORT: str(free_port()),
            Env.SCRATCH: str(scratch),
            Env.CACHE: str(self._folder / "cache"),
            Env.FORK_SERVER: str(socket),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        train = ["-m", "finetune_trainer", Stage.TRAIN, "--config", str(config)]
        return self._joined(train, scratch / "log", env=environment)

    def _running_server(self) -> Path:
        socket = self._folder / f"fork-server-{self._node}.sock"
        if self._server is None or self._server.poll() is not None:
            socket.unlink(missing_ok=True)
            server = ["-m", "finetune_trainer.supervisor.forkserver", "--socket", str(socket), "--lifeline"]
            log = self._folder / f"fork-server-{self._node}.log"
            self._server = self._joined([*server, "--stage", Stage.TRAIN], log, stdin=subprocess.PIPE)
            while not socket.exists():
                time.sleep(0.1)
        return socket

    def _joined(self, arguments: list[str], log: Path, **options: Any) -> "subprocess.Popen[bytes]":
        command = ["sh", "-c", f'echo $$ > {self.group.members} && exec "$@"', "sh", sys.executable, *arguments]
        with log.open("wb") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)

    def close(self) -> None:
        """Stop the fork server and remove the group."""
        if self._server is not None and self._server.stdin is not None:
            self._server.stdin.close()
            self._server.wait()
        self.group.remove()


@contextmanager
def workers(folder: Path) -> Iterator[list[Worker]]:
    """Yield the workers of the largest job."""
    found = [Worker(folder, node) for node in range(MOST_NODES)]
    try:
        yield found
    finally:
        for worker in found:
            worker.close()


@dataclass(frozen=True)
class Ran:
    """What a training in control groups did."""

    peak: int
    """Largest peak of a worker, in bytes."""
    killed: bool


def ran(config: TrainerConfig, pods: Sequence[Worker], folder: Path, limit: int | None) -> Ran:
    """Train in control groups with this limit of each worker. Raises SystemExit if it fails for another reason."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.model_dump_json())
    pods, port = pods[: config.world.nodes], free_port()
    groups = [pod.group for pod in pods]
    before = [group.kills() for group in groups]
    for group in groups:
        group.limit(limit)
    with watched(groups) as peaks:
        started = [pod.start(folder / "config.json", folder / str(node), port) for node, pod in enumerate(pods)]
        statuses = [supervisor.wait() for supervisor in started]
    for group in groups:
        group.limit(None)
    killed = [group.kills() for group in groups] != before
    if any(statuses) and not killed:
        logs = "\n".join((folder / str(node) / "log").read_text()[-3000:] for node in range(len(pods)))
        raise SystemExit(f"the training failed with {statuses}:\n{logs}")
    return Ran(max(peaks), killed)


def config_of(case: Case, settings: StorageSettings) -> TrainerConfig:
    """Return the configuration of the training, before it is prepared."""
    return stage_config(_job(case.spec), 1, Stage.TRAIN, 1, settings)


def measured(
    case: Case, settings: StorageSettings, store: Any, pods: Sequence[Worker], folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Prepare and train the job. Returns a line of the results."""
    save_model(case.shape, folder / "model")
    # From storage, so that its pages are those of the worker that downloads it, as in a cluster.
    files = sorted((folder / "model").iterdir())
    store.upload_files([(file, f"{case.spec['model']['uri']}/{file.name}") for file in files])
    store.put("s3://bench/rows.jsonl", "\n".join(map(json.dumps, rows_of(case, Random(case.number)))).encode())
    config = recorded(config_of(case, settings), store, folder / "prepare")
    plan = config.prepared
    assert plan is not None
    demanded = plan.memory_estimate_bytes
    row = {
        "seed": options.seed,
        "number": case.number,
        "family": case.shape.family,
        "parameters": plan.parameters,
        "method": config.spec.method.name,
        "zeroStage": plan.zero_stage,
        "offload": case.spec["deepspeed"]["offload"],
        "dtype": plan.dtype,
        "rows": config.batch.micro_size,
        "tokens": case.length,
        "nodes": config.world.nodes,
        "demanded": demanded,
        "estimated": round(demanded / MARGIN),
        "peak": ran(config, pods, folder / "train", None).peak,
    }
    if case.number < options.limited:
        limits = {"killed": demanded, "killedBelow": int(REFUSED_SHARE * demanded)}
        for run, (name, limit) in enumerate(limits.items(), 2):  # an attempt can claim a run only once
            again = config_of(case, settings).model_copy(update={"run": run})
            again = recorded(again, store, folder / f"prepare-{run}")
            row[name] = ran(again, pods, folder / f"train-{run}", limit).killed
    if case.number < options.durations:
        row |= durations(case, settings, store, pods, folder)
    return row


def recorded(config: TrainerConfig, store: Any, scratch: Path) -> TrainerConfig:
    """Run the prepare stage, and store its result as the stage does."""
    found = prepared(config, scratch)
    assert found.prepared is not None
    record_run(store, found, found.prepared)
    return found


def durations(
    case: Case, settings: StorageSettings, store: Any, pods: Sequence[Worker], folder: Path
) -> dict[str, float]:
    """Train with few steps, then with more. Returns the seconds of the steps of the second one, and their forecast."""
    seconds = {}
    for run, steps in enumerate(DURATION_STEPS, start=1):
        training = case.spec["training"] | {"maxSteps": steps}
        spec = case.spec | {"training": training, "checkpoint": {"everySteps": NEVER}}
        spec |= {"output": {"uri": f"s3://bench/timed-{case.number}"}}
        config = config_of(replace(case, spec=spec), settings).model_copy(update={"run": run})
        if run == len(DURATION_STEPS):
            time = forecast_job(config, store, scratch=folder / "forecast", cache=folder / "cache").time
            assert time is not None
            seconds["forecastSeconds"] = (time.shortest * time.longest) ** 0.5
        config = recorded(config, store, folder / f"timed-{run}")
        ran(config, pods, folder / "train", None)
        seconds["seconds"] = store.get_json(config.layout.training_log)["phase_seconds"]["steps"]
    return seconds


def measured_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the jobs that are not in the file of results. Returns all, in order."""
    with bench_storage() as (folder, settings, store), workers(folder / "workers") as pods:
        results = options.results or folder / "results.jsonl"
        kept = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        found = [row for row in kept if row["seed"] == options.seed and row["number"] < options.cases]
        for number in range(options.first, options.cases):
            if any(row["number"] == number for row in found):
                continue
            case = drawn(options.seed, number)
            row = measured(case, settings, store, pods, folder / str(number), options)
            shutil.rmtree(folder / str(number))
            print(_line(row), flush=True)
            found.append(row)
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return sorted(found, key=lambda row: row["number"])


# ---- the report ----


def error(row: dict[str, Any]) -> float:
    """Return the error of the estimated memory as a share of the measured one."""
    return float(row["estimated"] / row["peak"] - 1)


def _line(row: dict[str, Any]) -> str:
    kind = f"{row['family']:<10} {row['parameters'] / MILLION:>6.1f} {row['method']:<15} {row['zeroStage']}"
    sizes = f"{row['offload'][:9]:<9} {row['dtype']:<8} {row['nodes']}x{row['rows']:<2}x{row['tokens']:<4}"
    memory = f"{row['peak'] / MIB:>9,.0f} {row['estimated'] / MIB:>9,.0f} {error(row):>+7.1%}"
    return f"{row['number']:>3} {kind} {sizes} {memory}"


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and the JSON object."""
    print("\njob: architecture, million parameters, method, ZeRO stage, offload, type, workers x rows x tokens;")
    print("MiB measured, MiB estimated, error")
    for row in rows:
        print(_line(row))
    errors = sorted(abs(error(row)) for row in rows)
    timed = [abs(row["forecastSeconds"] / row["seconds"] - 1) for row in rows if "seconds" in row]
    killed = [row.get("killed", row["peak"] > row["demanded"]) for row in rows]
    fitting = [not row.get("killedBelow", row["peak"] > REFUSED_SHARE * row["demanded"]) for row in rows]
    summary = {
        "benchmark": "plan",
        "cases": len(rows),
        "seed": options.seed,
        "memoryMedianError": round(statistics.median(errors), 4),
        "memoryP95Error": round(errors[math.ceil(0.95 * len(errors)) - 1], 4),
        "killedAlthoughFitting": sum(killed),
        "refusedButFitting": round(statistics.fmean(fitting), 4),
        "limited": sum("killed" in row for row in rows),
        "durationMedianError": round(statistics.median(timed), 4) if timed else None,
        "durations": len(timed),
    }
    print(json.dumps(summary))


def main() -> None:
    """Measure what is not in the file of results, and print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--cases", type=int, default=80)
    parser.add_argument("--first", type=int, default=0, help="first job that is trained")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limited", type=int, default=10, help="jobs that are also trained with limits")
    parser.add_argument("--durations", type=int, default=10, help="jobs whose time is measured")
    parser.add_argument("--results", type=Path, help="file of results; default: none is kept")
    options = parser.parse_args()
    report(measured_all(options), options)


if __name__ == "__main__":
    main()
