"""Benchmark checkpoints, compared with those of transformers and DeepSpeed in the same run.

    make bench-checkpoints ARGS='--quick'

Two ranks with one thread each (gloo, ZeRO-2, fp32, AdamW) train four layers of SmolLM2 (42.5 M parameters, pretrained).
Storage is the embedded S3 server behind a proxy that limits the rate of each direction, for both ranks together.

A round consists of half an automatic interval without saves, a whole interval with its save, another half without
saves, and a save by transformers. Each result is the median of the ratios of all rounds.

stallRatio        Ours: the whole call of the loop's `_save` (check of the parameters, communication, snapshot,
                  request), and the part of later steps in which the ranks advance the save. Baseline: the save of a
                  Trainer with the same engine, by transformers and DeepSpeed (model, ZeRO states, scheduler,
                  generators) to the local disk, and the upload of all files with boto3 (`upload_file` with its default
                  parallel parts, four files at once, by each rank) until both ranks are done.
stepSlowdown      Steps during which an upload at its default rate was active all the time, compared with the other
                  steps of the round. Uploaders run on the same machine, as in a pod. Server and proxy, which would run
                  on other machines, use only otherwise idle CPU time.
wallRatio         Time per step in the interval with the save, compared with the halves without. The interval is the
                  automatic one of the product for `--max-lost-work` (default 2m; that of the product is 10m).
restoreRatio      `CheckpointManager.restore` into an engine, from the listing to the last collective, with all bytes
                  verified; compared with boto3 reading the same blobs with the same concurrency. Both read into newly
                  allocated memory.
bytesRatio        All new objects of a checkpoint, compared with all files of a save by transformers.
frozenBytesRatio  New objects of the second checkpoint with half of the layers frozen, compared with those of the first
                  full one. It uses another model (12 layers, a vocabulary of 2,048), because the embedding is two
                  thirds of the first one.
hostRestoreRatio  Restores from the node-local cache, compared with restores from S3. The copies are in the page cache,
                  as after the restart of a process; a cold disk would take longer.

The first checkpoint of a process includes the start of its uploader; it is printed but not counted.
Prints a table and, as the last line, a JSON object. 1 MB is 1e6 bytes.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoint_parts import figures
from checkpoint_parts.plain_s3 import client, measured_rates
from checkpoint_parts.processes import JobFailedError, Jobs, rank_main
from checkpoint_parts.proxy import limited_link, use_idle_scheduling
from checkpoint_parts.training_job import BUCKET, WORLD, Size, with_output

from finetune_api.trainer_config import StorageSettings, TrainerConfig
from finetune_cli.local.embedded_store import EmbeddedStore

_WRITER_ROUNDS = 3


@dataclass
class Bench:
    """One run of the benchmark."""

    options: argparse.Namespace
    jobs: Jobs
    endpoint: str

    def run(self) -> None:
        """Measure and print the results."""
        prepared = self._prepare()
        ranks = self._job(
            "training", "training:train_rank", config=_dumped(prepared), scenario="ours", rounds=self.rounds
        )
        lines = self._training_lines(ranks)
        found = figures.training_figures(ranks, self._stored_bytes(prepared, saves=len(ranks[0]["saves"])))
        frozen = self._job(
            "frozen", "frozen:stored_bytes", config=_dumped(prepared), model=str(self.jobs.folder / "models" / "frozen")
        )
        found += [figures.frozen_figure(frozen[0]), figures.host_figure(ranks)]
        lines.append(self._writer_line(prepared))
        print("\n".join(["", figures.table(found), "", *lines]), flush=True)
        assert prepared.prepared is not None
        extra = {
            "modelParameters": prepared.prepared.parameters,
            "megabytesPerSecond": self.options.megabytes_per_second,
            "rounds": self.rounds,
        }
        print(json.dumps(figures.summary(found, **extra)))

    @property
    def rounds(self) -> int:
        rounds: int = self.options.rounds
        return rounds

    def _prepare(self) -> TrainerConfig:
        quick = self.options.quick
        size = Size(quick, self.options.max_lost_work, self.options.global_batch)
        arguments = {
            "folder": str(self.jobs.folder),
            "settings": StorageSettings(endpoint=self.endpoint, path_style=True).model_dump(mode="json"),
            "size": asdict(size),
        }
        return TrainerConfig.model_validate(self._job("prepare", "training_job:prepare_rank", world=1, **arguments)[0])

    def _job(self, name: str, target: str, *, world: int = WORLD, **arguments: Any) -> list[Any]:
        started = time.monotonic()
        found = self.jobs.run(name, f"checkpoint_parts.{target}", arguments, world=world)
        print(f"  {name}: {time.monotonic() - started:.0f} s", flush=True)
        return found

    def _stored_bytes(self, config: TrainerConfig, *, saves: int) -> float:
        """Return the mean bytes of a checkpoint: all checkpoints of the training are full and share no bytes.

        Pruned manifests have been removed by now; blobs are kept for an hour.
        """
        prefix = f"{config.run_uri}/checkpoints/".removeprefix(f"s3://{BUCKET}/")
        pages = client(self.endpoint).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        total = sum(entry["Size"] for page in pages for entry in page["Contents"])
        return float(total) / saves

    def _training_lines(self, ranks: list[Any]) -> list[str]:
        main = ranks[0]
        first, *others = main["saves"]
        stalls = [save["snapshot"] + save["progress"] for save in main["saves"]]
        latency = statistics.median(save["commit_latency"] for save in others)
        saving, uploading = (
            statistics.median(each[part] for each in main["baselines"]) for part in ("saving", "uploading")
        )
        return [
            f"first checkpoint, with the start of the uploader: stall {stalls[0]:.3f} s, "
            f"committed in {first['commit_latency']:.1f} s",
            f"other checkpoints: stall at most {max(stalls[1:]):.3f} s, committed in {latency:.1f} s",
            f"interval: {main['interval_steps']} steps, for maxLostWork {self.options.max_lost_work}; steps during "
            f"an upload take {main['upload_overhead']:.2f} s longer in total",
            f"transformers and DeepSpeed: {saving:.2f} s for the save, {uploading:.2f} s for the uploads",
        ]

    def _writer_line(self, config: TrainerConfig) -> str:
        """Return the stall of DeepSpeed's decoupled writer without an upload, or the reason why it does not run."""
        writer = {"checkpoint": {"writer": {"type": "fast", "decoupled": True}}}
        run = with_output(config, "writer", deepspeed={"zeroStage": 2, "config": writer})
        rounds = min(self.rounds, _WRITER_ROUNDS)
        try:
            ranks = self._job("writer", "training:train_rank", config=_dumped(run), scenario="writer", rounds=rounds)
        except JobFailedError as error:
            return f"DeepSpeed's decoupled fast writer does not run here: {error.reason}"
        stall = statistics.median(figures.writer_stalls(ranks[0]))
        return f"DeepSpeed's decoupled fast writer: stall {stall:.3f} s, to local files without any upload"


