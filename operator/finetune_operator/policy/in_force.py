"""The part of an invalid spec that applies: a run in progress continues and can be stopped."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from finetune_api.scopes import with_scopes
from finetune_api.v1alpha1 import Budget, Restart, Scope, Spec, Workers

Block = TypeVar("Block", bound=BaseModel)
_SUSPEND = TypeAdapter(bool)


def is_readable(written: Mapping[str, Any]) -> bool:
    """Whether all fields that can stop a run are valid, so that the last valid spec is not needed."""
    return None not in (_suspend(written), _block(written, "budget", Budget), _block(written, "restart", Restart))


def spec_in_force(written: Mapping[str, Any], last: Spec | None) -> Spec:
    """Return the last valid spec with `suspend`, `budget` and `restart` of the object if these are valid.

    `last` is the spec of the newest attempt. If it is unknown, the result has only these fields, and no attempt can be
    started from it.
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


def spec_of_run(written: Spec, started: Spec) -> Spec:
    """Return the spec of a run that continues although the object describes another run.

    Fields that determine the result are those that the run was started with; all others are the current ones.
    """
    return with_scopes(written, started, {Scope.DATA, Scope.RUN})


def is_partial(spec: Spec) -> bool:
    """Whether a spec has only the fields that can stop a run, because the last valid spec is unknown."""
    return "model" not in spec.model_fields_set  # required, so every spec of a user has it


def _suspend(written: Mapping[str, Any]) -> bool | None:
    """Return the value of `suspend`; None if it is not valid."""
    try:
        return _SUSPEND.validate_python(written.get("suspend", False), strict=True)
    except ValidationError:
        return None


def _block(written: Mapping[str, Any], name: str, model: type[Block]) -> Block | None:
    try:
        return model.model_validate(written.get(name, {}), strict=True)
    except ValidationError:
        return None
