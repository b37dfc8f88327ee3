"""What the job policy refuses, with the path and how to correct it."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest

from factories import make_job
from finetune_api.constants import LABEL_USABLE
from finetune_api.crd import structural_schema
from finetune_api.v1alpha1 import Spec, Volume
from finetune_api.v1alpha1.pod import POD_BLOCKS
from finetune_api.validation import parse_job
from finetune_operator.job_policy.model import DEFAULT_VOLUME_SOURCES, HostAccess, JobPolicy, VolumeSource
from finetune_operator.job_policy.rules import (
    CODE_VARIABLES,
    REFERENCES,
    REQUEST_VARIABLES,
    RULES,
    Defaults,
    ReferencedObject,
    label_violation,
    referenced_objects,
    violations,
)
from policy_cases import CASES, CREDENTIALS, ENDPOINT, IMAGE, POLICY

DEFAULTS = Defaults(IMAGE, ENDPOINT, CREDENTIALS)
LABELED = {"requireLabelOnSecrets": True, "requireLabelOnVolumeClaims": True}


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


ALL_ACCESS = {"hostAccess": get_args(HostAccess), "volumeSources": get_args(VolumeSource)}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused])
def test_only_access_to_nodes_and_uncommon_volumes_are_refused_without_their_fields(name: str) -> None:
    case = CASES[name]
    unrestricted = JobPolicy.model_validate(ALL_ACCESS)
    rules = [rule for rule in RULES if not (rule.field == "host_access" and rule.fixed)]
    assert violations(spec(**case.spec), unrestricted, DEFAULTS, rules) == ()


def test_every_row_of_the_table_decides_a_case() -> None:
    def paths(rule: Any) -> set[str]:
        return {path.partition("{")[0].replace("[]", "[0]") for path in rule.paths}

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
            {"deniedVariables": ["A_*"]},
            {"workers": {"env": [{"name": "A_B"}]}},
            "spec.workers.env[0].name must not be a variable in deniedVariables of the job policy (A_*), not A_B; "
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
        (LABELED, SECRETS + CLAIMS),
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
    found = referenced_objects(spec(**blocks), JobPolicy.model_validate(LABELED), DEFAULTS)
    assert [one.path for one in found] == ["spec.workers.env[0].valueFrom.secretKeyRef.name"]


def naming(secret: Any, claim: Any) -> dict[str, Any]:
    """Settings with the name of a Secret and of a claim in every free-form field that can have one."""
    return {
        "volumes": [
            {"name": "a", "secret": {"secretName": secret}},
            {"name": "b", "projected": {"sources": [{"configMap": {"name": "c"}}, {"secret": {"name": secret}}]}},
            {"name": "c", "csi": {"driver": "d", "nodePublishSecretRef": {"name": secret}}},
            {"name": "d", "persistentVolumeClaim": {"claimName": claim}},
        ]
    }


NAMES_IN_VOLUMES = (
    *("[0].secret.secretName", "[1].projected.sources[1].secret.name", "[2].csi.nodePublishSecretRef.name"),
    "[3].persistentVolumeClaim.claimName",
)
IN_VOLUMES = [f"spec.{block}.volumes{path}" for path in NAMES_IN_VOLUMES for block in POD_BLOCKS]


def in_all_blocks(settings: dict[str, Any]) -> dict[str, Any]:
    return {"workers": settings, "stages": {"prepare": settings, "evaluate": settings}}


def labeled(**blocks: Any) -> tuple[list[str], list[str]]:
    """Paths of the violations, and of the objects that need a label."""
    policy = JobPolicy.model_validate({**LABELED, **ALL_ACCESS})
    found, named = violations(spec(**blocks), policy, DEFAULTS), referenced_objects(spec(**blocks), policy, DEFAULTS)
    return [one.path for one in found], [one.path for one in named]


def test_secrets_and_claims_of_volumes_and_env_from_need_the_label_in_all_blocks() -> None:
    assert labeled(**in_all_blocks(naming("s", "c"))) == ([], IN_VOLUMES)
    settings = {"envFrom": [{"configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}}]}
    assert labeled(**in_all_blocks(settings)) == (
        [],
        [f"spec.{block}.envFrom[1].secretRef.name" for block in POD_BLOCKS],
    )


@pytest.mark.parametrize(
    "value", [5, 1.5, True, False, "", "../secrets", "A", "a/b", "a?b", "a\n", "a" * 254, [], ["s"], {}, {"name": "s"}]
)
def test_what_is_not_a_name_is_refused_and_never_read(value: Any) -> None:
    assert labeled(**in_all_blocks(naming(value, value))) == (IN_VOLUMES, [])


OTHER_TYPES: list[Any] = [5, True, "s", [5], ["s"], [[]]]


@pytest.mark.parametrize(
    "volume",
    [
        *({"projected": {"sources": value}} for value in (*OTHER_TYPES, {}, {"0": {"secret": {"name": "s"}}})),
        *({"projected": {"sources": [{"secret": value}]}} for value in (*OTHER_TYPES, [])),
        *({"csi": {"nodePublishSecretRef": value}} for value in (*OTHER_TYPES, [])),
    ],
    ids=str,
)
def test_a_value_of_another_type_above_a_name_is_refused(volume: dict[str, Any]) -> None:
    refused, named = labeled(workers={"volumes": [{"name": "v", **volume}]})
    assert (len(refused), named) == (1, [])


@pytest.mark.parametrize("value", [None, {}, {"sources": None}, {"sources": []}, {"sources": [None, {}]}])
def test_a_volume_that_names_nothing_needs_no_label(value: Any) -> None:
    assert labeled(workers={"volumes": [{"name": "v", "projected": value or {}}]}) == ([], [])


def test_deep_content_is_read_without_recursion_into_it() -> None:
    deep: Any = "s"
    for _ in range(150):
        deep = [deep]
    assert labeled(**in_all_blocks(naming(deep, deep))) == (IN_VOLUMES, [])


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


SCHEMA = structural_schema(Spec)
NAME_PATTERN = SCHEMA["properties"]["workers"]["properties"]["serviceAccountName"]["pattern"]


def fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from fields(child, f"{path}.{name}")
    if "items" in node:
        yield from fields(node["items"], f"{path}[]")


def test_every_field_that_names_an_object_has_a_row_or_is_admitted_on_purpose() -> None:
    named = {path for path, node in fields(SCHEMA, "spec") if node.get("pattern") == NAME_PATTERN}
    limited = {path for row in (*RULES, *REFERENCES) for path in row.paths}
    config_maps = {f"spec.{block}.envFrom[].configMapRef.name" for block in POD_BLOCKS}
    assert named - limited == {"spec.workers.env[].valueFrom.configMapKeyRef.name", *config_maps}


def test_every_field_with_an_address_of_a_server_is_limited_by_the_endpoints() -> None:
    addresses = {path for path, node in fields(SCHEMA, "spec") if "http" in node.get("pattern", "")}
    limited = {path for row in RULES if row.field == "storage_endpoints" for path in row.paths}
    assert addresses - limited == set()
    assert "spec.storage.endpoint" in addresses


@pytest.mark.parametrize("name", [*CODE_VARIABLES, *REQUEST_VARIABLES])
def test_names_that_are_compared_in_any_case_are_in_upper_case(name: str) -> None:
    assert name == name.upper()


def test_every_path_of_the_table_is_a_field_of_a_spec() -> None:
    known = dict(fields(SCHEMA, "spec"))
    for row in (*RULES, *REFERENCES):
        for path in row.paths:
            place, _, names = path.partition("{")
            assert free_form_above(place) or place in known, path
            if not free_form_above(path):
                assert set(names.removesuffix("}").split(",")) - set(known[place].get("properties", ())) <= {""}


def free_form_above(path: str) -> bool:
    """Whether a path is below a field whose content the schema does not describe."""
    return any(
        path.startswith(f"{above}.")
        for above, node in fields(SCHEMA, "spec")
        if node.get("x-kubernetes-preserve-unknown-fields")
    )


def test_the_admission_policy_has_the_rules_whose_values_the_schema_describes() -> None:
    for rule in RULES:
        assert {rule.is_in_admission_policy} == {not free_form_above(path) for path in rule.paths}


def test_every_source_of_a_volume_can_be_allowed() -> None:
    sources = {str(field.alias) for name, field in Volume.model_fields.items() if name != "name"}
    assert {*get_args(VolumeSource), "hostPath"} == sources
    assert sources - {*DEFAULT_VOLUME_SOURCES} == {"csi", "nfs", "hostPath"}


def test_every_field_of_the_policy_has_a_row() -> None:
    assert {row.field for row in (*RULES, *REFERENCES)} == set(JobPolicy.model_fields)
