"""One bucket, one fork server, prepared data and tiny models for all tests of this folder."""

from collections.abc import Iterator

import pytest

from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from train_lab import Lab, open_lab


@pytest.fixture(scope="session")
def lab(store_server: EmbeddedStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Every kind of model and data."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store_server.env().items():
            patch.setenv(name, value)
        store_server.create_bucket("train-lab")
        settings = StorageSettings(endpoint=store_server.endpoint, path_style=True)
        kinds = ("bert", "bert-dropout", "llama", "llama-dropout")
        with open_lab(settings, "train-lab", tmp_path_factory.mktemp("train"), kinds) as made:
            yield made
