"""Output of `python -m finetune_operator install`."""

import tomllib
from typing import Any

import pytest
from ruamel.yaml import YAML

from factories import make_job
from finetune_api import constants
from finetune_api.validation import parse_job
from finetune_operator.__main__ import _parser, _settings, main
from finetune_operator.render import render_all
from finetune_operator.settings import OperatorSettings
from process_support import ROOT


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Kind -> manifest; there is one of each."""
    assert main(["install", *arguments]) == 0
    found = list(YAML(typ="safe", pure=True).load_all(capsys.readouterr().out))
    assert len({one["kind"] for one in found}) == len(found)
    return {one["kind"]: one for one in found}


def container(manifests: dict[str, Any]) -> Any:
    return manifests["Deployment"]["spec"]["template"]["spec"]["containers"][0]


def test_everything_is_in_one_configurable_namespace(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "--namespace=tuning")
    assert found["Namespace"]["metadata"]["name"] == "tuning"
    named = {kind: one["metadata"]["namespace"] for kind, one in found.items() if "namespace" in one["metadata"]}
    assert named == dict.fromkeys(("ServiceAccount", "Deployment", "Service"), "tuning")
    assert found["ClusterRoleBinding"]["subjects"][0]["namespace"] == "tuning"


def test_the_image_is_configurable(capsys: pytest.CaptureFixture[str]) -> None:
    assert container(printed(capsys, "--image=images.example/operator:2"))["image"] == "images.example/operator:2"


def test_images_have_the_names_that_make_images_uses(capsys: pytest.CaptureFixture[str]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    operator = container(printed(capsys))
    assert operator["image"] == f"finetune-operator:{version}"
    assert f"--trainer-image=finetune-trainer:{version}" in operator["args"]


def test_settings_become_arguments_that_run_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--storage-endpoint=https://s3.example.com", "--credentials-secret=storage", "--progress-seconds=2"]
    arguments = container(printed(capsys, *chosen))["args"]
    options = _parser().parse_args(arguments)
    assert options.command == "run"
    assert (options.storage_endpoint, options.credentials_secret) == ("https://s3.example.com", "storage")
    assert options.progress_seconds == 2


def test_the_cluster_can_assign_users(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "--run-as-user=none")
    assert "runAsUser" not in found["Deployment"]["spec"]["template"]["spec"]["securityContext"]
    options = _parser().parse_args(container(found)["args"])
    assert _settings(options).run_as_user is None
    assert _settings(_parser().parse_args(container(printed(capsys))["args"])).run_as_user == 10001


@pytest.mark.parametrize("argument", ["--run-as-user=0", "--run-as-user=me", "--ephemeral-storage=much"])
def test_a_setting_that_is_invalid_for_pods_is_rejected(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    with pytest.raises(SystemExit):
        main(["install", argument])
    assert "must be" in capsys.readouterr().err


def test_the_network_policy_allows_trainer_pods_and_the_operator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["network-policy", "--namespace=tuning"]) == 0
    policy = YAML(typ="safe", pure=True).load(capsys.readouterr().out)
    job = parse_job(make_job(workers={"nodes": 2}))
    pods = [
        manifest["spec"]["template"]["metadata"]["labels"]
        for manifest in render_all(job, OperatorSettings())
        if manifest["kind"] == "Job"
    ]
    peers, operator = policy["spec"]["ingress"]
    for selector in (policy["spec"]["podSelector"], peers["from"][0]["podSelector"]):
        assert all(selector["matchLabels"].items() <= labels.items() for labels in pods)
    (source,) = operator["from"]
    deployed = printed(capsys, "--namespace=tuning")["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert source["podSelector"]["matchLabels"].items() <= deployed.items()
    assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "tuning"}
    assert operator["ports"] == [{"protocol": "TCP", "port": constants.PROGRESS_PORT}]
    assert policy["spec"]["policyTypes"] == ["Ingress"]


def test_the_service_uses_the_port_of_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys)
    (port,) = container(found)["ports"]
    (service,) = found["Service"]["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    assert port["containerPort"] == _parser().parse_args(["run"]).port
    assert found["Service"]["spec"]["selector"] == found["Deployment"]["spec"]["template"]["metadata"]["labels"]
