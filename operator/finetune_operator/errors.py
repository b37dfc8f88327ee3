"""Errors of the operator.

OperatorError
├── ClusterConflictError   a child's name is taken by an object that is not ours
├── ApiError               the API server has refused a call
│   └── StaleError         the object has changed since it was read: read again, decide again
└── ApiUnreachableError    no answer came: the call may have been carried out, or not
"""

from http import HTTPStatus


class OperatorError(Exception):
    """Something that the operator cannot go on with."""


class ClusterConflictError(OperatorError):
    """A child's name is taken by an object that another owner has made."""


class ApiError(OperatorError):
    """The API server has refused a call."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message or f"the API server answered {status} {reason}")
        self.status = status
        self.reason = reason
        """Kubernetes' word for it, such as `AlreadyExists`."""
        self.retry_after = retry_after
        """Seconds that the server asks to wait."""

    @property
    def is_missing(self) -> bool:
        """The object, or its namespace, is not there."""
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def exists(self) -> bool:
        """There is an object of that name already."""
        return self.reason == "AlreadyExists"

    @property
    def is_lasting(self) -> bool:
        """The same call would be refused again: the object breaks a rule, a quota or a permission of the cluster."""
        return self.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY}


class StaleError(ApiError):
    """The object has changed since it was read."""


class ApiUnreachableError(OperatorError):
    """No answer came in time: the call may have been carried out, or not."""
