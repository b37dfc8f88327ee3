"""Our CRD on a real API server, which verifies the structural schema and the cost of CEL rules."""

import asyncio
import functools
import json
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from factories import make_job, merged
from field_cases import field_cases, metadata_cases
from finetune_api import constants
from finetune_api.constants import Stage
from finetune_api.crd import crd
from finetune_api.stages import run_stages
from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import ProgressStatus
from finetune_api.validation import parse_job
from finetune_operator.clusters.api_server import ApiServer
from finetune_operator.clusters.kubernetes import path_of
from finetune_operator.errors import ApiError
from finetune_operator.policy import steps
from finetune_operator.policy.status import status_after
from finetune_operator.policy.world import stage_config
from finetune_operator.render import render_all, render_stage
from finetune_operator.settings import OperatorSettings
from refused_jobs import RULE_ERRORS, SCHEMA_ERRORS
from statuses import make_status
from testcluster.access import Kubectl
from testcluster.control_plane import ControlPlane
from value_jobs import POD_SETTINGS, found_at

ROOT = Path(__file__).parents[2]
CRDS = sorted((ROOT / "manifests/crds").glob("*.yaml"))
JOBS = [*sorted((ROOT / "manifests/samples").glob("*.yaml")), *sorted((ROOT / "tests/golden").glob("*/job.yaml"))]
NAME = f"crd/{crd()['metadata']['name']}"
REFUSED = SCHEMA_ERRORS | RULE_ERRORS


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane, admin: Path) -> Kubectl:
    """kubectl with administrator permissions after installing the CRD. It is kept, because other tests have objects of
    it."""
    kubectl = control_plane.kubectl
    for path in CRDS:
        kubectl("apply", "--server-side", "--validate=strict", "-f", str(path))
    return kubectl


@pytest.fixture(scope="module")
def jobs(installed: Kubectl, shared_namespace: str) -> Kubectl:
    return installed.within(shared_namespace)


