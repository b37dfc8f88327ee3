"""How long a request is retried: the time limit, what restarts it, and replaced credentials."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import ClientError, EndpointConnectionError

from finetune_trainer.errors import AccessDeniedError, StorageUnreachableError
from finetune_trainer.store.credentials import RotatingCredentials
from finetune_trainer.store.retry import Meter, RetryPolicy
from finetune_trainer.store.uri import parse

ADDRESS = parse("s3://bucket/key")
SHORT = RetryPolicy(total_seconds=0.05, first_delay=0.001, max_delay=0.002)


def run(policy: RetryPolicy, request: Callable[[], Any], meter: Meter | None = None) -> Any:
    return policy.run(request, lambda: ADDRESS, "http://storage", meter)


class Transfer:
    """Fails at the given numbers of bytes, each try taking longer than the policy's time limit."""

    def __init__(self, *ends: int) -> None:
        self.ends, self.meter, self.tries = list(ends), Meter(), 0

    def __call__(self) -> str:
        self.tries += 1
        self.meter.begin()
        if not self.ends:
            return "done"
        self.meter.add(self.ends.pop(0))
        until_late = time.monotonic() + 2 * SHORT.total_seconds
        while time.monotonic() < until_late:
            pass
        raise ConnectionError("broken off")


def test_a_transfer_that_gets_further_each_time_is_retried() -> None:
    transfer = Transfer(10, 20, 30, 40, 50, 60, 70, 80)
    assert run(SHORT, transfer, transfer.meter) == "done"


def test_a_transfer_that_fails_earlier_than_before_is_retried() -> None:
    transfer = Transfer(30, 20, 25)
    assert run(SHORT, transfer, transfer.meter) == "done"


def test_a_transfer_that_always_fails_at_the_same_byte_ends() -> None:
    transfer = Transfer(*[10] * 50)
    with pytest.raises(StorageUnreachableError):
        run(SHORT, transfer, transfer.meter)
    assert 5 <= transfer.tries <= 10


def test_a_transfer_without_progress_ends_at_the_time_limit() -> None:
    transfer = Transfer(*[0] * 50)
    with pytest.raises(StorageUnreachableError):
        run(SHORT, transfer, transfer.meter)
    assert transfer.tries <= 2


def test_restarted_parts_are_not_progress() -> None:
    meter = Meter()
    meter.begin(100)
    meter.add(50)
    meter.add(-50)
    meter.add(50)
    assert (meter.furthest, meter.moved) == (150, 100)


class Credentials:
    """Replaced after a number of lookups."""

    def __init__(self, *, comes_after: int) -> None:
        self.generation, self.looks, self.comes_after = 0, 0, comes_after

    def renew(self, generation: int) -> bool:
        self.looks += 1
        if self.looks > self.comes_after and self.generation == generation:
            self.generation += 1
        return self.generation != generation


def refused(code: str, status: int) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


@pytest.mark.parametrize(
    ("code", "status", "comes_after"),
    [("ExpiredToken", 400, 0), ("ExpiredToken", 400, 3), ("InvalidAccessKeyId", 403, 0), ("400", 400, 0)],
)
def test_a_rejected_request_is_retried_with_new_credentials(code: str, status: int, comes_after: int) -> None:
    """Files in a pod may change a little later than their credentials expire."""
    credentials = Credentials(comes_after=comes_after)

    def request() -> str:
        if credentials.generation == 0:
            raise refused(code, status)
        return "done"

    assert run(RetryPolicy(first_delay=0.001, credentials=credentials), request) == "done"


def identity(*errors: Exception) -> RotatingCredentials:
    """A workload identity whose tries to get keys fail one after the other; the last error is repeated."""
    left = list(errors)

    def refresh() -> None:
        raise left.pop(0) if len(left) > 1 else left[0]

    found = RefreshableCredentials("old", "s", "t", datetime.now(UTC) - timedelta(1), refresh, "identity")
    return RotatingCredentials(lambda: found, lambda: 0)


@pytest.mark.parametrize(
    ("error", "expected", "is_tried_again"),
    [
        (refused("ExpiredTokenException", 400), AccessDeniedError, True),
        (refused("InvalidIdentityToken", 400), AccessDeniedError, False),
        (refused("AccessDenied", 403), AccessDeniedError, False),
        (FileNotFoundError("/var/run/secrets/token"), AccessDeniedError, False),
        (RuntimeError("still expired"), AccessDeniedError, False),
        (EndpointConnectionError(endpoint_url="https://sts"), StorageUnreachableError, True),
        (refused("InternalFailure", 500), StorageUnreachableError, True),
    ],
    ids=repr,
)
def test_an_identity_that_gets_no_keys_raises_our_own_error(
    error: Exception, expected: type[Exception], is_tried_again: bool
) -> None:
    credentials, tries = identity(error), []

    def request() -> None:
        tries.append(1)
        credentials.get_frozen_credentials()

    policy = RetryPolicy(total_seconds=0.05, first_delay=0.001, max_delay=0.01, credentials=credentials)
    with pytest.raises(expected):
        run(policy, request)
    assert (len(tries) > 1) is is_tried_again


@pytest.mark.parametrize(("code", "status"), [("AccessDenied", 403), ("ExpiredToken", 400)])
def test_without_new_credentials_access_is_denied(code: str, status: int) -> None:
    credentials = Credentials(comes_after=10**6)

    def request() -> None:
        raise refused(code, status)

    policy = RetryPolicy(total_seconds=0.05, first_delay=0.001, max_delay=0.01, credentials=credentials)
    with pytest.raises(AccessDeniedError):
        run(policy, request)
    assert credentials.looks == 1 if code == "AccessDenied" else credentials.looks > 1


def test_new_credentials_each_time_do_not_retry_a_denied_request_forever() -> None:
    """An identity provider issues new keys at each lookup, even for a role without access to the bucket."""
    credentials, sent = Credentials(comes_after=0), []

    def request() -> None:
        sent.append(credentials.generation)
        raise refused("AccessDenied", 403)

    with pytest.raises(AccessDeniedError):
        run(RetryPolicy(first_delay=0.001, credentials=credentials), request)
    assert sent == [0, 1]


def test_a_long_transfer_can_use_several_sets_of_credentials() -> None:
    credentials, meter = Credentials(comes_after=0), Meter()

    def request() -> str:
        if credentials.generation == 3:
            return "done"
        meter.begin(meter.furthest)
        meter.add(10)
        raise refused("ExpiredToken", 400)

    assert run(RetryPolicy(first_delay=0.001, credentials=credentials), request, meter) == "done"
