"""What the job policy refuses, with the path and how to correct it."""

from collections.abc import Iterator
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import LABEL_USABLE
from finetune_api.crd import structural_schema
from finetune_api.v1alpha1 import Spec
from finetune_api.validation import parse_job
from finetune_operator.job_policy.model import JobPolicy
from finetune_operator.job_policy.rules import (
    REFERENCES,
    RULES,
    Defaults,
    ReferencedObject,
    label_violation,
    referenced_objects,
    violations,
)
from policy_cases import CASES, CREDENTIALS, ENDPOINT, IMAGE, POLICY

DEFAULTS = Defaults(IMAGE, ENDPOINT, CREDENTIALS)
LABELLED = {"requireLabelOnSecrets": True, "requireLabelOnVolumeClaims": True}


def spec(**blocks: Any) -> Spec:
    return parse_job(make_job(**blocks)).spec


def complaints(policy: dict[str, Any], **blocks: Any) -> list[str]:
    found = violations(spec(**blocks), JobPolicy.model_validate(policy), DEFAULTS)
    return [str(violation) for violation in found]


@pytest.mark.parametrize("name", CASES)
def test_a_policy_refuses_what_it_does_not_list(name: str) -> None:
    case = CASES[name]
    found = violations(spec(**case.spec), JobPolicy.model_validate(case.policy), DEFAULTS)
    assert sorted({violation.path for violation in found}) == sorted(case.refused)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused])
def test_nothing_is_refused_without_a_policy(name: str) -> None:
    assert complaints({}, **CASES[name].spec) == []


def test_every_row_of_the_table_decides_a_case() -> None:
    def paths(rule: Any) -> set[str]:
        return {path.replace("[]", "[0]") for path in rule.paths}

    decided = {
        (rule.field, path)
        for case in CASES.values()
        for rule in RULES
        if set(case.policy) == {rule.policy_field} or case.policy == POLICY
        for path in paths(rule) & set(case.refused)
    }
    assert {(rule.field, path) for rule in RULES for path in paths(rule)} - decided == set()


@pytest.mark.parametrize(
    ("policy", "blocks", "message"),
    [
        (
            {"images": ["registry.example.com/team"]},
            {"workers": {"image": "evil"}},
            "spec.workers.image must be an image in images of the job policy (registry.example.com/team), not evil; "
            "use one of these, or ask an administrator to add it",
        ),
        (
            {"serviceAccounts": []},
            {"workers": {"serviceAccountName": "admin"}},
            "spec.workers.serviceAccountName must be a service account in serviceAccounts of the job policy (none), "
            "not admin; use one of these, or ask an administrator to add it",
        ),
        (
            {"tolerationKeys": [f"k{number}" for number in range(20)]},
            {"workers": {"tolerations": [{"operator": "Exists"}]}},
            "spec.workers.tolerations[0].key must be the key of a taint in tolerationKeys of the job policy (k0, k1, "
            'k2, k3, k4, k5, k6, k7, ...), not ""; use one of these, or ask an administrator to add it',
        ),
        (
            {"images": []},
            {"workers": {"env": [{"name": "LD_PRELOAD"}]}},
            "spec.workers.env[0].name must not be a variable that loads code if the job policy has images, not "
            "LD_PRELOAD; remove the entry",
        ),
        (
            {"reservedVariables": ["A_*"]},
            {"workers": {"env": [{"name": "A_B"}]}},
            "spec.workers.env[0].name must not be a variable in reservedVariables of the job policy (A_*), not A_B; "
            "remove the entry",
        ),
    ],
)
def test_a_message_has_what_is_allowed_and_the_fix(
    policy: dict[str, Any], blocks: dict[str, Any], message: str
) -> None:
    assert complaints(policy, **blocks) == [message]


# ---- labels ----------------------------------------------------------------------------------------------------------

REFERRING: dict[str, Any] = {
    "storage": {"credentialsSecret": "keys"},
    "workers": {
        "imagePullSecrets": ["pull"],
        "env": [
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "token", "key": "k", "optional": True}}},
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "k"}}},
            {"name": "C", "value": "x"},
        ],
        "cache": {"claimName": "cache"},
    },
}
SECRETS = [
    ("spec.storage.credentialsSecret", "keys"),
    ("spec.workers.imagePullSecrets[0]", "pull"),
    ("spec.workers.env[0].valueFrom.secretKeyRef.name", "token"),
]
CLAIMS = [("spec.workers.cache.claimName", "cache")]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, []),
        ({"requireLabelOnSecrets": True}, SECRETS),
        ({"requireLabelOnVolumeClaims": True}, CLAIMS),
        (LABELLED, SECRETS + CLAIMS),
    ],
    ids=["none", "secrets", "claims", "both"],
)
def test_objects_need_a_label_only_if_the_policy_requires_it(
    policy: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    found = referenced_objects(spec(**REFERRING), JobPolicy.model_validate(policy), DEFAULTS)
    assert [(one.path, one.name) for one in found] == expected


def test_the_default_credentials_need_no_label_but_only_as_credentials() -> None:
    blocks = {
        "storage": {"credentialsSecret": CREDENTIALS},
        "workers": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": CREDENTIALS, "key": "k"}}}]},
    }
    found = referenced_objects(spec(**blocks), JobPolicy.model_validate(LABELLED), DEFAULTS)
    assert [one.path for one in found] == ["spec.workers.env[0].valueFrom.secretKeyRef.name"]


@pytest.mark.parametrize(
    ("labels", "state"),
    [
        (None, "does not exist"),
        ({}, "does not have it"),
        ({LABEL_USABLE: "false"}, "does not have it"),
        ({LABEL_USABLE: "True"}, "does not have it"),
        ({LABEL_USABLE: "true"}, None),
    ],
)
def test_only_the_label_true_admits_an_object(labels: dict[str, str] | None, state: str | None) -> None:
    found = label_violation(ReferencedObject("spec.storage.credentialsSecret", "Secret", "keys"), labels)
    expected = (
        f'spec.storage.credentialsSecret must name a Secret with the label {LABEL_USABLE}: "true", which the job '
        f"policy requires, and keys {state}; ask an administrator to add the label, or use another Secret"
    )
    assert (found and str(found)) == (state and expected)


NAME_PATTERN = structural_schema(Spec)["properties"]["workers"]["properties"]["serviceAccountName"]["pattern"]


def fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from fields(child, f"{path}.{name}")
    if "items" in node:
        yield from fields(node["items"], f"{path}[]")


def test_every_field_that_names_an_object_has_a_row_or_is_admitted_on_purpose() -> None:
    named = {path for path, node in fields(structural_schema(Spec), "spec") if node.get("pattern") == NAME_PATTERN}
    limited = {path for row in (*RULES, *REFERENCES) for path in row.paths}
    assert named - limited == {"spec.workers.env[].valueFrom.configMapKeyRef.name"}


def test_every_path_of_the_table_is_a_field_of_a_spec() -> None:
    known = {path for path, _ in fields(structural_schema(Spec), "spec")}
    assert {path for row in (*RULES, *REFERENCES) for path in row.paths} - known == set()


def test_every_field_of_the_policy_has_a_row() -> None:
    assert {row.field for row in (*RULES, *REFERENCES)} == set(JobPolicy.model_fields)
