"""Defaults for pod settings that a job does not set. Pure."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from finetune_api.rules import Violation
from finetune_api.v1alpha1 import PodSettings, Toleration
from finetune_api.v1alpha1.base import SecretName
from finetune_api.v1alpha1.pod import ObjectName
from finetune_api.v1alpha1.workers import QueueName
from finetune_api.validation import violation_of

Settings = TypeVar("Settings", bound=PodSettings)


class _Defaults(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, use_attribute_docstrings=True, title=""
    )


class StageDefaults(_Defaults):
    """Defaults of a block with settings of pods, under the same names."""

    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)] = {}
    """Labels that the node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Node taints that the pods tolerate."""
    scheduler_name: ObjectName | None = None
    """Scheduler of the pods."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods."""

    @model_serializer(mode="wrap")
    def _only_what_is_set(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value}


class WorkerDefaults(StageDefaults):
    """Defaults of `spec.workers`. Those of the pull secrets and the priority class apply to the pods of all stages."""

    priority_class_name: SecretName | None = None
    """PriorityClass of the pods."""
    image_pull_secrets: Annotated[tuple[SecretName, ...], Field(max_length=8)] = ()
    """Secrets in the namespace of the job, with which the image is pulled."""
    queue: QueueName | None = None
    """LocalQueue of training attempts."""


class PodDefaults(_Defaults):
    """What jobs leave out. A field that a job sets replaces the default; its values are not merged."""

    workers: WorkerDefaults = WorkerDefaults()
    """Defaults of `spec.workers`."""
    prepare: StageDefaults = StageDefaults()
    """Defaults of `spec.stages.prepare`."""
    evaluate: StageDefaults = StageDefaults()
    """Defaults of `spec.stages.evaluate`."""


def parse_defaults(content: object) -> PodDefaults:
    """Parse the defaults. Raises ValueError with every error and its path."""
    try:
        return PodDefaults.model_validate(content, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ValueError("; ".join(str(_violation(detail)) for detail in error.errors())) from None


_IN_JOBS = {
    "workers": ("spec", "workers"),
    "prepare": ("spec", "stages", "prepare"),
    "evaluate": ("spec", "stages", "evaluate"),
}
"""Block of defaults -> path of the block in jobs."""


_BLOCKS = {"workers": WorkerDefaults, "prepare": StageDefaults, "evaluate": StageDefaults}


def _violation(detail: ErrorDetails) -> Violation:
    """Defaults have the types of the fields in jobs, but not all of these fields."""
    if not detail["loc"]:
        return Violation("defaults", f"must be an object with {', '.join(_IN_JOBS)}")
    block, *rest = detail["loc"]
    if detail["type"] == "extra_forbidden" and len(rest) < 2:
        model: type[BaseModel] = _BLOCKS[str(block)] if rest else PodDefaults
        known = ", ".join(str(field.alias) for field in model.model_fields.values())
        return Violation(".".join(map(str, ("defaults", *detail["loc"]))), f"unknown field; known fields: {known}")
    place = _IN_JOBS.get(str(block), ())
    found = violation_of({**detail, "loc": (*place, *rest)})
    return Violation(
        found.path.replace(".".join(place), f"defaults.{block}" if block else "defaults", 1), found.message
    )


def filled(own: Settings, defaults: StageDefaults, *names: str) -> Settings:
    """Return the settings with the defaults of all fields, or of these, that the job leaves out."""
    chosen = names or tuple(type(defaults).model_fields)
    missing = {name: getattr(defaults, name) for name in chosen if not getattr(own, name)}
    return own.model_copy(update={name: value for name, value in missing.items() if value})
