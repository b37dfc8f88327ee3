"""What of a spec counts while the object breaks the rules: whatever runs goes on, and can always be stopped."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from finetune_api.constants import Reason
from finetune_api.v1alpha1 import Budget, Restart, Spec, Workers

from ..observed import Observed
from .stages import Backoff, Decision, Finish, ScaleDown, Start, Stop, Watch

Block = TypeVar("Block", bound=BaseModel)
_SUSPEND = TypeAdapter(bool)


def is_readable(written: Mapping[str, Any]) -> bool:
    """Whether everything that can stop a run is well-formed in a spec, so that no older one has to be looked up."""
    return None not in (_suspend(written), _block(written, "budget", Budget), _block(written, "restart", Restart))


def spec_in_force(written: Mapping[str, Any], last: Spec | None) -> Spec:
    """`suspend`, `budget` and `restart` of the object where they are well-formed, else of the last valid spec.

    Nothing can be started from it: it has no more than that where `last`, the spec of the newest attempt, is not known.
    """
    suspend = _suspend(written)
    update: dict[str, Any] = {
        "suspend": (last is not None and last.suspend) if suspend is None else suspend,
        "budget": _block(written, "budget", Budget) or (last.budget if last else Budget()),
        "restart": _block(written, "restart", Restart) or (last.restart if last else Restart()),
    }
    if last is not None:
        return last.model_copy(update=update)
    return Spec.model_construct(**update, workers=Workers(), ttl_seconds_after_finished=None)


def without_starts(decision: Decision, observed: Observed) -> Decision:
    """The decision as far as it may be carried out; None: all waits until the object is corrected.

    A failure is not made final either: what the corrected spec allows is not known yet.
    """
    match decision:
        case ScaleDown() | Stop(_, Reason.FEWER_WORKERS):
            newest = observed.active[-1]
            return Watch(newest.stage, newest.attempt)
        case Start() | Backoff() | Finish(succeeded=False):
            return None
    return decision


def _suspend(written: Mapping[str, Any]) -> bool | None:
    """None: it is there and not well-formed."""
    try:
        return _SUSPEND.validate_python(written.get("suspend", False), strict=True)
    except ValidationError:
        return None


def _block(written: Mapping[str, Any], name: str, model: type[Block]) -> Block | None:
    try:
        return model.model_validate(written.get(name, {}), strict=True)
    except ValidationError:
        return None
