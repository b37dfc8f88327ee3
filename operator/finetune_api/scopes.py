"""Scopes of all spec fields, and hashes over the fields of some scopes. Pure.

The scope of a leaf is the marker on its field (`Annotated[int, Scope.ATTEMPT]`), else the marker on the nearest field
above it, else the scope that its block class declares (`class Workers(ApiModel, scope=Scope.ATTEMPT)`).
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, get_args

from pydantic.fields import FieldInfo

from .v1alpha1.base import ApiModel
from .v1alpha1.job import Spec
from .v1alpha1.scope import Scope
from .v1alpha1.status import MAX_CHANGE_LENGTH, MAX_CHANGES, MAX_SETTING_LENGTH

Block = TypeVar("Block", bound=ApiModel)

HASH_DIGITS = 16


@cache
def scopes() -> Mapping[str, Scope]:
    """Path of every leaf of the spec -> its scope, such as `spec.data.train[].uri` -> Data.

    Raises TypeError for a leaf without a scope: declare one on its field or its block class.
    """
    return dict(_leaves(Spec, "spec", None))


def paths(scope: Scope) -> tuple[str, ...]:
    """Return the shortest list of paths that covers the leaves of a scope: blocks if all their leaves have it, else
    leaves."""
    return tuple(_collapsed(Spec, "spec", scope))


def spec_hash(spec: Spec, wanted: Collection[Scope], *, without: Collection[str] = ()) -> str:
    """First 16 hex digits of the SHA-256 over the leaves of these scopes, except the fields and blocks in `without`.

    Values that equal the default are omitted, so a default that is written out, or a field that a later version adds,
    does not change the hash.
    """
    content = dict(_content(spec, wanted, without))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:HASH_DIGITS]


def _content(spec: Spec, wanted: Collection[Scope], without: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of these scopes that differ from their default as (path, value)."""
    values = _canonical(spec).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return _selected(Spec, values, "spec", frozenset(wanted), frozenset(without))


def settings(spec: Spec, wanted: Collection[Scope]) -> dict[str, str]:
    """Return path -> value as JSON for the leaves of these scopes that differ from their default.

    A value of more than 90 characters is cut and ends with a digest of the whole, so that it still shows a change.
    """
    return {path: _short(json.dumps(value, ensure_ascii=False)) for path, value in _content(spec, wanted)}


def values(spec: Spec, wanted: Collection[Scope], *, max_length: int = MAX_SETTING_LENGTH) -> dict[str, str]:
    """Return path -> value as JSON for all leaves of these scopes that have a value, including defaults.

    A value of more than `max_length` characters is cut as by `settings`.
    """
    written = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    found = _selected(Spec, written, "spec", frozenset(wanted), frozenset())
    return {path: _short(json.dumps(value, ensure_ascii=False), max_length) for path, value in found}


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """Return the differences between two `settings`, such as `spec.training.epochs: 2 -> 3`, at most 16.

    The last one counts the others if there are more. `default` stands for a field with its default value.
    """
    found = [
        f"{path}: {before.get(path, 'default')} -> {after.get(path, 'default')}"[:MAX_CHANGE_LENGTH]
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]
    if len(found) > MAX_CHANGES:
        found[MAX_CHANGES - 1 :] = [f"and {len(found) - MAX_CHANGES + 1} more"]
    return tuple(found)


def with_scopes(spec: Spec, other: Spec, wanted: Collection[Scope]) -> Spec:
    """Return `spec` with the leaves of these scopes from `other`."""
    return _combined(spec, other, "spec", frozenset(wanted))


def _combined(block: Block, other: Block, path: str, wanted: frozenset[Scope]) -> Block:
    update: dict[str, Any] = {}
    for (field_path, _, _), name in zip(_fields(type(block), path), type(block).model_fields, strict=True):
        inside, own, found = _scopes_at(field_path), getattr(block, name), getattr(other, name)
        if inside <= wanted:
            update[name] = found
        elif not wanted.isdisjoint(inside) and isinstance(own, ApiModel) and type(own) is type(found):
            update[name] = _combined(own, found, field_path, wanted)
    return block.model_copy(update=update)


def _short(text: str, max_length: int = MAX_SETTING_LENGTH) -> str:
    if len(text) <= max_length:
        return text
    end = f"... (sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"
    return text[: max_length - len(end)] + end


def _canonical(block: Block) -> Block:
    nested = {name: getattr(block, name) for name in type(block).model_fields}
    changes = {name: _canonical(value) for name, value in nested.items() if isinstance(value, ApiModel)}
    return block.model_copy(update=changes).without_fixed_defaults()


def _leaves(model: type[ApiModel], path: str, inherited: Scope | None) -> Iterator[tuple[str, Scope]]:
    for field_path, field, nested in _fields(model, path):
        scope = _marker(field) or inherited
        if nested is not None and nested.model_fields:
            yield from _leaves(nested, field_path, scope)
        else:
            found = scope or model.scope
            if found is None:
                raise TypeError(f"{field_path} must have a scope: declare one on the field or on {model.__name__}")
            yield field_path, found


def _collapsed(model: type[ApiModel], path: str, scope: Scope) -> Iterator[str]:
    for field_path, _, nested in _fields(model, path):
        inside = _scopes_at(field_path)
        if inside == {scope}:
            yield field_path.removesuffix("[]")
        elif scope in inside and nested is not None:
            yield from _collapsed(nested, field_path, scope)


def _selected(
    model: type[ApiModel], values: Mapping[str, Any], path: str, wanted: frozenset[Scope], without: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    """Yield leaves as (path, value). A list of blocks is one leaf.

    A present optional block without values is also a leaf, because `lora: {}` differs from an absent `lora`.
    """
    for field_path, field, nested in _fields(model, path):
        value, inside = values.get(str(field.alias)), _scopes_at(field_path)
        if value is None or wanted.isdisjoint(inside) or field_path in without:
            continue
        if nested is not None and nested.model_fields and isinstance(value, dict):
            if field.default is None:
                yield field_path, {}
            yield from _selected(nested, value, field_path, wanted, without)
        else:
            yield field_path, value


@cache
def _scopes_at(path: str) -> frozenset[Scope]:
    """Scopes of the leaves at and below a path."""
    found = scopes().items()
    return frozenset(scope for leaf, scope in found if leaf == path or leaf.startswith((f"{path}.", f"{path}[")))


@cache
def _fields(model: type[ApiModel], path: str) -> tuple[tuple[str, FieldInfo, type[ApiModel] | None], ...]:
    """Return path, field and nested block of every field. They are cached: every reconcile computes several hashes."""
    return tuple(_each_field(model, path))


def _each_field(model: type[ApiModel], path: str) -> Iterator[tuple[str, FieldInfo, type[ApiModel] | None]]:
    for field in model.model_fields.values():
        nested = _nested(field.annotation)
        in_list = nested is not None and _is_list(field.annotation)
        yield f"{path}.{field.alias}{'[]' if in_list else ''}", field, nested


def _nested(annotation: Any) -> type[ApiModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _nested(part)) is not None), None)


def _is_list(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is tuple or any(_is_list(part) for part in get_args(annotation))


def _marker(field: FieldInfo) -> Scope | None:
    return next((entry for entry in field.metadata if isinstance(entry, Scope)), None)
