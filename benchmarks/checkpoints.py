"""What checkpoints cost beside those of transformers and DeepSpeed, in one run, interleaved.

    make bench-checkpoints ARGS='--quick'

Two ranks with one thread each, gloo, ZeRO-2, fp32, AdamW, on four layers of SmolLM2 (42.5 M parameters, real weights).
Storage is the embedded S3 server behind a proxy with a stated rate, both directions and both ranks together.

A round is half an automatic interval without saves, a whole one with the save that belongs to it, the other half
without, and a save of transformers'. Each figure is the median of the rounds' ratios.

stallRatio        Ours: the loop's whole `_save` (check of the parameters, exchanges, snapshot, order),
                  and of later steps the part in which the ranks advance the save. The other: the save of a Trainer
                  around the same engine, by transformers and DeepSpeed (model, ZeRO states, scheduler, generators) to
                  this machine's disk, then every file uploaded with boto3 (`upload_file`, its default parallel parts,
                  four files at once, each rank its own) until both ranks are done.
stepSlowdown      Steps during which an upload at its default pace never rested, beside the others of the round. The
                  uploaders run beside the training, as they do in a pod; store and proxy, which are elsewhere then,
                  take of this machine only what it leaves.
wallRatio         The interval with the save beside the halves without. `--max-lost-work` (default 2m, the product's is
                  10m) decides how often, through the product's own save interval, from its own measurements.
restoreRatio      `CheckpointManager.restore` into a real engine, from listing to last collective, all bytes verified,
                  into fresh memory; beside boto3 reading the same blobs, as many at once, into fresh memory.
bytesRatio        All new objects of a checkpoint, beside all files of a save of transformers'.
frozenBytesRatio  New objects of the second checkpoint with half of the layers frozen, beside those of the first full
                  one. On another cut (12 layers, a vocabulary of 2,048): in the first one the embedding is two thirds.
hostRestoreRatio  Restores from the node-local cache and from S3. The copies are in the machine's page cache, as after
                  the restart of a process; a cold disk adds its own time.

The first checkpoint of a process contains the start of its uploader; it is printed, not counted.
Prints a table and, as the last line, one JSON object. 1 MB is 1e6 bytes.
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
from checkpoint_parts.proxy import capped, take_what_is_left
from checkpoint_parts.subject import BUCKET, WORLD, Size, with_output

from finetune_api.trainer_config import StorageSettings, TrainerConfig
from finetune_cli.local.embedded_store import EmbeddedStore

_WRITER_ROUNDS = 3


@dataclass
class Bench:
    """One run."""

    options: argparse.Namespace
    jobs: Jobs
    endpoint: str

    def run(self) -> None:
        """Measure, print."""
        prepared = self._prepare()
        ranks = self._job("training", "training:train_rank", config=_dumped(prepared), story="ours", rounds=self.rounds)
        lines = self._training_lines(ranks)
        found = figures.training_figures(ranks, self._stored_bytes(prepared, saves=len(ranks[0]["saves"])))
        frozen = self._job(
            "frozen", "frozen:stored_bytes", config=_dumped(prepared), model=str(self.jobs.folder / "models" / "frozen")
        )
        found += [figures.frozen_figure(frozen[0]), figures.host_figure(ranks)]
        lines.append(self._writer_line(prepared))
        print("\n".join(["", figures.table(found), "", *lines]), flush=True)
        assert prepared.prepared is not None
        more = {
            "modelParameters": prepared.prepared.parameters,
            "megabytesPerSecond": self.options.megabytes_per_second,
            "rounds": self.rounds,
        }
        print(json.dumps(figures.summary(found, **more)))

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
        return TrainerConfig.model_validate(self._job("prepare", "subject:prepare_rank", world=1, **arguments)[0])

    def _job(self, name: str, target: str, *, world: int = WORLD, **arguments: Any) -> list[Any]:
        started = time.monotonic()
        found = self.jobs.run(name, f"checkpoint_parts.{target}", arguments, world=world)
        print(f"  {name}: {time.monotonic() - started:.0f} s", flush=True)
        return found

    def _stored_bytes(self, config: TrainerConfig, *, saves: int) -> float:
        """Of one checkpoint: all of the training's were full, and none holds a byte of another one.

        Manifests that are not kept are gone by now; blobs stay for an hour.
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
            f"first checkpoint, with the uploader's start: stall {stalls[0]:.3f} s, in {first['commit_latency']:.1f} s",
            f"the others: stall {max(stalls[1:]):.3f} s at most, committed in {latency:.1f} s",
            f"interval: {main['interval_steps']} steps, for maxLostWork {self.options.max_lost_work}, where the steps "
            f"beside an upload take {main['upload_overhead']:.2f} s longer in all",
            f"transformers and DeepSpeed: {saving:.2f} s for the save, {uploading:.2f} s for the uploads",
        ]

    def _writer_line(self, config: TrainerConfig) -> str:
        """DeepSpeed's own decoupled writer: what it stalls without any upload, or why it does not run."""
        writer = {"checkpoint": {"writer": {"type": "fast", "decoupled": True}}}
        run = with_output(config, "writer", deepspeed={"zeroStage": 2, "config": writer})
        rounds = min(self.rounds, _WRITER_ROUNDS)
        try:
            ranks = self._job("writer", "training:train_rank", config=_dumped(run), story="writer", rounds=rounds)
        except JobFailedError as error:
            return f"DeepSpeed's decoupled fast writer does not run here: {error.reason}"
        stall = statistics.median(figures.writer_stalls(ranks[0]))
        return f"DeepSpeed's decoupled fast writer: stall {stall:.3f} s, to local files without any upload"


def _dumped(config: TrainerConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, help="default 5, or 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try it out: its figures mean nothing")
    parser.add_argument("--megabytes-per-second", type=float, default=200.0, help="of the link to storage, each way")
    parser.add_argument("--max-lost-work", help="as checkpoint.maxLostWork; default 2m, or 3s with --quick")
    parser.add_argument("--global-batch", type=int, default=4, help="rows of 64 tokens in a step, over both ranks")
    parser.add_argument("--rank-job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.max_lost_work = options.max_lost_work or ("3s" if options.quick else "2m")
    return options


def main() -> None:
    """Parse, measure, report."""
    options = _parsed()
    if options.rank_job:
        rank_main(options.rank_job)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    with tempfile.TemporaryDirectory() as temporary, EmbeddedStore(Path(temporary) / "store") as server:
        os.environ.update(server.env())
        server.create_bucket(BUCKET)
        take_what_is_left(server.pid)
        with capped(server.access.port, options.megabytes_per_second) as port:
            endpoint = f"http://127.0.0.1:{port}"
            direct, through = measured_rates(server.endpoint, BUCKET), measured_rates(endpoint, BUCKET)
            cap = options.megabytes_per_second
            print(f"link: {cap:g} MB/s each way; raw boto3, MB/s: {through.against(cap)}")
            print(f"  the same without the cap: {direct}", flush=True)
            Bench(options, Jobs(Path(__file__), Path(temporary)), endpoint).run()


if __name__ == "__main__":
    main()
