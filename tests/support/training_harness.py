"""Attempts of the train stage for tests: two real ranks of the real fork server, tiny models, a real object store."""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune_api.constants import Env, Stage
from finetune_api.progress import TerminationMessage
from finetune_api.trainer_config import BatchPlan, JobRef, Prepared, StorageSettings, TrainerConfig, World
from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Spec
from finetune_trainer.rank_main import read_result
from finetune_trainer.store import ObjectStore
from finetune_trainer.supervisor.forkclient import RUN_RANK, ForkClient, ForkServerProcess, RankProcess
from process_support import base_environment, free_port

ROWS = 47
GLOBAL_BATCH = 8
STEPS_PER_EPOCH = 5
"""ceil(38 training rows / 8): the last batch of an epoch is incomplete."""
MASKED = "masked"
PAIRS = "pairs"
PACKED = "-packed"
VOCABULARY = "-vocabulary"

_WORDS = {"animal": ["fox", "dog", "bird", "wolf", "horse"], "food": ["bread", "milk", "cheese", "apple", "soup"]}


@dataclass
class Attempt:
    """Results of the ranks."""

    exit_codes: list[int]
    messages: list[TerminationMessage | None]
    output: str
    folder: Path

    @property
    def message(self) -> TerminationMessage:
        assert self.messages[0] is not None, self.output[-6000:]
        return self.messages[0]


@dataclass
class Started:
    """Running ranks."""

    ranks: list[RankProcess]
    folder: Path

    def ended(self, within: float = 120.0) -> Attempt:
        """Wait until all have exited."""
        try:
            codes = [rank.wait(within) for rank in self.ranks]
        finally:
            self.kill()
        messages = [read_result(self.folder, rank) for rank in range(len(self.ranks))]
        return Attempt(codes, messages, (self.folder / "log").read_text(), self.folder)

    def kill(self) -> None:
        """Kill all ranks and their children."""
        for rank in self.ranks:
            rank.kill()


