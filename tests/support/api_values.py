"""Every field of the API, every value of an enumeration, and which of them a manifest uses.

A value is named by its path below `spec`: `training.seed` for a field, `training.learningRateSchedule=Cosine` for one
value of it, `data.train[].uri` for a field of the entries of a list.
"""

import types
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

_SHORT_RANGE = 8
"""Bounded integer types with at most this many values are treated as enumerations."""


def all_values(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield every value that an object of this model can name."""
    if path and not model.model_fields:
        yield path
    for name, field in model.model_fields.items():
        below = f"{path}.{field.alias or to_camel(name)}".lstrip(".")
        yield from _values_of(field.annotation, field.metadata, below)


def _values_of(annotation: Any, metadata: list[Any], path: str) -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        more = [part for entry in arguments[1:] for part in (entry.metadata if isinstance(entry, FieldInfo) else [])]
        yield from _values_of(arguments[0], [*metadata, *more], path)
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            if argument is not type(None):
                yield from _values_of(argument, metadata, path)
    elif origin is tuple:
        yield from _values_of(arguments[0], [], f"{path}[]")
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from all_values(annotation, path)
    else:
        choices = _choices(annotation, metadata)
        yield from (f"{path}={choice}" for choice in choices)
        if not choices:
            yield path


def _choices(annotation: Any, metadata: list[Any]) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if annotation is bool:
        return ["true", "false"]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    if annotation is int:
        least = next((entry.ge for entry in metadata if isinstance(entry, Ge)), None)
        most = next((entry.le for entry in metadata if isinstance(entry, Le)), None)
        if least is not None and most is not None and most - least < _SHORT_RANGE:  # type: ignore[operator]
            return [str(number) for number in range(least, most + 1)]  # type: ignore[call-overload]
    return []


def used_values(value: Any, path: str = "") -> Iterator[str]:
    """Yield what a manifest uses, under the same names, including its blocks."""
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from used_values(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from used_values(inner, f"{path}[]")
    else:
        yield f"{path}={str(value).lower() if isinstance(value, bool) else value}"
