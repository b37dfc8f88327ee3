"""Tiny models of many architectures, which the tests of this folder only read."""

from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_models


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of an architecture, which is made once."""
    made = tmp_path_factory.mktemp("tiny-models")

    def folder_of(family: str) -> Path:
        folder = made / family
        return folder if folder.exists() else tiny_models.save_tiny(family, folder)

    return folder_of
