"""Translation of error responses."""

import json
from typing import Any

import pytest

from finetune_operator.clusters.api_server import refusal_of
from finetune_operator.errors import ApiError, StaleError

STATUS = {"kind": "Status", "reason": "Conflict", "message": "the object has been modified", "code": 409}


@pytest.mark.parametrize(
    ("status", "content", "headers", "kind", "message", "retry_after"),
    [
        (409, json.dumps(STATUS).encode(), None, StaleError, "the object has been modified", None),
        (409, json.dumps({**STATUS, "reason": "AlreadyExists"}), None, ApiError, "the object has been modified", None),
        (429, b"slow down", {"Retry-After": "7"}, ApiError, "slow down", 7.0),
        (503, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, ApiError, "", None),
        (502, b"<html>\xff</html>", {}, ApiError, "<html>\ufffd</html>", None),
        (500, b"null", None, ApiError, "null", None),
        (500, b"[1]", None, ApiError, "[1]", None),
        (400, None, None, ApiError, "", None),
    ],
)
def test_an_error_has_the_message_of_the_server(
    status: int, content: Any, headers: Any, kind: type[ApiError], message: str, retry_after: float | None
) -> None:
    error = refusal_of(status, content, headers)
    assert (type(error), error.status, error.retry_after) == (kind, status, retry_after)
    assert message in str(error)