def _dumped(config: TrainerConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, help="default 5, or 2 with --quick")
    parser.add_argument(
        "--quick", action="store_true", help="a quick test with a tiny model; its results are not meaningful"
    )
    parser.add_argument(
        "--megabytes-per-second", type=float, default=200.0, help="rate of the link to storage, per direction"
    )
    parser.add_argument("--max-lost-work", help="value of checkpoint.maxLostWork; default 2m, or 3s with --quick")
    parser.add_argument("--global-batch", type=int, default=4, help="rows of 64 tokens per step, over both ranks")
    parser.add_argument("--rank-job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.max_lost_work = options.max_lost_work or ("3s" if options.quick else "2m")
    return options


def main() -> None:
    """Entry point of the benchmark and of its ranks."""
    options = _parsed()
    if options.rank_job:
        rank_main(options.rank_job)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exit through the context managers
    with tempfile.TemporaryDirectory() as temporary, EmbeddedStore(Path(temporary) / "store") as server:
        os.environ.update(server.env())
        server.create_bucket(BUCKET)
        use_idle_scheduling(server.pid)
        with limited_link(server.access.port, options.megabytes_per_second) as port:
            endpoint = f"http://127.0.0.1:{port}"
            direct, through = measured_rates(server.endpoint, BUCKET), measured_rates(endpoint, BUCKET)
            cap = options.megabytes_per_second
            print(f"link: {cap:g} MB/s per direction; boto3, MB/s: {through.against(cap)}")
            print(f"  without the limit: {direct}", flush=True)
            Bench(options, Jobs(Path(__file__), Path(temporary)), endpoint).run()


if __name__ == "__main__":
    main()
