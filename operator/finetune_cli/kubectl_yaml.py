"""Find scalars of a job file that kubectl parses differently.

This package parses YAML 1.2; kubectl parses YAML 1.1 with some changes. A file that they parse differently is rejected,
because the job in the cluster would differ from the job that was validated here.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from finetune_api.rules import Violation
from finetune_operator.yaml_text import read_by_kubectl

Construct = Callable[[ScalarNode], Any]
"""Returns the value of a scalar in YAML 1.2."""

_TAGGED = re.compile(r"(&\S+\s+)?!")
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_SECRET = re.compile(r"spec\.workers\.env\[\d+\]\.value")
"""Paths of values that must not appear in messages, because they may be secret."""


def kubectl_differences(root: Node, construct: Construct) -> Iterator[tuple[int, Violation]]:
    """Yield line (from 1) and violation of each unquoted scalar, keys included, that kubectl parses differently."""
    checked: set[int] = set()
    for node, path, is_key in _scalars(root, "", set()):
        if node.style is None and id(node) not in checked and not _is_tagged(node):
            checked.add(id(node))
            message = _about_key(node, construct) if is_key else _about_value(node, path, construct)
            if message:
                yield node.start_mark.line + 1, Violation(path, message)


def _scalars(node: Node, path: str, seen: set[int]) -> Iterator[tuple[ScalarNode, str, bool]]:
    """Yield every scalar with its path and whether it is a key. A node with several aliases is yielded once."""
    if isinstance(node, ScalarNode):
        yield node, path, False
        return
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, SequenceNode):
        for index, entry in enumerate(node.value):
            yield from _scalars(entry, f"{path}[{index}]", seen)
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}" if path else f"{key.value}"
            if isinstance(key, ScalarNode):
                yield key, inner, True
            yield from _scalars(value, inner, seen)


def _is_tagged(node: ScalarNode) -> bool:
    """Whether the scalar has an explicit tag, as in `!!str yes`."""
    mark = node.start_mark
    return bool(_TAGGED.match(mark.buffer[mark.pointer : mark.pointer + 1024]))


def _about_key(node: ScalarNode, construct: Construct) -> str:
    """Return the violation of a key, or "" if kubectl reads the same name.

    Floats and null are always violations: kubectl formats floats differently, and null is not a valid name.
    """
    ours, theirs = construct(node), read_by_kubectl(node.value)
    if _is_same(ours, theirs) and not isinstance(theirs, float | None):
        return ""
    return f"must be a quoted key: kubectl reads {node.value or 'nothing'} as {_shown(theirs)}"


def _about_value(node: ScalarNode, path: str, construct: Construct) -> str:
    """Return the violation of a value, or "" if kubectl reads the same value."""
    theirs = read_by_kubectl(node.value)
    if _is_same(construct(node), theirs):
        return ""
    if _SECRET.fullmatch(path):
        return f"must be quoted: kubectl does not read it as {'a number' if isinstance(theirs, str) else 'text'}"
    reads = f"kubectl reads {node.value} as {_shown(theirs)}"
    if isinstance(theirs, bool):
        return f"must be quoted, or be true or false: {reads}"
    if isinstance(theirs, str):
        return f"must be quoted, or be a number that JSON can represent: {reads}"
    if _OCTAL.fullmatch(node.value):
        return f"must not start with 0, or must be quoted if it is text: {reads}"
    return f"must be {_shown(theirs)}, or must be quoted if it is text: {reads}"


def _is_same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return float(ours) == float(theirs)
    return bool(ours == theirs)


def _shown(value: str | bool | int | float | None) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return "text"
        case _:
            return f"{value:.17g}" if isinstance(value, float) and not value.is_integer() else f"{int(value)}"
