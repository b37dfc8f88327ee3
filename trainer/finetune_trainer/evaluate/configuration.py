"""The job's own words in report and model card. Pure."""

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML

from finetune_api.v1alpha1 import Spec

HIDDEN = "(not shown)"


def spec_document(spec: Spec) -> dict[str, Any]:
    """The spec as users write it, defaults included; values of environment variables may be secret and are left out."""
    document: dict[str, Any] = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    for variable in document["workers"]["env"]:
        variable["value"] = HIDDEN
    return document


def yaml_text(document: Mapping[str, Any]) -> str:
    """YAML in block style, in the order of the mapping."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 100
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()
