"""The prepare stage on a bucket of the test, and the base models that it reads."""

from pathlib import Path

import pytest

import tiny_models
from prepare_fixture import PrepareFixture


@pytest.fixture
def place(store, bucket, storage_settings, tmp_path) -> PrepareFixture:
    return PrepareFixture(store, bucket, storage_settings, tmp_path)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """An encoder, and decoders with and without a chat template. Tests do not change the folders."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "bert": tiny_models.save_tiny_bert(folder / "bert"),
        "llama": tiny_models.save_tiny_llama(folder / "llama", tiny_models.CHATML),
        "gemma": tiny_models.save_tiny_llama(folder / "gemma", tiny_models.GEMMA),
        "plain": tiny_models.save_tiny_llama(folder / "plain"),
    }


@pytest.fixture(scope="session")
def bert(models) -> Path:
    return models["bert"]


@pytest.fixture(scope="session")
def llama(models) -> Path:
    return models["llama"]
