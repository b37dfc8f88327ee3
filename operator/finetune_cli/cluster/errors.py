"""What a cluster's refusals mean for the user: one clear line, and an exit status that scripts can rely on. Pure."""

import difflib
from collections.abc import Sequence
from http import HTTPStatus

from finetune_api.constants import KIND
from finetune_api.exit_codes import ExitCode
from finetune_operator.errors import ApiError, ApiUnreachableError

from ..exit_status import FAILED, CommandError, MissingJobError

_SHOWN_NAMES = 5
_DENIED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


def refused(error: ApiError | ApiUnreachableError) -> CommandError:
    """Return the error for a failed request, with the message of the API server if there is one."""
    if isinstance(error, ApiUnreachableError):
        return CommandError(f"the cluster does not answer: {error}", ExitCode.STORAGE_UNREACHABLE)
    if is_unknown_kind(error):
        return CommandError(
            f"the cluster does not know {KIND}; install it: `finetune crd | kubectl apply --server-side -f -`",
            ExitCode.BAD_CONFIG,
        )
    if error.status in _DENIED:
        return CommandError(f"the cluster refuses: {error}", ExitCode.ACCESS_DENIED)
    if is_passing(error):
        return CommandError(f"the cluster cannot answer: {error}", ExitCode.STORAGE_UNREACHABLE)
    return CommandError(f"the cluster refuses: {error}", FAILED)


def is_unknown_kind(error: ApiError) -> bool:
    """The API server knows no FineTuneJobs, in contrast to: not this one."""
    return error.is_missing and (error.reason != "NotFound" or "the requested resource" in str(error))


def is_passing(error: ApiError | ApiUnreachableError) -> bool:
    """The same call may well be answered in a moment."""
    if isinstance(error, ApiUnreachableError):
        return True
    return error.status == HTTPStatus.TOO_MANY_REQUESTS or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def no_connection(reason: str) -> CommandError:
    """Nothing leads to a cluster."""
    return CommandError(f"no way to a cluster: {reason}; give --kubeconfig or set KUBECONFIG", ExitCode.BAD_CONFIG)


def missing_job(name: str, known: Sequence[str], *, namespace: str, where: str) -> MissingJobError:
    """There is no such job, but perhaps one that was meant."""
    message = f"there is no {KIND} {name} in namespace {namespace} ({where})"
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return MissingJobError(f"{message}; did you mean {' or '.join(close)}?")
    if known:
        more = f" and {len(known) - _SHOWN_NAMES} more" if len(known) > _SHOWN_NAMES else ""
        return MissingJobError(f"{message}; existing jobs: {', '.join(known[:_SHOWN_NAMES])}{more}")
    return MissingJobError(f"{message}; the namespace has none")
