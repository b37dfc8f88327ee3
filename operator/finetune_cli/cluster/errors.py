"""Convert errors of the API server to one-line messages with an exit status. Pure."""

import difflib
from collections.abc import Sequence
from http import HTTPStatus

from finetune_api.constants import KIND
from finetune_api.exit_codes import ExitCode
from finetune_operator.errors import ApiError, ApiUnreachableError

from ..exit_status import FAILED, CommandError, MissingJobError

_SHOWN_NAMES = 5
_DENIED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


def command_error(error: ApiError | ApiUnreachableError) -> CommandError:
    """Return the error for a failed request, with the message of the API server if there is one."""
    if isinstance(error, ApiUnreachableError):
        return CommandError(f"the cluster is unreachable: {error}", ExitCode.STORAGE_UNREACHABLE)
    if is_unknown_kind(error):
        return CommandError(
            f"the cluster does not know {KIND}; install it: `finetune crd | kubectl apply --server-side -f -`",
            ExitCode.BAD_CONFIG,
        )
    if error.status in _DENIED:
        return CommandError(f"the cluster rejected the request: {error}", ExitCode.ACCESS_DENIED)
    if is_transient(error):
        return CommandError(f"the cluster is unavailable: {error}", ExitCode.STORAGE_UNREACHABLE)
    return CommandError(f"the cluster rejected the request: {error}", FAILED)


def is_unknown_kind(error: ApiError) -> bool:
    """Whether the CRD is missing, as opposed to this FineTuneJob."""
    return error.is_missing and (error.reason != "NotFound" or "the requested resource" in str(error))


def is_transient(error: ApiError | ApiUnreachableError) -> bool:
    """Whether a retry of the same request may succeed."""
    if isinstance(error, ApiUnreachableError):
        return True
    return error.status == HTTPStatus.TOO_MANY_REQUESTS or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def no_connection(reason: str) -> CommandError:
    """Return the error for a missing or invalid kubeconfig."""
    return CommandError(
        f"no connection to a cluster: {reason}; add --kubeconfig or set KUBECONFIG", ExitCode.BAD_CONFIG
    )


def missing_job(name: str, known: Sequence[str], *, namespace: str, where: str) -> MissingJobError:
    """Return the error for a missing job, with similar names or the existing ones."""
    message = f"there is no {KIND} {name} in namespace {namespace} ({where})"
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return MissingJobError(f"{message}; did you mean {' or '.join(close)}?")
    if known:
        more = f" and {len(known) - _SHOWN_NAMES} more" if len(known) > _SHOWN_NAMES else ""
        return MissingJobError(f"{message}; existing jobs: {', '.join(known[:_SHOWN_NAMES])}{more}")
    return MissingJobError(f"{message}; the namespace has none")
