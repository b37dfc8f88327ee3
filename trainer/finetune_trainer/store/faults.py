"""Translates the exceptions of boto3, s3transfer and the file system into subclasses of TrainerError."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boto3.exceptions import Boto3Error
from botocore import exceptions as aws
from s3transfer import exceptions as transfer
from urllib3.exceptions import HTTPError

from ..errors import (
    AccessDeniedError,
    BadConfigError,
    DiskFullError,
    ObjectMissingError,
    StorageProtocolError,
    StorageUnreachableError,
    TrainerError,
)
from .uri import S3Address

FOREIGN: tuple[type[Exception], ...] = (
    aws.BotoCoreError,
    aws.ClientError,
    aws.UndefinedModelAttributeError,
    Boto3Error,
    transfer.RetriesExceededError,
    transfer.S3UploadFailedError,
    transfer.S3DownloadFailedError,
    transfer.S3CopyFailedError,
    transfer.S3ValidationError,
    transfer.InvalidSubscriberMethodError,
    transfer.TransferNotDoneError,
    transfer.FatalError,
    HTTPError,
    ConnectionError,
    TimeoutError,
)
"""All exceptions that a request to storage may raise, except for TrainerError and errors of the local disk."""

_TRANSIENT: tuple[type[Exception], ...] = (
    aws.HTTPClientError,  # connection refused, closed or reset, time-outs, TLS, broken streams
    aws.ConnectionError,
    aws.IncompleteReadError,
    aws.ChecksumError,
    aws.FlexibleChecksumError,
    transfer.RetriesExceededError,
    HTTPError,
    ConnectionError,
    TimeoutError,
)
_CREDENTIALS: tuple[type[Exception], ...] = (
    aws.NoCredentialsError,
    aws.PartialCredentialsError,
    aws.CredentialRetrievalError,
    aws.UnknownCredentialError,
    aws.NoAuthTokenError,
    aws.TokenRetrievalError,
    aws.UnknownTokenProviderError,
    aws.ProfileNotFound,
    aws.SSOError,
    aws.LoginError,
)

_TRANSIENT_CODES = frozenset(
    {
        "SlowDown",
        "InternalError",  # these two for a single object; for a whole request, the HTTP status is enough
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "RequestTimeout",
        "RequestLimitExceeded",
        "ConditionalRequestConflict",  # another conditional write of the same key is in progress
        "OperationAborted",
    }
)
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_DENIED_CODES = _EXPIRED_CODES | {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "InvalidToken"}
_BUCKET_CODES = frozenset({"NoSuchBucket", "InvalidBucketName"})
_REGION_CODES = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed if it is retried."""
    if isinstance(error, aws.ClientError):
        status = http_status(error)
        return status == 429 or (status >= 500 and status != 501) or code_of(error) in _TRANSIENT_CODES
    return isinstance(error, _TRANSIENT)


def is_refusal(error: Exception) -> bool:
    """Whether other credentials may help. A HEAD response has only a status and no code; it is 400 for old tokens."""
    if isinstance(error, aws.ClientError):
        return http_status(error) in (401, 403) or code_of(error) in {*_DENIED_CODES, "400"}
    return isinstance(error, _CREDENTIALS)


def is_expired(error: Exception) -> bool:
    """Whether the server reports that the credentials, or the token that they are obtained with, have expired."""
    cause = error.__cause__ if isinstance(error, aws.CredentialRetrievalError) else error
    return isinstance(cause, aws.ClientError) and code_of(cause) in _EXPIRED_CODES


def code_of(error: aws.ClientError) -> str:
    """Return the S3 error code, such as `NoSuchKey`, or the status (`404`) for HEAD requests, which have no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def http_status(error: aws.ClientError) -> int:
    """Return the HTTP status, or 0 if there was no response."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def refused_key(answer: dict[str, Any]) -> aws.ClientError | None:
    """Return the error of the first object that a DeleteObjects request did not delete, although its status is 200."""
    for error in answer.get("Errors", ()):
        if error.get("Code") != "NoSuchKey":
            return aws.ClientError({"Error": error, "ResponseMetadata": {}}, "DeleteObjects")
    return None


def translate(error: Exception, address: S3Address, endpoint: str) -> TrainerError:
    """Return the TrainerError for `error`, which a request for `address` has raised."""
    if is_transient(error):
        return StorageUnreachableError(
            f"object storage at {endpoint} does not answer ({address}): {error}",
            advice="check that spec.storage.endpoint is correct and reachable; the run resumes from its last "
            "checkpoint",
        )
    if isinstance(error, _CREDENTIALS):
        return _denied(f"no usable credentials for {address} at {endpoint}: {error}")
    if isinstance(error, aws.ClientError):
        return _refusal(error, address, endpoint)
    if isinstance(error, aws.ParamValidationError):
        return BadConfigError(f"{address} is not a valid address: {' '.join(str(error).split())}")
    if isinstance(error, aws.BotoCoreError):
        return BadConfigError(f"object storage at {endpoint} cannot be used for {address}: {error}")
    return StorageProtocolError(f"the transfer of {address} at {endpoint} failed: {error}")


def _refusal(error: aws.ClientError, address: S3Address, endpoint: str) -> TrainerError:
    code, status = code_of(error), http_status(error)
    said = error.response.get("Error", {}).get("Message", "")
    if code in _BUCKET_CODES:
        return missing_bucket(address, endpoint)
    if code in _REGION_CODES:
        return BadConfigError(
            f"{address} at {endpoint} is in another region: {said}",
            advice="set spec.storage.region to the region of the bucket",
        )
    if status in (401, 403) or code in _DENIED_CODES:
        return _denied(f"object storage at {endpoint} denies access to {address}: {code} {said}".rstrip())
    if status == 404:
        return ObjectMissingError(f"{address} does not exist at {endpoint}")
    return StorageProtocolError(f"object storage at {endpoint} rejects a request for {address}: {code} {said}".rstrip())


def missing_bucket(address: S3Address, endpoint: str) -> BadConfigError:
    """Return the error for a missing bucket."""
    return BadConfigError(
        f"bucket {address.bucket!r} does not exist at {endpoint} ({address})",
        advice="create the bucket, or correct the address",
    )


def _denied(message: str) -> AccessDeniedError:
    return AccessDeniedError(message, advice="check the access key, the secret key and the permissions for the bucket")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise DiskFullError if writing `path` fails because of a full disk, a quota or a file-size limit."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRNOS:
            raise
        raise DiskFullError(
            f"no space left to write {path}: {error.strerror}",
            advice="give the pod's scratch or cache folder more space, or move it to a larger disk",
        ) from error
