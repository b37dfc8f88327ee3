"""docs/reference.md: every field of a FineTuneJob with its type, bounds, default, scope and docstring. Pure.

The page is derived from the models. A block that several fields use has one section, under the first of their paths.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from itertools import pairwise
from typing import Any, get_args

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from .scopes import scopes
from .v1alpha1 import FineTuneJob, Scope
from .v1alpha1 import base as base_types
from .v1alpha1 import pod as pod_types
from .v1alpha1 import status as status_types
from .v1alpha1.base import NEEDED, ApiModel
from .v1alpha1.pod import PodSettings

_WIDTH = 120

_SHARED: Mapping[type[ApiModel], str] = {PodSettings: "Settings of pods"}
"""Base classes whose fields have a section of their own, and its heading."""

_TYPES = {
    name: module
    for module, names in {
        base_types: ("Duration", "Quantity", "SecretName", "S3Uri", "ModelUri", "DataUri"),
        pod_types: ("LabelValue", "ObjectName", "ResourceName", "VariableName"),
        status_types: ("Time",),
    }.items()
    for name in names
}
"""Types with a name -> module that defines and describes them."""

SCOPE_EFFECTS: Mapping[Scope, str] = {
    Scope.DATA: "a new run, which prepares the data again where the rows depend on the field",
    Scope.RUN: "a new run on the prepared data",
    Scope.ATTEMPT: "the next attempt of the same run uses it",
    Scope.EVALUATION: "the model is evaluated and exported again within the same run, also if the run is complete",
    Scope.NOW: "takes effect immediately",
}
"""The effect of a change of a field, in the docs."""


@dataclass
class _Section:
    """The fields of one block."""

    model: type[ApiModel]
    paths: list[str] = field(default_factory=list)
    """Where the block is used. The first one is the heading."""

    @property
    def heading(self) -> str:
        return _SHARED.get(self.model, self.paths[0])


def reference_page() -> str:
    """docs/reference.md."""
    sections = _sections()
    top = [section for section in sections.values() if section.model not in _SHARED]
    contents = [
        f"- [`{section.heading}`](#{anchor(section.heading)})"
        for section in top
        if section.heading.count(".") <= 1 and section.heading.startswith(("spec", "status"))
    ]
    parts = [
        _INTRODUCTION.strip(),
        "\n".join(f"| `{scope}` | {effect} |" for scope, effect in SCOPE_EFFECTS.items()),
        "## Contents",
        "\n".join([*contents, "- [Types](#types)"]),
    ]
    # The table continues the last lines of the introduction.
    text = parts[0] + "\n" + "\n\n".join(parts[1:])
    body = "\n\n".join(_section_text(section, sections) for section in sections.values())
    return f"{text}\n\n{body}\n\n{_types_text()}\n"


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading: `spec.data.train[]` -> `specdatatrain`."""
    kept = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")


def _sections() -> dict[type[ApiModel], _Section]:
    found: dict[type[ApiModel], _Section] = {}
    _visit(FineTuneJob, "", found)
    return found


def _visit(model: type[ApiModel], path: str, found: dict[type[ApiModel], _Section]) -> None:
    section = found.setdefault(model, _Section(model))
    section.paths.append(path or model.__name__)
    for name, info in _own_fields(model):
        nested = _block(info)
        if nested is not None and nested.model_fields:
            _visit(nested, _nested_path(path, name, info), found)
    for shared in _SHARED:
        if issubclass(model, shared) and model is not shared:
            _visit(shared, path, found)


def _nested_path(path: str, name: str, info: FieldInfo) -> str:
    kinds = _origins(info.annotation)
    suffix = "[]" if tuple in kinds else ".*" if dict in kinds else ""
    return f"{path}.{name}{suffix}" if path else f"{name}{suffix}"


