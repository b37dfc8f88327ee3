"""The command that `finetune lm-eval` prints to download the model."""

from pathlib import Path

import pytest

from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import Checkpoint
from finetune_cli.commands.lm_eval import storage_options
from finetune_cli.commands.options import DEFAULT_WORK_DIR
from finetune_cli.stored_runs import Address

REGION = "eu-west-1"


@pytest.mark.parametrize(
    ("storage", "work_dir", "expected"),
    [
        (None, DEFAULT_WORK_DIR, ""),
        (None, Path("my work"), " --work-dir 'my work'"),
        (StorageSettings(endpoint="http://s3:9000"), Path("work"), " --endpoint http://s3:9000"),
        (StorageSettings(region=REGION), DEFAULT_WORK_DIR, f" --endpoint https://s3.{REGION}.amazonaws.com"),
    ],
    ids=["embedded", "work folder", "endpoint", "AWS"],
)
def test_the_download_reads_the_storage_of_the_run(
    storage: StorageSettings | None, work_dir: Path, expected: str
) -> None:
    address = Address("s3://b/runs/r0001-a", storage, is_local=True, checkpoint=Checkpoint())
    assert storage_options(address, work_dir) == expected
