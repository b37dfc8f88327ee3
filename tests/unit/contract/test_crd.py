"""The CRD is valid for the API server, agrees with the models, and equals the file in manifests/."""

from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.crd import CEL_RULES, crd
from finetune_api.v1alpha1 import Spec
from refused_jobs import RULE_ERRORS

SCHEMA: dict[str, Any] = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}".lstrip("."))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


SPEC_NODES = [(path, node) for path, node in nodes(SCHEMA) if path.startswith("spec")]


def test_the_schema_has_nothing_that_a_structural_schema_forbids() -> None:
    forbidden = {"$ref", "anyOf", "oneOf", "const", "title", "exclusiveMinimum", "prefixItems", "$defs"}
    assert [path for path, node in nodes(SCHEMA) if forbidden & node.keys()] == []


def test_every_node_has_a_type_and_every_field_a_description() -> None:
    open_values = "spec.deepspeed.config"
    untyped = [path for path, node in SPEC_NODES if not {"type", "x-kubernetes-preserve-unknown-fields"} & set(node)]
    assert untyped == []
    missing = [path for path, node in SPEC_NODES if not node.get("description") and not path.endswith("[]")]
    assert [path for path in missing if not path.startswith(open_values)] == []


def test_every_list_text_and_map_is_bounded_to_limit_the_cost_of_cel() -> None:
    bounds = {"array": "maxItems", "string": "maxLength"}
    unbounded = [
        path
        for path, node in SPEC_NODES
        if node.get("type") in bounds and bounds[node["type"]] not in node and "enum" not in node
    ]
    assert unbounded == []


def test_list_entries_have_no_defaults_so_that_gitops_tools_see_no_difference() -> None:
    everything = list(nodes(SCHEMA))
    assert {"spec.workers.tolerations[].operator", "status.conditions[].type"} <= {path for path, _ in everything}
    assert [path for path, node in everything if "[]" in path and "default" in node] == []
    assert [path for path, node in everything if has_entry_with_fields(node.get("default"))] == []


def has_entry_with_fields(default: Any) -> bool:
    """Whether a default contains a list of objects."""
    if isinstance(default, dict):
        return any(map(has_entry_with_fields, default.values()))
    return isinstance(default, list) and any(isinstance(entry, dict) for entry in default)


def test_defaults_carry_no_nulls() -> None:
    def has_null(value: Any) -> bool:
        return value is None or (isinstance(value, dict) and any(has_null(child) for child in value.values()))

    assert [path for path, node in nodes(SCHEMA) if has_null(node.get("default", 0))] == []


@pytest.mark.parametrize("path", CEL_RULES)
def test_every_cel_rule_is_at_an_existing_block(path: str) -> None:
    found = dict(nodes(SCHEMA))[path]
    assert found["type"] == "object"
    assert found["x-kubernetes-validations"]


@pytest.mark.parametrize("message", [message for _, message in RULE_ERRORS.values()], ids=RULE_ERRORS)
def test_the_schema_has_every_message_that_is_expected_of_the_api_server(message: str) -> None:
    """Found here in a moment; the test on a real server takes minutes to come to it."""
    rules = [rule for _, node in nodes(SCHEMA) for rule in node.get("x-kubernetes-validations", ())]
    assert any(message in rule["message"] for rule in rules)


def test_the_schema_has_exactly_the_fields_of_the_models() -> None:
    assert set(SCHEMA["properties"]["spec"]["properties"]) == {
        field.alias or name for name, field in Spec.model_fields.items()
    }


def test_a_new_object_has_an_observed_generation_which_is_not_its_own() -> None:
    """kstatus considers an object without status as current."""
    assert SCHEMA["properties"]["status"]["default"] == {"observedGeneration": -1}
