"""Runs the prepare stage on files of a test."""

import itertools
from pathlib import Path
from typing import Any

from finetune_api.constants import Stage
from finetune_api.trainer_config import BatchPlan, JobRef, Prepared, StorageSettings, TrainerConfig, World
from finetune_api.v1alpha1 import Spec
from finetune_trainer.data.prepare import prepare
from finetune_trainer.data.shards import TokenDataset
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.runtime import RuntimeEnv
from finetune_trainer.store import ObjectStore


class PrepareFixture:
    """A bucket with files, and the prepare stage on them."""

    def __init__(self, store: ObjectStore, bucket: str, settings: StorageSettings, folder: Path) -> None:
        self.store = store
        self.uri = f"s3://{bucket}"
        self.settings = settings
        self.folder = folder
        self.report = ProgressReporter(folder, stage=Stage.PREPARE)
        self.runs = itertools.count(1)

    def put(self, name: str, content: bytes) -> str:
        uri = f"{self.uri}/data/{name}"
        self.store.put(uri, content)
        return uri

    def config(self, model: Path | str, data: dict[str, Any], /, **blocks: Any) -> TrainerConfig:
        training = {"learningRate": 1e-3, "globalBatchSize": 8} | blocks.pop("training", {})
        spec = Spec.model_validate(
            {
                "model": {"uri": f"file://{model}" if isinstance(model, Path) else model},
                "data": data,
                "training": training,
                "output": {"uri": f"{self.uri}/out"},
            }
            | blocks
        )
        return TrainerConfig(
            job=JobRef(namespace="default", name="job", uid=""),
            run=1,
            stage=Stage.PREPARE,
            spec=spec,
            storage=self.settings,
            world=World(),
            batch=BatchPlan(global_size=8, micro_size=8, accumulation=1),
        )

    def prepare(
        self, model: Path | str, data: dict[str, Any], /, *, separate_node: bool = False, **blocks: Any
    ) -> Prepared:
        """`separate_node`: with its own cache, like on another node."""
        scratch = self.folder / f"scratch-{next(self.runs)}"
        runtime = RuntimeEnv(
            rank=0,
            world_size=1,
            local_rank=0,
            local_world_size=1,
            scratch=scratch,
            cache=scratch / "cache" if separate_node else self.folder / "cache",
        )
        report = ProgressReporter(None, stage=Stage.PREPARE) if separate_node else self.report
        return prepare(self.config(model, data, **blocks), self.store, runtime, report)

    def open(self, prepared: Prepared, split: str = "train") -> TokenDataset:
        return TokenDataset.open(self.store, prepared.dataset_uri, split, self.folder / "cache")
