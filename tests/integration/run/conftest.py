"""A complete local run with a tiny model: the real reconcile, real processes, real storage."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from factories import make_job
from finetune_api.progress import Progress
from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import FineTuneJob
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_cli.local.engine import RunOptions, fork_server, run_locally
from finetune_operator.clusters.local import LocalCluster
from finetune_trainer.store import ObjectStore
from rows import colors

ROOT = Path(__file__).parents[3]
SOURCES = os.pathsep.join(str(ROOT / name) for name in ("operator", "trainer"))


class RecordingDisplay:
    """Records what a run displays."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.progress: list[Progress] = []

    def __enter__(self) -> "RecordingDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, job: FineTuneJob, progress: Progress | None) -> None:
        if progress is not None:
            self.progress.append(progress)

    def event(self, text: str) -> None:
        self.events.append(text)

    def finish(self, job: FineTuneJob) -> None:
        return None


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One fork server for all runs of the session."""
    environ = {**os.environ, "PYTHONPATH": SOURCES}
    with fork_server(environ, tmp_path_factory.mktemp("fork") / "log") as path:
        yield path


@dataclass
class RunFixture:
    """Folder and shared inputs of test runs."""

    store: ObjectStore
    storage: StorageSettings
    bucket: str
    work_dir: Path
    preloaded: Path

    def job(self, name: str = "tiny", **spec: Any) -> dict[str, Any]:
        """A classifier of colors on a tiny BERT: 128 training rows, 8 steps per epoch."""
        base = {
            "model": {"uri": f"s3://{self.bucket}/model"},
            "data": {"train": [{"uri": f"s3://{self.bucket}/data.jsonl"}]},
            "training": {"learningRate": 1e-3, "epochs": 3},
            "checkpoint": {"everySteps": 4},
            "workers": {"nodes": 2},
            "output": {"uri": f"s3://{self.bucket}/out"},
        }
        return make_job(name, **{key: {**base.get(key, {}), **spec.get(key, {})} for key in {*base, *spec}})

    def run(
        self,
        manifest: dict[str, Any],
        on_tick: Callable[[FineTuneJob, Progress | None, LocalCluster], None] | None = None,
        **environ: str,
    ) -> FineTuneJob:
        options = RunOptions(
            work_dir=self.work_dir,
            storage=self.storage,
            environ={**os.environ, "PYTHONPATH": SOURCES, **environ},
            on_tick=on_tick,
            fork_server=self.preloaded,
        )
        return run_locally(manifest, options, RecordingDisplay())


@pytest.fixture
def bench(
    store: ObjectStore, storage_settings: StorageSettings, bucket: str, tmp_path: Path, preloaded: Path
) -> RunFixture:
    folder = tiny_models.save_tiny_bert(tmp_path / "model")
    store.upload_folder(folder, f"s3://{bucket}/model")
    store.put(f"s3://{bucket}/data.jsonl", colors())
    return RunFixture(store, storage_settings, bucket, tmp_path / "work", preloaded)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedStore]:
    """A server that the test may stop."""
    with EmbeddedStore(tmp_path / "own-store") as server:
        yield server
