"""Checks a value against a structural schema like an API server: types, bounds and unknown fields.

CEL rules are ignored. Follows `kubectl apply --validate=strict`.
"""

import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def schema_errors(schema: Schema, value: Any, path: str = "") -> Iterator[str]:
    """Yield all errors of a value, as `path: reason`."""
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, _TYPES[kind]) or (kind != "boolean" and isinstance(value, bool))):
        yield f"{path}: must be {kind}"
        return
    yield from (f"{path}: {why}" for why in _bounds(schema, value))
    if isinstance(value, dict):
        yield from _of_object(schema, value, path)
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from schema_errors(schema.get("items", {}), entry, f"{path}[{index}]")


def _of_object(schema: Schema, value: dict[str, Any], path: str) -> Iterator[str]:
    known = schema.get("properties", {})
    others = schema.get("additionalProperties")
    yield from (f"{path}.{name}: is missing" for name in schema.get("required", ()) if name not in value)
    for name, child in value.items():
        inner = known.get(name, others)
        if inner is not None:
            yield from schema_errors(inner, child, f"{path}.{name}")
        elif not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{path}.{name}: is unknown"


def _bounds(schema: Schema, value: Any) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield "must be one of the enum values"
    if any(type(value) is type(one) and value == one for one in schema.get("not", {}).get("enum", ())):
        yield "must not be one of these values"
    if isinstance(value, str):
        if re.search(schema.get("pattern", ""), value) is None:
            yield "does not match"
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            yield "has a wrong length"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield "is out of bounds"
    if isinstance(value, list) and not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        yield "has a wrong length"
    if isinstance(value, dict) and len(value) > schema.get("maxProperties", len(value)):
        yield "has too many entries"
