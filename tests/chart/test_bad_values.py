"""Values that helm refuses, with the reason, before anything is installed."""

import json
from typing import Any

import pytest

from testcluster.helm import CHART, RELEASE, Helm, HelmError

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a key that does not exist": ({"imgae": {"tag": "1"}}, "'imgae'"),
    "a misspelt key below another": ({"storage": {"endpont": "https://s3.example.com"}}, "'endpont'"),
    "a misspelt key three levels down": ({"operatorPod": {"resources": {"limit": {"cpu": "1"}}}}, "'limit'"),
    "a misspelt key in a list": ({"operatorPod": {"tolerations": [{"keys": "gpu"}]}}, "'keys'"),
    "a text for a number": ({"operator": {"workers": "many"}}, "got string, want integer"),
    "a text for a switch": ({"crd": {"install": "no"}}, "got string, want boolean"),
    "a text for a list": ({"namespaces": "ml"}, "got string, want array"),
    "a number for a text": ({"image": {"tag": 1.5}}, "got number, want string"),
    "a namespace that no cluster can have": ({"namespaces": ["ML"]}, "/namespaces/0"),
    "a namespace twice": ({"namespaces": ["ml", "ml"]}, "/namespaces"),
    "the user root": ({"security": {"runAsUser": 0}}, "/security/runAsUser"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "/image/digest"),
    "a size that is none": ({"pods": {"ephemeralStorage": "much"}}, "/pods/ephemeralStorage"),
    "an address with a password": (
        {"storage": {"endpoint": "https://me:hidden@s3.example.com"}},
        "storage.endpoint must be an address such as https://s3.example.com, without user name and password",
    ),
    "an address with a fragment": (
        {"storage": {"endpoint": "https://s3.example.com/a#b"}},
        "storage.endpoint must be an address such as https://s3.example.com",
    ),
    "a region with a space": ({"storage": {"region": "EU west"}}, "/storage/region"),
    "an address without a scheme": (
        {"storage": {"endpoint": "s3.example.com"}},
        "storage.endpoint must be an address such as https://s3.example.com",
    ),
    "an interval of no time": ({"operator": {"progressSeconds": 0}}, "/operator/progressSeconds"),
    "a log level that does not exist": ({"operator": {"logLevel": "loud"}}, "'debug', 'info', 'warning', 'error'"),
    "no port of the API server": ({"networkPolicies": {"operator": {"apiServerPorts": []}}}, "apiServerPorts"),
    "a Lease that expires too soon": ({"leaderElection": {"leaseSeconds": 1}}, "/leaderElection/leaseSeconds"),
    "two replicas without a leader": (
        {"replicas": 2, "leaderElection": {"enabled": False}},
        "leaderElection.enabled must be true if replicas is more than 1",
    ),
    "a maximum below the minimum": (
        {"pods": {"terminationGrace": {"maximumSeconds": 60}}},
        "pods.terminationGrace.maximumSeconds must be at least minimumSeconds, 120",
    ),
    "a default that one stage does not have": (
        {"pods": {"defaults": {"prepare": {"priorityClassName": "batch"}}}},
        "'priorityClassName'",
    ),
    "a misspelt key of the affinity": ({"operatorPod": {"affinity": {"nodeAfinity": {}}}}, "'nodeAfinity'"),
    "a misspelt key of a peer": (
        {"networkPolicies": {"operator": {"metricsFrom": [{"podSelectr": {}}]}}},
        "'podSelectr'",
    ),
    "a misspelt key of a variable": ({"pods": {"env": [{"nam": "A"}]}}, "'nam'"),
    "a variable from an unknown source": (
        {"pods": {"env": [{"name": "A", "valueFrom": {"secretKeyReff": {"name": "a", "key": "b"}}}]}},
        "'secretKeyReff'",
    ),
    "a name that no variable can have": ({"pods": {"env": [{"name": "A b", "value": "1"}]}}, "/pods/env/0/name"),
    "a misspelt key of a mount": ({"pods": {"volumeMounts": [{"name": "a", "mountpath": "/a"}]}}, "'mountpath'"),
    "a volume without a source": ({"pods": {"volumes": [{"name": "a"}]}}, "/pods/volumes/0"),
    "a volume with two sources": (
        {"pods": {"volumes": [{"name": "a", "emptyDir": {}, "configMap": {"name": "b"}}]}},
        "/pods/volumes/0",
    ),
    "a scheduler that no cluster can have": (
        {"pods": {"defaults": {"workers": {"schedulerName": "Gang"}}}},
        "/pods/defaults/workers/schedulerName",
    ),
    "an unknown field of the job policy": ({"jobPolicy": {"image": []}}, "'image'"),
    "a registry without a slash": ({"jobPolicy": {"images": ["registry.example.com"]}}, "/jobPolicy/images/0"),
    "an endpoint with a path": ({"jobPolicy": {"storageEndpoints": ["https://a/b"]}}, "/jobPolicy/storageEndpoints/0"),
    "an admission policy without a job policy": (
        {"jobPolicy": {"requireLabelOnSecrets": False, "admission": {"create": True}}},
        "jobPolicy.admission.create must be false if no field of jobPolicy is set",
    ),
    "a monitor without the Service that it selects": (
        {"metrics": {"service": {"create": False}, "serviceMonitor": {"create": True}}},
        "metrics.service.create must be true if metrics.serviceMonitor.create is",
    ),
}


@pytest.mark.parametrize("mistake", list(REFUSED))
def test_helm_refuses(helm: Helm, mistake: str) -> None:
    values, reason = REFUSED[mistake]
    with pytest.raises(HelmError) as refused:
        helm.with_values("template", RELEASE, CHART, values=values)
    assert reason in refused.value.stderr


def test_a_misspelt_key_on_the_command_line_is_refused(helm: Helm) -> None:
    with pytest.raises(HelmError, match="replicas"):
        helm("template", RELEASE, CHART, "--set", "operatorPod.replicas=2")


def test_a_password_in_an_address_is_not_repeated_in_the_refusal(helm: Helm) -> None:
    with pytest.raises(HelmError) as refused:
        helm.with_values("template", RELEASE, CHART, values=REFUSED["an address with a password"][0])
    assert "hidden" not in refused.value.stderr


def test_the_chart_can_be_a_part_of_another_which_has_global_values(helm: Helm, tmp_path: Any) -> None:
    """Helm adds `global` to the values of a dependency."""
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts/finetune-operator").symlink_to(CHART)
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: platform\nversion: 1.0.0\n")
    values = {"global": {"cluster": "a"}, "finetune-operator": {"image": {"tag": "7"}}}
    rendered = helm.render(values, chart=tmp_path)
    (container,) = rendered["Deployment", RELEASE]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "finetune-operator:7"
    with pytest.raises(HelmError, match="imgae"):
        helm.render(json.loads(json.dumps(values | {"finetune-operator": {"imgae": {}}})), chart=tmp_path)
