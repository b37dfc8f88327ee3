"""Manifests as the YAML that kubectl reads. Pure."""

import io
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ruamel.yaml import YAML, ScalarNode
from ruamel.yaml.representer import SafeRepresenter

_WORDS: Mapping[str, bool | None] = {
    **{word: True for text in ("y", "yes", "true", "on") for word in (text, text.capitalize(), text.upper())},
    **{word: False for text in ("n", "no", "false", "off") for word in (text, text.capitalize(), text.upper())},
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
}
_INTEGER = re.compile(
    r"(?P<sign>[-+]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)|0[oO]?(?P<oct>[0-7]+)|(?P<dec>0|[1-9][0-9]*))"
)
_BASES = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}
_SIGN_AFTER_PREFIX = re.compile(r"0b[-+][01]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

_LOOSE_UNDERSCORE = re.compile(r"\..*(_(?![0-9])|(?<![0-9])_)")
"""What begins with a point is a number only where each of its underscores is between digits."""


def read_by_kubectl(text: str) -> str | bool | int | float | None:
    """What kubectl makes of a scalar without quotes and tag.

    It reads YAML 1.1, but by rules of its own (`resolve.go` of sigs.k8s.io/yaml/goyaml.v2): `yes` is true, `010` is 8,
    and underscores in numbers do not count. Infinity and NaN, which JSON has no words for, are text here.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789" or _LOOSE_UNDERSCORE.match(text):
        return text
    plain = text.replace("_", "")
    number = _integer(plain)
    if number is not None:
        return number
    if _FLOAT.fullmatch(plain) and math.isfinite(float(plain)):
        return float(plain)
    return text


def _integer(plain: str) -> int | None:
    """An integer of 64 bits; unsigned where it has no sign."""
    if _SIGN_AFTER_PREFIX.fullmatch(plain):
        return int(plain[2:], 2)
    found = _INTEGER.fullmatch(plain)
    if found is None:
        return None
    kind = str(found.lastgroup)
    number = int(found["sign"] + found[kind], _BASES[kind])
    is_small = -(2**63) <= number < (2**63 if found["sign"] else 2**64)
    return number if is_small else None


class _Representer(SafeRepresenter):
    """Texts of several lines as blocks, so that a ConfigMap can be read and its differences reviewed."""

    def represent_text(self, text: str) -> ScalarNode:
        """In quotes too where kubectl would take it for something else, which YAML 1.2 does not: `yes`."""
        style = "|" if "\n" in text else None if read_by_kubectl(text) == text else "'"
        node: ScalarNode = self.represent_scalar("tag:yaml.org,2002:str", text, style=style)
        return node

    def ignore_aliases(self, data: object) -> bool:
        """What is there twice is written twice: whoever edits one of them means that one."""
        return True


_Representer.add_representer(str, _Representer.represent_text)


def dump_all(manifests: Iterable[dict[str, Any]]) -> str:
    """A YAML stream, one document a manifest, in block style and with keys in the order given."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.width = 120
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump_all(list(manifests), stream)
    return stream.getvalue()
