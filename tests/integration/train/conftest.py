"""One bucket, one fork server, prepared data and tiny models for all tests of this folder."""

import json
from collections.abc import Iterator

import pytest

from finetune_api.trainer_config import StorageSettings
from finetune_cli.embedded_store import EmbeddedStore
from finetune_trainer.forkclient import ForkServerProcess
from finetune_trainer.store import ObjectStore
from process_support import base_environment
from train_lab import Lab, make_models, rows


@pytest.fixture(scope="session")
def lab(store_server: EmbeddedStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Models of a few ten thousand parameters, and data prepared by the real stage."""
    folder = tmp_path_factory.mktemp("train")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store_server.env().items():
            patch.setenv(name, value)
        store_server.create_bucket("train-lab")
        settings = StorageSettings(endpoint=store_server.endpoint, path_style=True)
        server = ForkServerProcess.start(folder / "fork.sock", env=base_environment())
        try:
            made = Lab(server, settings, ObjectStore.connect(settings), "train-lab", folder, folder / "models")
            make_models(made)
            for kind in ("bert", "llama"):
                lines = "".join(json.dumps(row) + "\n" for row in rows(kind))
                made.store.put(f"s3://{made.bucket}/{kind}.jsonl", lines.encode())
            for kind in ("bert", "bert-dropout", "llama", "llama-dropout"):
                made.prepare(kind)
            yield made
        finally:
            server.stop()