def test_the_api_server_accepts_the_schema(installed: Kubectl) -> None:
    conditions = {one["type"]: one["status"] for one in installed.json("get", NAME)["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}


def test_the_installed_schema_is_that_of_the_models(installed: Kubectl) -> None:
    version = installed.json("get", NAME)["spec"]["versions"][0]
    assert version == crd()["spec"]["versions"][0]


def test_an_at_sign_in_the_path_of_an_address_is_not_a_password(jobs: Kubectl) -> None:
    assert (
        jobs.refusal(make_job(namespace=jobs.namespace, storage={"endpoint": "https://s3.example.com/teams/@nlp"}))
        is None
    )


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_documented_job_is_accepted(jobs: Kubectl, path: Path) -> None:
    job = YAML(typ="safe", pure=True).load(path)
    job["metadata"]["namespace"] = jobs.namespace
    assert jobs.refusal(job) is None


def test_the_smallest_job_is_accepted_with_its_defaults(jobs: Kubectl) -> None:
    jobs.apply(make_job("smallest", namespace=jobs.namespace))
    spec = jobs.json("get", "finetunejob/smallest")["spec"]
    assert (spec["method"], spec["workers"]["nodes"], spec["suspend"]) == ({"full": {}}, 1, False)


def test_a_quantity_may_be_a_decimal_number_as_in_a_pod(jobs: Kubectl) -> None:
    limits = {"cpu": 0.5, "memory": 1e9, "ephemeral-storage": "2Gi"}
    jobs.apply(make_job("number", namespace=jobs.namespace, workers={"resources": {"limits": limits}}))
    kept = jobs.json("get", "finetunejob/number")
    assert kept["spec"]["workers"]["resources"]["limits"] == limits
    read = parse_job(kept).spec.workers.resources.limits
    assert read == {"cpu": "0.5", "memory": "1000000000", "ephemeral-storage": "2Gi"}


def test_entries_of_lists_are_unchanged(jobs: Kubectl) -> None:
    workers = {
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "env": [{"name": "DEBUG"}, {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
    }
    jobs.apply(make_job("entries", namespace=jobs.namespace, workers=workers))
    kept = jobs.json("get", "finetunejob/entries")["spec"]["workers"]
    assert {name: kept[name] for name in workers} == workers


def test_every_field_is_validated_as_by_the_command_line(installed: Kubectl, admin: Path) -> None:
    cases = [*field_cases(), *metadata_cases()]

    async def verdicts() -> list[bool]:
        server = await ApiServer.connect(admin)
        try:
            return await asyncio.gather(*(accepts(server, case.manifest) for case in cases))
        finally:
            await server.close()

    found = asyncio.run(verdicts())
    assert [str(case) for case, accepted in zip(cases, found, strict=True) if accepted != case.is_valid] == []


async def accepts(server: ApiServer, manifest: dict[str, Any]) -> bool:
    path = path_of(manifest["apiVersion"], "finetunejobs", "default")
    try:
        await server.request("POST", path, manifest, dryRun="All", fieldValidation="Strict")
    except ApiError as error:
        if error.status not in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
            raise
        return False
    return True


@pytest.mark.parametrize(("spec", "message"), REFUSED.values(), ids=REFUSED)
def test_an_error_is_rejected_with_its_reason(jobs: Kubectl, spec: dict[str, Any], message: str) -> None:
    assert message in (jobs.refusal(make_job(namespace=jobs.namespace, **spec)) or "accepted")


def test_a_name_that_is_too_long_for_pod_names_is_rejected(jobs: Kubectl) -> None:
    longest, too_long = (make_job("n" * length, namespace=jobs.namespace) for length in (40, 41))
    assert jobs.refusal(longest) is None
    assert "metadata.name must have at most 40 characters" in (jobs.refusal(too_long) or "accepted")


def test_a_name_with_a_dot_is_rejected(jobs: Kubectl) -> None:
    refusal = jobs.refusal(make_job("llama.7b", namespace=jobs.namespace)) or "accepted"
    assert "metadata.name must be a name of a-z, 0-9 and '-'" in refusal


@pytest.mark.parametrize("user", [10001, None])
def test_children_of_a_job_with_an_unusual_name_and_values_are_accepted(jobs: Kubectl, user: int | None) -> None:
    """The API server validates names, quantities and references in Services and pod templates."""
    workers = {
        "nodes": 2,
        "resources": {"limits": {"cpu": 0.5, "memory": 1e9}},
        "env": [{"name": "EMPTY"}, {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "tolerations": [{"operator": "Exists"}],
    }
    manifest = make_job("7b-chat", namespace=jobs.namespace, workers=workers)
    manifest["metadata"]["uid"] = "1f3a9c42"
    children = render_all(parse_job(manifest), OperatorSettings(run_as_user=user))
    assert {child["kind"] for child in children} == {"ConfigMap", "Service", "Job"}
    assert jobs.refusal(*children) is None


@pytest.fixture
def runtime_class(installed: Kubectl) -> Iterator[None]:
    """The RuntimeClass of POD_SETTINGS, without which the API server refuses pods."""
    name = {"name": "nvidia"}
    installed.apply({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": name, "handler": "runc"})
    yield
    installed("delete", "runtimeclass/nvidia")


@pytest.mark.usefixtures("runtime_class")
def test_every_setting_of_pods_reaches_the_pods_of_each_stage(jobs: Kubectl) -> None:
    every: dict[str, Any] = functools.reduce(merged, (block for block, _, _ in POD_SETTINGS.values()), {})
    workers = {**every, "nodes": 2, "gpusPerNode": 1, "gpuResource": "amd.com/gpu"}
    stages = {"prepare": every, "evaluate": {**every, "gpus": 1}}
    jobs.apply(make_job("settings", namespace=jobs.namespace, workers=workers, stages=stages))
    job = parse_job(jobs.json("get", "finetunejob/settings"))
    for stage in run_stages():
        *_, manifest = render_stage(stage_config(job, 1, stage, 1, StorageSettings()), OperatorSettings())
        accepted = jobs.dry_run(manifest)["spec"]
        missing = {
            row: found_at(accepted, path)
            for row, (_, path, expected) in POD_SETTINGS.items()
            if not contains(found_at(accepted, path), expected)
        }
        assert missing == {}, stage
        limits = accepted["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits.get("amd.com/gpu") == (None if stage is Stage.PREPARE else "1")
        template = accepted["template"]
        metadata = {**template["metadata"], "name": "pod"}
        assert jobs.refusal({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}) is None


def contains(actual: Any, expected: Any) -> bool:
    """Whether a value of the API server is the expected one, apart from fields with defaults that the server added."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return all(name in actual and contains(actual[name], value) for name, value in expected.items())
    if isinstance(expected, list) and isinstance(actual, list):
        return len(actual) == len(expected) and all(map(contains, actual, expected))
    return bool(actual == expected)


def test_the_network_policy_is_accepted(jobs: Kubectl) -> None:
    policy = YAML(typ="safe", pure=True).load(ROOT / "manifests/network-policy.yaml")
    assert jobs.refusal(policy) is None


def test_status_is_a_subresource(jobs: Kubectl) -> None:
    """A user with permission for a job's spec cannot write its status, and vice versa."""
    jobs.apply(make_job("job", namespace=jobs.namespace))
    jobs("patch", "finetunejob/job", "--type=merge", '--patch={"status": {"phase": "Succeeded"}}')
    assert jobs.json("get", "finetunejob/job")["status"] == {"observedGeneration": constants.UNOBSERVED_GENERATION}
    by_status = '--patch={"status": {"phase": "Pending"}, "spec": {"suspend": true}}'
    jobs("patch", "finetunejob/job", "--subresource=status", "--type=merge", by_status)
    job = jobs.json("get", "finetunejob/job")
    assert (job["status"]["phase"], job["spec"]["suspend"]) == ("Pending", False)


def test_kubectl_get_shows_readable_values_and_why_a_job_waits(jobs: Kubectl) -> None:
    progress = ProgressStatus(step=27, total_steps=100, percent=27, loss=1.4480993092066088, eta_seconds=134)
    status = status_after(
        make_status(run=3, stage="train", attempt=1, progress=progress, restarts=1),
        steps.Watch(Stage.TRAIN, 1),
        generation=1,
        now="2026-01-01T12:00:00Z",
    )
    jobs.apply(make_job("topics-train", namespace=jobs.namespace))
    patch = json.dumps({"status": status.written()})
    jobs("patch", "ftj/topics-train", "--subresource=status", "--type=merge", f"--patch={patch}")
    heading, row = jobs("get", "ftj", "topics-train").splitlines()
    assert heading.split() == ["NAME", "PHASE", "REASON", "PROGRESS", "LOSS", "ETA", "RESTARTS", "AGE"]
    assert row.split()[:-1] == ["topics-train", "Training", "Training", "27%", "1.448", "2m14s", "1"]
    assert max(map(len, (heading, row))) <= 80
    wide = jobs("get", "ftj", "topics-train", "-o", "wide").splitlines()[0].split()
    assert wide[8:] == ["RUN", "CHECKPOINT-AGE", "NODES", "MODEL"]
