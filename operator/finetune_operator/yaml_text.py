"""YAML that kubectl reads with the intended types. Pure."""

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
"""A scalar that begins with a point is a number only if all its underscores are between digits."""


def read_by_kubectl(text: str) -> str | bool | int | float | None:
    """Return the value that kubectl reads for a scalar without quotes and tag.

    It reads a variant of YAML 1.1 (`resolve.go` of sigs.k8s.io/yaml/goyaml.v2): `yes` is true, `010` is 8,
    and underscores in numbers are ignored. Infinity and NaN, which JSON does not support, are text here.
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
    """Parse an integer of 64 bits, unsigned without a sign."""
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
    """Writes texts of several lines as blocks, so that ConfigMaps are readable and can be compared."""

    def represent_text(self, text: str) -> ScalarNode:
        """Also quote texts that kubectl would read as another type, such as `yes`, unlike YAML 1.2."""
        style = "|" if "\n" in text else None if read_by_kubectl(text) == text else "'"
        node: ScalarNode = self.represent_scalar("tag:yaml.org,2002:str", text, style=style)
        return node

    def ignore_aliases(self, data: object) -> bool:
        """Write equal objects twice instead of with aliases, so that each can be edited separately."""
        return True


_Representer.add_representer(str, _Representer.represent_text)


def dump_all(manifests: Iterable[dict[str, Any]]) -> str:
    """Return a YAML stream with one document per manifest, in block style, with the keys in their order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.width = 120
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump_all(list(manifests), stream)
    return stream.getvalue()