@dataclass
class TrainingHarness:
    """Starts attempts that use one bucket."""

    server: ForkServerProcess
    settings: StorageSettings
    store: ObjectStore
    bucket: str
    folder: Path
    models: Path
    prepared: dict[str, Prepared] = field(default_factory=dict)
    started: int = 0

    @property
    def cache(self) -> Path:
        """Cache folder of the host, shared by all attempts."""
        return self.folder / "cache"

    def config(
        self, name: str, *, kind: str, attempt: int = 1, run: int = 1, world: int = 2, **change: Any
    ) -> TrainerConfig:
        """`kind` is the base model, `masked` for MaskedLM, `llama-packed` the model `llama` with packs,
        `llama-vocabulary` with new tokens, `pairs` for Preference; `change` are blocks of the spec, and `zero`,
        `dtype`, `stage`, `batch`, `micro`."""
        batch = change.pop("batch", GLOBAL_BATCH)
        zero, dtype = change.pop("zero", 2), change.pop("dtype", "Float32")
        micro, stage = change.pop("micro", 2), change.pop("stage", Stage.TRAIN)
        spec: dict[str, Any] = {
            "model": {"uri": f"file://{self.models / kind.removesuffix(PACKED).removesuffix(VOCABULARY)}"},
            "data": {"train": [{"uri": f"s3://{self.bucket}/{kind.partition('-')[0]}.jsonl"}], "maxLength": 32},
            "method": {"full": {}},
            "training": {"epochs": 2, "learningRate": 5e-3, "globalBatchSize": batch},
            "checkpoint": {"everySteps": 1000},
            "output": {"uri": f"s3://{self.bucket}/{name}"},
            "workers": {"nodes": world},
        }
        if kind.startswith(MASKED):
            spec["model"]["task"] = "MaskedLM"
        if kind.startswith(PAIRS):
            spec["method"], spec["data"]["maxLength"] = {"lora": {}}, 64
        if kind.endswith(PACKED):
            spec["training"]["batching"] = "Packed"
        if kind.endswith(VOCABULARY):
            spec["model"]["vocabulary"] = {"add": ["cheese", "horse"], "learn": 4}
        for block, value in change.items():
            spec[block] = spec.get(block, {}) | value if block != "method" else value
        # Models of this size would never be partitioned.
        small = {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 100}}}
        spec["deepspeed"] = spec.get("deepspeed", {}) | (small if zero == 3 else {})
        prepared = self.prepared.get(kind)
        if prepared is not None:
            prepared = prepared.model_copy(update={"zero_stage": zero, "dtype": Dtype(dtype)})
            if prepared.vocabulary is not None:
                self._copy_model(f"prepare-{kind}", name, prepared)
        return TrainerConfig(
            job=JobRef(namespace="test", name=name, uid="1"),
            run=run,
            stage=stage,
            attempt=attempt,
            spec=Spec.model_validate(spec),
            storage=self.settings,
            world=World(nodes=world),
            batch=BatchPlan(global_size=batch, micro_size=micro, accumulation=batch // world // micro),
            prepared=prepared if stage is Stage.TRAIN else None,
        )

    def _copy_model(self, source: str, name: str, prepared: Prepared) -> None:
        """The prepare stage stores a model with new tokens under its own output."""
        folder = f"models/{prepared.model_digest}/"
        for info in self.store.list(f"s3://{self.bucket}/{source}/{folder}"):
            target = f"s3://{self.bucket}/{name}/{folder}{info.uri.rpartition('/')[2]}"
            self.store.put(target, self.store.get(info.uri))

    def run(self, config: TrainerConfig, *, target: str = "train_ranks:train_rank", **env: str) -> Attempt:
        """Run one attempt to its end, with any result."""
        return self.start(config, target=target, **env).ended()

    def finish(self, config: TrainerConfig, *, target: str = "train_ranks:train_rank", **env: str) -> Attempt:
        """Run one attempt that must succeed."""
        attempt = self.run(config, target=target, **env)
        assert attempt.exit_codes == [0] * config.world.size, attempt.output
        return attempt

    def interrupt(self, config: TrainerConfig, step: int, *, how: str, **env: str) -> Attempt:
        """Run one attempt that is interrupted after a step: `how` is `kill`, or `stop`, which saves."""
        attempt = self.run(config, TEST_END=how, TEST_END_STEP=str(step), **env)
        assert attempt.exit_codes == [{"kill": -9, "stop": 75}[how]] * config.world.size, attempt.output
        return attempt

    def check_same_result(self, config: TrainerConfig, last: Attempt, through: TrainerConfig, whole: Attempt) -> None:
        """The log and the exported model of an interrupted run are those of a run `through` without interruption, in
        every bit. `last` and `whole` are the attempts that ended the runs."""
        assert self.training_log(config) == self.training_log(through)
        assert last.message.trained is not None
        assert whole.message.trained is not None
        assert last.message.trained.digest == whole.message.trained.digest

    def check_resume(self, name: str, *, kills: Sequence[int], **blocks: Any) -> tuple[TrainerConfig, Attempt]:
        """A run that is killed at these steps, one attempt each, has the same result as one that is not.

        Returns the configuration of the uninterrupted run, and the last attempt of the other.
        """
        through = self.config(f"{name}-through", **blocks)
        whole = self.finish(through)
        saves = {"checkpoint": {"everySteps": 1}}
        for attempt, step in enumerate(kills, start=1):
            self.interrupt(self.config(name, attempt=attempt, **blocks, **saves), step, how="kill")
        config = self.config(name, attempt=len(kills) + 1, **blocks, **saves)
        last = self.finish(config)
        self.check_same_result(config, last, through, whole)
        return through, last

    def check_move(
        self, name: str, *, before: int = 2, after: int = 1, step: int = 4, near: float = 1e-4, **blocks: Any
    ) -> None:
        """A run of two workers that continues with one, and with another ZeRO stage, has nearly the same losses.

        `before` and `after` are the stages, `near` the accepted relative difference.
        """
        through = self.config(f"{name}-one", **blocks)
        self.finish(through)
        self.interrupt(self.config(name, zero=before, **blocks), step, how="stop")
        config = self.config(name, attempt=2, world=1, zero=after, **blocks)
        self.finish(config)
        assert self.losses(config) == pytest.approx(self.losses(through), rel=near)

    def start(self, config: TrainerConfig, *, target: str, **env: str) -> Started:
        """Start one attempt."""
        self.started += 1
        scratch = self.folder / f"attempt-{self.started}"
        scratch.mkdir()
        path = scratch / "config.json"
        path.write_text(config.model_dump_json())
        world, port = config.world.size, free_port()
        with (scratch / "log").open("wb") as output:
            ranks = [
                ForkClient(self.server.path).start_rank(
                    self._environment(rank, world, port, scratch) | env, path, output.fileno(), target=target
                )
                for rank in range(world)
            ]
        return Started(ranks, scratch)

    def _environment(self, rank: int, world: int, port: int, scratch: Path) -> dict[str, str]:
        return base_environment() | {
            Env.RANK: str(rank),
            Env.LOCAL_RANK: str(rank),
            Env.WORLD_SIZE: str(world),
            Env.LOCAL_WORLD_SIZE: str(world),
            Env.MASTER_ADDR: "127.0.0.1",
            Env.MASTER_PORT: str(port),
            Env.SCRATCH: str(scratch),
            Env.CACHE: str(self.cache),
            Env.FORK_SERVER: str(self.server.path),
        }

    def prepare(self, kind: str, *, name: str = "", **blocks: Any) -> Prepared:
        """Run the real prepare stage, for the run `name`, with these blocks of the spec."""
        name = name or f"prepare-{kind}"
        attempt = self.run(self.config(name, kind=kind, world=1, stage=Stage.PREPARE, **blocks), target=RUN_RANK)
        assert attempt.exit_codes == [0], attempt.output
        assert attempt.message.prepared is not None
        self.prepared[kind] = attempt.message.prepared
        return self.prepared[kind]

    def training_log(self, config: TrainerConfig) -> list[dict[str, float]]:
        """The log of the run, as the report reads it."""
        document = self.store.get_json(config.layout.training_log)
        log: list[dict[str, float]] = document["log"]
        return log

    def losses(self, config: TrainerConfig) -> list[float]:
        """Losses of the logged steps."""
        return [entry["loss"] for entry in self.training_log(config) if "loss" in entry]

    def exported_loss(self, config: TrainerConfig) -> float:
        """Mean validation loss of the exported state, as the train stage measured it row by row."""
        losses: list[float] = self.store.get_json(config.layout.reference)["losses"]
        return sum(losses) / len(losses)

    def evaluation_losses(self, config: TrainerConfig) -> dict[int, float]:
        """Step -> validation loss of every logged evaluation."""
        return {int(entry["step"]): entry["eval_loss"] for entry in self.training_log(config) if "eval_loss" in entry}

    def loaded(self, config: TrainerConfig, folder: Path) -> dict[str, Any]:
        """Load the exported folders in a new process, only from their files."""
        for artifact in config.spec.output.formats or (ArtifactFormat.MERGED,):
            name = "model" if artifact is ArtifactFormat.MERGED else "adapter"
            self.store.download_folder(f"{config.run_uri}/{name}", folder / name)
        (folder / "config.json").write_text(config.model_dump_json())
        with (folder / "log").open("wb") as output:
            rank = ForkClient(self.server.path).start_rank(
                base_environment(), folder, output.fileno(), target="train_ranks:load_exported"
            )
        assert rank.wait(120) == 0, (folder / "log").read_text()
        found: dict[str, Any] = json.loads((folder / "loaded.json").read_text())
        return found

    def manifests(self, config: TrainerConfig) -> list[str]:
        """Names of the committed checkpoints."""
        listed = self.store.list(f"{config.layout.manifests}/")
        return sorted(info.uri.rpartition("/")[2].removesuffix(".json") for info in listed)


@contextmanager
def open_harness(
    settings: StorageSettings, bucket: str, folder: Path, kinds: Sequence[str]
) -> Iterator[TrainingHarness]:
    """Models of a few ten thousand parameters, and data prepared by the real stage.

    The credentials of storage are in the environment.
    """
    server = ForkServerProcess.start(folder / "fork.sock", env=base_environment())
    try:
        harness = TrainingHarness(server, settings, ObjectStore.connect(settings), bucket, folder, folder / "models")
        make_models(harness)
        for name in {kind.partition("-")[0] for kind in kinds}:
            lines = "".join(json.dumps(row) + "\n" for row in rows(name))
            harness.store.put(f"s3://{bucket}/{name}.jsonl", lines.encode())
        for kind in kinds:
            harness.prepare(kind)
        yield harness
    finally:
        server.stop()


def rows(kind: str) -> list[dict[str, str]]:
    """Sentences about animals and food, of different length; the labels can be learned. In pairs, the chosen answer is
    the one about food."""
    draw = random.Random(7)
    if kind == PAIRS:
        answers = [
            {name: " ".join(draw.choices(_WORDS[name], k=draw.randint(2, 5))) for name in _WORDS} for _ in range(ROWS)
        ]
        return [{"prompt": "a fox", "chosen": answer["food"], "rejected": answer["animal"]} for answer in answers]
    made = []
    for index in range(ROWS):
        label = ("animal", "food")[index % 2]
        words = " ".join(draw.choices(_WORDS[label], k=draw.randint(2, 9)))
        made.append({"text": words, "label": label} if kind == "bert" else {"text": words})
    return made


def make_models(harness: TrainingHarness) -> None:
    """Create the models in a separate process, so that the test process does not import torch."""
    environ = base_environment() | {"TEST_MODELS": str(harness.models)}
    with (harness.folder / "models.log").open("wb") as output:
        rank = ForkClient(harness.server.path).start_rank(
            environ, harness.models, output.fileno(), target="train_ranks:make_models"
        )
    assert rank.wait(120) == 0, (harness.folder / "models.log").read_text()
