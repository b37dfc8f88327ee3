"""Manifests as the YAML that kubectl reads. Pure."""

import io
from collections.abc import Iterable
from typing import Any

from ruamel.yaml import YAML, ScalarNode
from ruamel.yaml.representer import SafeRepresenter


class _Representer(SafeRepresenter):
    """Texts of several lines as blocks, so that a ConfigMap can be read and its differences reviewed."""

    def represent_text(self, text: str) -> ScalarNode:
        node: ScalarNode = self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
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
