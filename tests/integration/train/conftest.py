"""One bucket, one fork server, prepared data and tiny models for all tests of this folder."""

from collections.abc import Iterator

import pytest

from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from training_harness import TrainingHarness, open_harness


@pytest.fixture(scope="session")
def harness(store_server: EmbeddedStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingHarness]:
    """Every kind of model and data."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store_server.env().items():
            patch.setenv(name, value)
        store_server.create_bucket("train-harness")
        settings = StorageSettings(endpoint=store_server.endpoint, path_style=True)
        kinds = (
            "bert",
            "bert-dropout",
            "llama",
            "llama-dropout",
            "llama-packed",
            "llama-vocabulary",
            "masked",
            "pairs",
            "pairs-dropout",
        )
        with open_harness(settings, "train-harness", tmp_path_factory.mktemp("train"), kinds) as made:
            yield made
