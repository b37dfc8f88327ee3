"""The job's spec as shown in report and model card. Pure."""

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML

from finetune_api.redaction import without_secrets
from finetune_api.v1alpha1 import Spec


def spec_document(spec: Spec) -> dict[str, Any]:
    """The spec as users write it, including defaults, without values of environment variables."""
    return without_secrets(spec).model_dump(mode="json", by_alias=True, exclude_none=True)


def yaml_text(document: Mapping[str, Any]) -> str:
    """YAML in block style, in the order of the mapping."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 100
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()
