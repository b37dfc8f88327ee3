"""Tests that a machine cannot run: skipped, named in the run's last lines, or failed where they are required."""

import os
from typing import NoReturn

import pytest

from testcluster.missing import MissingError

REASONS = pytest.StashKey[dict[str, str]]()


def is_required(what: str) -> bool:
    """Whether `FINETUNE_TEST_REQUIRE=kubernetes,pods` names it: a green run has to mean something there."""
    return what in os.environ.get("FINETUNE_TEST_REQUIRE", "").split(",")


def unavailable(config: pytest.Config, what: str, error: MissingError) -> NoReturn:
    """Skip, or fail where it is required."""
    config.stash[REASONS].setdefault(what, str(error))
    if is_required(what):
        pytest.fail(f"{what} is required and missing: {error}", pytrace=False)
    pytest.skip(str(error))
