"""Translation of library errors to our errors, for all classes."""

import inspect
from pathlib import Path
from typing import Any

import boto3.exceptions
import botocore.exceptions
import pytest
import s3transfer.exceptions
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from finetune_trainer.errors import (
    AccessDeniedError,
    BadConfigError,
    DiskFullError,
    ObjectMissingError,
    StorageProtocolError,
    StorageUnreachableError,
    TrainerError,
)
from finetune_trainer.store.faults import FOREIGN, disk_errors, is_transient, refused_key, translate
from finetune_trainer.store.uri import parse

ADDRESS, ENDPOINT = parse("s3://bucket/key"), "http://storage:8333"


def refusal(status: int, code: str) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "said"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (refusal(404, "NoSuchKey"), ObjectMissingError),
        (refusal(404, "404"), ObjectMissingError),
        (refusal(404, "NoSuchBucket"), BadConfigError),
        (refusal(301, "PermanentRedirect"), BadConfigError),
        (refusal(403, "SignatureDoesNotMatch"), AccessDeniedError),
        (refusal(403, "403"), AccessDeniedError),
        (refusal(400, "ExpiredToken"), AccessDeniedError),
        (NoCredentialsError(), AccessDeniedError),
        (refusal(400, "EntityTooLarge"), StorageProtocolError),
        (refusal(501, "NotImplemented"), StorageProtocolError),
        (refusal(503, "SlowDown"), StorageUnreachableError),
        (refusal(500, "InternalError"), StorageUnreachableError),
        (EndpointConnectionError(endpoint_url=ENDPOINT), StorageUnreachableError),
        (ReadTimeoutError(endpoint_url=ENDPOINT), StorageUnreachableError),
        (ConnectionResetError("reset"), StorageUnreachableError),
    ],
)
def test_a_library_error_becomes_ours(error: Exception, expected: type[TrainerError]) -> None:
    ours = translate(error, ADDRESS, ENDPOINT)
    assert type(ours) is expected
    assert is_transient(error) == (expected is StorageUnreachableError)
    assert ENDPOINT in str(ours)
    assert "s3://bucket/key" in str(ours)


def test_an_object_that_was_not_deleted_is_an_error() -> None:
    def answer(*codes: str) -> dict[str, Any]:
        return {"Errors": [{"Key": f"key{index}", "Code": code} for index, code in enumerate(codes)]}

    assert refused_key({}) is None
    assert refused_key(answer("NoSuchKey")) is None, "it does not exist"
    slow, locked = refused_key(answer("NoSuchKey", "SlowDown")), refused_key(answer("AccessDenied", "SlowDown"))
    assert slow is not None
    assert is_transient(slow)
    assert locked is not None
    assert type(translate(locked, ADDRESS, ENDPOINT)) is AccessDeniedError


@pytest.mark.parametrize("module", [botocore.exceptions, boto3.exceptions, s3transfer.exceptions])
def test_every_exception_class_of_the_libraries_is_caught(module: Any) -> None:
    classes = [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, Exception) and not issubclass(each, Warning) and each.__module__ == module.__name__
    ]
    assert classes
    assert [each for each in classes if not issubclass(each, FOREIGN)] == []


def test_a_full_disk_is_reported() -> None:
    with pytest.raises(DiskFullError, match="no space left to write /dev/full"), disk_errors(Path("/dev/full")):
        Path("/dev/full").write_bytes(b"x")


def test_other_disk_errors_are_not_translated() -> None:
    with pytest.raises(IsADirectoryError), disk_errors(Path("/")):
        Path("/").write_bytes(b"x")
