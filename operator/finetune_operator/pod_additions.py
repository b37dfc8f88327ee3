"""Volumes, mounts and variables that an administrator adds to all pods of jobs, as in a pod. Pure."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from finetune_api.constants import VOLUMES
from finetune_api.rules import Violation
from finetune_api.v1alpha1 import Volume, VolumeMount
from finetune_api.v1alpha1.pod import FreeForm, VariableName
from finetune_api.validation import violation_of


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, use_attribute_docstrings=True, title=""
    )


class AddedVariableSource(_Strict):
    """Where the value of a variable comes from. Exactly one of the fields. Jobs have only the first two."""

    secret_key_ref: FreeForm | None = None
    """Key of a Secret in the namespace of the job."""
    config_map_key_ref: FreeForm | None = None
    """Key of a ConfigMap in the namespace of the job."""
    field_ref: FreeForm | None = None
    """Field of the pod, such as `status.hostIP`."""
    resource_field_ref: FreeForm | None = None
    """Request or limit of the container."""


class AddedVariable(_Strict):
    """An environment variable of the trainer container."""

    name: VariableName
    """Name of the variable."""
    value: str | None = None
    """Value."""
    value_from: Annotated[
        AddedVariableSource | None, Field(json_schema_extra={"minProperties": 1, "maxProperties": 1})
    ] = None
    """Read the value from elsewhere."""


AddedVolume = Annotated[Volume, Field(json_schema_extra={"minProperties": 2, "maxProperties": 2})]
"""A name and exactly one source."""


class _Additions(_Strict):
    volumes: tuple[AddedVolume, ...] = ()
    volume_mounts: tuple[VolumeMount, ...] = ()
    env: tuple[AddedVariable, ...] = ()


def check_additions(content: dict[str, Any]) -> None:
    """Check `volumes`, `volumeMounts` and `env`. Raises ValueError with every error and its path."""
    try:
        found = _Additions.model_validate(content, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ValueError("; ".join(map(_described, error.errors()))) from None
    if violations := list(_violations(found)):
        raise ValueError("; ".join(map(str, violations)))


def _described(detail: ErrorDetails) -> str:
    """The fields have the types of those in jobs; only the object itself and sources of variables have other fields."""
    place = detail["loc"]
    if detail["type"] == "extra_forbidden" and (len(place) == 1 or place[-2] == "valueFrom"):
        model: type[BaseModel] = _Additions if len(place) == 1 else AddedVariableSource
        known = ", ".join(str(field.alias) for field in model.model_fields.values())
        path = violation_of({**detail, "loc": ("spec", "workers", *place)}).path.removeprefix("spec.workers.")
        return str(Violation(path, f"unknown field; known fields: {known}"))
    return str(violation_of({**detail, "loc": ("spec", "workers", *place)})).removeprefix("spec.workers.")


def _violations(found: _Additions) -> Iterator[Violation]:
    names = [volume.name for volume in found.volumes]
    for index, volume in enumerate(found.volumes):
        if len(volume.sources) != 1:
            number = len(volume.sources)
            yield Violation(f"volumes[{index}]", f"must have exactly one source, not {number}; correct the entry")
        if volume.name in VOLUMES or volume.name in names[:index]:
            used = ", ".join(VOLUMES)
            yield Violation(f"volumes[{index}].name", f"must be unique and none of {used}; use another name")
    for index, mount in enumerate(found.volume_mounts):
        if mount.name not in names:
            yield Violation(f"volumeMounts[{index}].name", f"must be a name in volumes, not {mount.name}; correct it")