def _own_fields(model: type[ApiModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield alias and field, without those of a base class with its own section."""
    shared = {name for base in _SHARED if base is not model and issubclass(model, base) for name in base.model_fields}
    return ((str(info.alias or name), info) for name, info in model.model_fields.items() if name not in shared)


def _block(info: FieldInfo) -> type[ApiModel] | None:
    return next((kind for kind in _classes(info.annotation) if issubclass(kind, ApiModel)), None)


def _classes(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _classes(part)


def _origins(annotation: Any) -> set[Any]:
    own = {getattr(annotation, "__origin__", None)}
    return own.union(*(_origins(part) for part in get_args(annotation)))


# ---- sections --------------------------------------------------------------------------------------------------------


def _section_text(section: _Section, sections: Mapping[type[ApiModel], _Section]) -> str:
    model, path = section.model, section.paths[0]
    is_top = section.heading in {FineTuneJob.__name__, "spec", "status"}
    parts = [f"{'##' if is_top else '###'} {section.heading}"]
    parts += [_wrapped(paragraph) for paragraph in inspect.cleandoc(model.__doc__ or "").split("\n\n")]
    if others := (section.paths if model in _SHARED else section.paths[1:]):
        parts.append(_wrapped(f"{'Fields of' if model in _SHARED else 'Also'} {_listed(others)}."))
    scope = _only_scope(path)
    if scope is not None:
        parts.append(f"Scope of all fields: `{scope}`.")
    fields = [_field_text(section, name, info, sections) for name, info in _own_fields(model)]
    fields += [
        f"- all [{heading.lower()}](#{anchor(heading)})"
        for base, heading in _SHARED.items()
        if issubclass(model, base) and model is not base
    ]
    return "\n\n".join([*parts, "\n".join(fields)])


def _field_text(section: _Section, name: str, info: FieldInfo, sections: Mapping[type[ApiModel], _Section]) -> str:
    root = "" if section.paths[0] == FineTuneJob.__name__ else section.paths[0]
    path = f"{root}.{name}" if root else name
    schema = _schema(section.model)
    node = schema["properties"][name]
    nested = _block(info)
    properties = [_type_text(node, schema.get("$defs", {}), nested, sections)]
    if info.is_required():
        properties.append("required")
    elif (default := _default_text(info)) is not None:
        properties.append(f"default {default}")
    scope = _only_scope(path)
    if scope is not None and _only_scope(root) is None:
        properties.append(f"scope `{scope}`")
    doc = " ".join(node.get("description", "").split())
    if nested is not None and nested.model_fields and doc == " ".join((nested.__doc__ or "").split()):
        doc = ""  # it is the first sentence of the section of the block
    text = f"- **`{name}`** ({'; '.join(properties)})" + (f": {doc}" if doc else "")
    lines = [_wrapped(text, indent="  ")]
    for value, meaning in _values(info):
        lines.append(_wrapped(f"- `{value}`: {meaning}", indent="    ", first="  "))
    return "\n".join(lines)


def _only_scope(path: str) -> Scope | None:
    """Return the scope of all leaves at and below a path; None if they differ, or the path is not in the spec."""
    below = (f"{path}.", f"{path}[")
    inside = {scope for leaf, scope in scopes().items() if leaf == path or leaf.startswith(below)}
    return next(iter(inside)) if len(inside) == 1 else None


def _default_text(info: FieldInfo) -> str | None:
    """Return the default as YAML; None for an absent field, an empty block and an empty list or text."""
    default = info.get_default(call_default_factory=True)
    if isinstance(default, ApiModel):
        default = default.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    elif isinstance(default, tuple):
        default = [str(entry) for entry in default]
    if default is None or default in ("", [], {}):
        return None
    if isinstance(default, str):
        return f"`{default}`"
    return "`" + json.dumps(default).replace('"', "") + "`"


# ---- types -----------------------------------------------------------------------------------------------------------


def _type_text(
    node: Mapping[str, Any],
    definitions: Mapping[str, Any],
    nested: type[ApiModel] | None,
    sections: Mapping[type[ApiModel], _Section],
) -> str:
    """Describe a JSON schema in words: `integer, 1 to 16`, `list of 1 to 64 entries, each an [object](#specdatatrain)`.

    `nested` is the block that the schema refers to, if it refers to one.
    """
    node = _resolved(node, definitions)
    if (name := _named_type(node)) is not None:
        return f"[{name}](#{name.lower()})"
    match node:
        case {"enum": [_, _, *_] as values}:
            return f"one of {_listed(values)}"
        case {"enum": [value]} | {"const": value}:
            return f"`{value}`"
        case {"type": "object", "properties": _}:
            assert nested is not None
            return f"[object](#{anchor(sections[nested].heading)})" if nested in sections else "empty object"
        case {"type": "object"}:
            limit = f" with at most {node['maxProperties']} keys" if "maxProperties" in node else ""
            values = node.get("additionalProperties")
            if not isinstance(values, dict):
                return f"any object{limit}"
            return f"map{limit}, each value {_with_article(_type_text(values, definitions, nested, sections))}"
        case {"type": "array"}:
            count = _range(node, "minItems", "maxItems")
            inner = _with_article(_type_text(node["items"], definitions, nested, sections))
            return f"list of {f'{count} entries' if count else 'entries'}, each {inner}"
    return _scalar_text(node)


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference, and unwrap an optional field."""
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    if options:
        (node,) = options
    if "$ref" not in node:
        return node
    found: dict[str, Any] = {"properties": {}, **definitions[node["$ref"].rsplit("/", 1)[1]]}
    return found


def _scalar_text(node: Mapping[str, Any]) -> str:
    if node["type"] != "string":
        bounds = _range(node, "minimum", "maximum")
        return f"{node['type']}, {bounds}" if bounds else str(node["type"])
    count = _range(node, "minLength", "maxLength")
    text = f"string, {count} characters" if count else "string"
    needed = NEEDED.get(node.get("pattern", ""))
    return text if needed is None else f"{text}: {needed}"


def _range(node: Mapping[str, Any], lowest: str, highest: str) -> str:
    low, high = (node.get(bound) for bound in (lowest, highest))
    match low, high:
        case None, None:
            return ""
        case None, _:
            return f"at most {_number(high)}"
        case _, None:
            return f"at least {_number(low)}"
    return f"{_number(low)} to {_number(high)}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_article(text: str) -> str:
    if text.startswith(("`", "one of")):
        return text
    bare = text.lstrip("[").lower()
    return f"{'an' if bare[0] in 'aeiou' else 'a'} {text}"


@cache
def _schema(model: type[ApiModel]) -> dict[str, Any]:
    return model.model_json_schema(by_alias=True)


def _named_type(node: Mapping[str, Any]) -> str | None:
    return next((name for name in _TYPES if _mark(node) == _mark(_type_schema(name)) != (None, None)), None)


def _mark(node: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What a named type is recognized by."""
    return node.get("pattern"), node.get("format")


@cache
def _type_schema(name: str) -> dict[str, Any]:
    return TypeAdapter(getattr(_TYPES[name], name)).json_schema()


def _types_text() -> str:
    parts = ["## Types"]
    for name, module in _TYPES.items():
        schema = _type_schema(name)
        lines = [_module_docstrings(module)[name]]
        if needed := NEEDED.get(schema.get("pattern", "")):
            lines.append(f"Must be {needed}.")
        lines.append(f"At most {schema['maxLength']} characters.")
        parts += [f"### {name}", _wrapped(" ".join(lines))]
    return "\n\n".join(parts)


# ---- docstrings ------------------------------------------------------------------------------------------------------


@cache
def _module_docstrings(module: Any) -> dict[str, str]:
    return _under_assignments(ast.parse(inspect.getsource(module)).body)


def _under_assignments(body: Iterable[ast.stmt]) -> dict[str, str]:
    """Return the docstrings under `NAME = value`, by name."""
    return {
        ast.unparse(assigned.targets[0]): " ".join(ast.literal_eval(below.value).split())
        for assigned, below in pairwise(body)
        if isinstance(assigned, ast.Assign) and isinstance(below, ast.Expr)
    }


def _values(info: FieldInfo) -> Iterator[tuple[str, str]]:
    """Yield the values of a field with their docstrings."""
    for kind in _classes(info.annotation):
        if issubclass(kind, Enum):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
            assert isinstance(definition, ast.ClassDef)
            documented = _under_assignments(definition.body)
            yield from ((str(kind[name]), text) for name, text in documented.items())


# ---- text ------------------------------------------------------------------------------------------------------------


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _wrapped(text: str, *, indent: str = "", first: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()),
        _WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


_INTRODUCTION = """
<!-- Generated from operator/finetune_api/v1alpha1 by `make golden`. -->

# API reference

Every field of a `FineTuneJob` (`finetune.dev/v1alpha1`). `kubectl explain finetunejob.spec.training` shows the same
texts. In parentheses are the type of a field, its bounds, its default, and its scope if the fields of the block have
different ones. A field that is neither required nor has a default may be absent; its text says what that means if it
is not obvious. [Supported combinations](support.md) lists the values that can be combined.

The scope of a field of `spec` is the effect of a change of it ([details](operating.md#changing-a-job)):

| scope | effect of a change |
| --- | --- |
"""
