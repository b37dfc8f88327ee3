"""Exit statuses of the commands."""

from typing import Any

import pytest

from factories import merged
from finetune_api.exit_codes import PERMANENT_EXIT_CODES, ExitCode
from finetune_cli import exit_status
from finetune_cli.exit_status import CommandError, explain, of_error, of_status
from finetune_cli.job_file import JobFileError, JobFileMissingError
from finetune_cli.local.engine import KilledError
from finetune_cli.local.seaweed import EmbeddedStoreError
from finetune_trainer.errors import AccessDeniedError, BadConfigError, StorageUnreachableError
from statuses import FAILED, SUCCEEDED, SUSPENDED, job_with


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (SUCCEEDED, 0),
        (SUSPENDED, 3),
        ({"phase": "Invalid"}, 65),
        ({"phase": "Failed"}, 1),
        (FAILED, 65),
        *(
            (merged(FAILED, {"run": {"failure": {"exitCode": int(code)}}}), int(code))
            for code in sorted(PERMANENT_EXIT_CODES)
        ),
        *((merged(FAILED, {"run": {"failure": {"exitCode": code}}}), 1) for code in (70, 80, 81, 83, 137)),
    ],
)
def test_the_exit_status_follows_from_the_end_of_the_run(status: dict[str, Any], code: int) -> None:
    assert of_status(job_with(status).status) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("x"), 1),
        (CommandError("x", 2), 2),
        (JobFileError("x"), 65),
        (JobFileMissingError("x"), 66),
        (EmbeddedStoreError("x"), 69),
        (StorageUnreachableError("x"), 69),
        (AccessDeniedError("x"), 77),
        (BadConfigError("x"), 78),
        (KilledError(), 130),
    ],
)
def test_each_error_has_its_exit_status(error: Exception, code: int) -> None:
    assert isinstance(error, exit_status.USER_ERRORS)
    assert of_error(error) == code


def test_an_error_is_printed_with_its_advice() -> None:
    assert explain(BadConfigError("no bucket", advice="make it")) == "no bucket\nmake it"
    assert explain(JobFileError("wrong")) == "wrong"
    assert "last committed checkpoint" in explain(KilledError())


def test_the_documented_table_matches_the_code() -> None:
    table = exit_status.__doc__ or ""
    documented = {int(row.split("|")[1]) for row in table.splitlines() if row.startswith("| ") and row[2].isdigit()}
    named = {exit_status.SUCCEEDED, exit_status.FAILED, exit_status.USAGE, exit_status.SUSPENDED, exit_status.KILLED}
    used = PERMANENT_EXIT_CODES - {ExitCode.USAGE} | {ExitCode.STORAGE_UNREACHABLE}
    assert documented == named | {int(code) for code in used}
