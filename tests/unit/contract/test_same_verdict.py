"""`finetune validate` and the API server's schema agree on every field."""

from typing import Any

import pytest

from factories import make_job
from field_cases import FieldCase, field_cases, metadata_cases
from finetune_api.crd import crd
from finetune_api.object_metadata import metadata_violations
from finetune_api.validation import InvalidJobError, parse_job
from schema_check import schema_errors

SCHEMA: dict[str, Any] = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
CASES = list(field_cases())


def complaints(manifest: dict[str, Any]) -> list[str]:
    try:
        parse_job(manifest)
    except InvalidJobError as error:
        return [str(violation) for violation in error.violations]
    return []


def test_every_field_is_validated_the_same_by_the_command_line_and_the_schema() -> None:
    assert len({case.path for case in CASES}) > 100
    by_command = {str(case): not complaints(case.manifest) for case in CASES}
    by_schema = {str(case): not list(schema_errors(SCHEMA, case.manifest["spec"])) for case in CASES}
    right = {str(case): case.is_valid for case in CASES}
    assert by_command == right
    assert by_schema == right


def test_an_error_has_the_field_and_the_fix() -> None:
    wrong = {str(case): complaints(case.manifest) for case in CASES if not case.is_valid}
    assert {name: found for name, found in wrong.items() if not any(_is_helpful(line) for line in found)} == {}


@pytest.mark.parametrize("case", list(metadata_cases()), ids=str)
def test_metadata_is_checked_as_by_the_api_server(case: FieldCase) -> None:
    """tests/kubernetes compares the same cases with an API server."""
    metadata = case.manifest["metadata"]
    found = [*map(str, metadata_violations(metadata)), *complaints(case.manifest)]
    assert [line for line in found if not line.startswith(case.path)] == []
    assert (found == []) == case.is_valid
    assert all(_is_helpful(line) for line in found)


def test_a_name_that_is_a_number_must_be_text() -> None:
    assert complaints({**make_job(), "metadata": {"name": 123}}) == [
        "metadata.name must be text, not 123; write it in quotes"
    ]
    assert complaints({**make_job(), "metadata": []}) == ["metadata must be an object with name, not a list"]


def _is_helpful(line: str) -> bool:
    return " must " in line or ": unknown field; " in line


@pytest.mark.parametrize(
    "spec",
    [
        {"training": {"epochs": 3.0}},
        {"training": {"seed": None, "warmup": None}},
        {"workers": {"resources": {"limits": {"cpu": 0.5, "memory": 1e9}}, "sharedMemory": 1073741824}},
        {"workers": {"resources": {"limits": {"cpu": ".5", "memory": "1e9"}}}},
    ],
)
def test_values_that_kubectl_would_normalize_are_valid_here_too(spec: dict[str, Any]) -> None:
    """kubectl writes 3.0 as 3, and the API server drops null fields."""
    assert complaints(make_job(**spec)) == []


def test_amounts_without_quotes_arrive_as_a_pod_would_read_them() -> None:
    limits = {"cpu": 0.5, "memory": 1e9, "ephemeral-storage": "2Gi"}
    job = parse_job(make_job(workers={"resources": {"limits": limits}}))
    assert job.spec.workers.resources.limits == {"cpu": "0.5", "memory": "1000000000", "ephemeral-storage": "2Gi"}
