"""Errors of the operator.

OperatorError
├── ClusterConflictError   an object of another owner has the name of a child
├── ApiError               the API server returned an error status
│   └── StaleError         the object has changed since it was read; reconcile again
└── ApiUnreachableError    no response; the request may or may not have been executed
"""

from http import HTTPStatus


class OperatorError(Exception):
    """Base class of errors of the operator."""


class ClusterConflictError(OperatorError):
    """An object of another owner has the name of a child."""


class ApiError(OperatorError):
    """The API server returned an error status."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message or f"the API server returned {status} {reason}")
        self.status = status
        self.reason = reason
        """Reason of the Status object, such as `AlreadyExists`."""
        self.retry_after = retry_after
        """Seconds to wait, from the header Retry-After."""

    @property
    def is_missing(self) -> bool:
        """Whether the object or its namespace does not exist."""
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def exists(self) -> bool:
        """Whether an object of that name exists."""
        return self.reason == "AlreadyExists"

    @property
    def is_lasting(self) -> bool:
        """Whether the same request would fail again because of a rule, quota or permission of the cluster."""
        return self.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY}


class StaleError(ApiError):
    """The object has changed since it was read."""


class ApiUnreachableError(OperatorError):
    """No response in time. The request may or may not have been executed."""
