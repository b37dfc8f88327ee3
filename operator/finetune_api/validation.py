"""From a manifest to a FineTuneJob, or to every violation at once. Pure."""

import difflib
import json
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .constants import LAST_APPLIED
from .rules import Violation, violations
from .v1alpha1 import FineTuneJob
from .v1alpha1.base import NEEDED


class InvalidJobError(ValueError):
    """The object breaks the schema or the rules; `violations` lists everything that is wrong."""

    def __init__(self, found: tuple[Violation, ...]) -> None:
        self.violations = found
        super().__init__("\n".join(str(violation) for violation in found))


def parse_job(manifest: Mapping[str, Any], *, local: bool = False) -> FineTuneJob:
    """Check schema and rules. Raises InvalidJobError with all violations; `local` allows `file://` addresses.

    Types are as strict as the API server's: the text "2e-4" is not a number.
    """
    try:
        job = FineTuneJob.model_validate_json(json.dumps(manifest), strict=True)
    except ValidationError as error:
        raise InvalidJobError(tuple(_violation(detail) for detail in error.errors())) from None
    found = violations(job.spec, local=local)
    if found:
        raise InvalidJobError(found)
    return job


def dropped_fields(manifest: Mapping[str, Any]) -> tuple[Violation, ...]:
    """What `kubectl apply` was given and the API server dropped, as far as kubectl's own note of it tells.

    The note stays as it was where somebody has mended the object by other means, so this is a remark, no violation.
    """
    note = manifest["metadata"].get("annotations", {}).get(LAST_APPLIED)
    try:
        applied = json.loads(note or "{}")
        FineTuneJob.model_validate({**manifest, "spec": applied.get("spec", {})})
    except ValidationError as error:
        details = [detail for detail in error.errors() if detail["type"] == "extra_forbidden"]
        return tuple(_violation(detail) for detail in details)
    except (ValueError, AttributeError):
        return ()
    return ()


def _violation(detail: ErrorDetails) -> Violation:
    path = ""
    for part in detail["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return Violation(path, _unknown_field(detail["loc"]))
    if kind == "missing":
        return Violation(path, "is required")
    shown = json.dumps(value, default=str)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    message = detail["msg"].removeprefix("Input should be ").removeprefix("a ")
    if kind == "enum":
        return Violation(path, f"{shown} is not one of {detail['ctx']['expected']}{_close_enum(value, detail)}")
    if kind == "string_pattern_mismatch":
        return Violation(path, f"{shown} is not valid, needed is {NEEDED[detail['ctx']['pattern']]}")
    if isinstance(value, str) and kind in {"float_type", "int_type", "bool_type"}:
        return Violation(
            path,
            f"{shown} is text, needed is {message}; write it without quotes",
        )
    return Violation(path, f"{shown} is not valid, needed is {message}")


def _close_enum(value: object, detail: ErrorDetails) -> str:
    allowed = [word.strip("' ") for word in detail["ctx"]["expected"].replace(" or ", ",").split(",")]
    close = difflib.get_close_matches(str(value).lower(), [word.lower() for word in allowed], n=1)
    match = next((word for word in allowed if close and word.lower() == close[0]), None)
    return f"; did you mean {match}?" if match else ""


def _unknown_field(loc: tuple[int | str, ...]) -> str:
    model: type[BaseModel] | None = FineTuneJob
    for part in loc[:-1]:
        model = model if isinstance(part, int) or model is None else _child(model, part)
    known = [] if model is None else [field.alias or name for name, field in model.model_fields.items()]
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(loc[-1]).lower(), list(by_lower), n=1, cutoff=0.6)
    if close:
        return f"unknown field; did you mean {by_lower[close[0]]}?"
    return f"unknown field; known here: {', '.join(known)}"


def _child(model: type[BaseModel], alias: str) -> type[BaseModel] | None:
    """The block that a field holds, through Optional, Annotated and tuple."""
    for name, field in model.model_fields.items():
        if (field.alias or name) == alias:
            return _find_model(field.annotation)
    return None


def _find_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_find_model(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)
