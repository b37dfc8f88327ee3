"""The chart with its defaults, rendered by the real helm."""

import json
import re
import tomllib
from typing import Any

from ruamel.yaml import YAML

from finetune_api.crd import crd
from finetune_operator.__main__ import _parser, _settings
from finetune_operator.controller.metrics import Metrics
from finetune_operator.settings import OperatorSettings
from golden import same_as_golden
from process_support import ROOT
from testcluster.helm import CHART, RELEASE, Helm

READ_ONLY_VERBS = {"get", "list", "watch"}


def read(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(CHART / name)


def test_helm_lint_finds_nothing(helm: Helm) -> None:
    assert "1 chart(s) linted, 0 chart(s) failed" in helm("lint", "--strict", CHART)


def test_the_installation_in_manifests_is_the_chart_with_its_defaults_and_its_namespace(helm: Helm) -> None:
    text = helm("template", RELEASE, CHART, "--set", "namespace.create=true")
    same_as_golden(ROOT / "manifests/install.yaml", text)
    everything = helm.render({"namespace": {"create": True}})
    assert set(everything) - set(helm.render({})) == {("Namespace", "finetune-system")}


def test_the_versions_of_the_chart_and_of_the_images_are_those_of_the_package(helm: Helm) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = read("Chart.yaml")
    assert (chart["version"], chart["appVersion"]) == (version, version)
    (container,) = helm.render({})["Deployment", RELEASE]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"finetune-operator:{version}"
    assert f"--trainer-image=finetune-trainer:{version}" in container["args"]


def test_the_crd_is_the_one_of_the_models_and_outlives_the_release(helm: Helm) -> None:
    text = helm("template", RELEASE, CHART, "--show-only=templates/crd.yaml")
    rendered = YAML(typ="safe", pure=True).load(text)
    assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert rendered == crd()


def test_the_defaults_of_the_chart_are_those_of_the_operator(helm: Helm) -> None:
    (container,) = helm.render({})["Deployment", RELEASE]["spec"]["template"]["spec"]["containers"]
    # A process outside of a cluster has no namespace for a Lease.
    lease = f"--lease=finetune-system/{RELEASE}"
    chosen, own = _parser().parse_args(container["args"]), _parser().parse_args(["run", lease])
    assert _settings(chosen) == _settings(own) == OperatorSettings()
    assert vars(chosen) == vars(own)
    assert container["ports"] == [{"name": "http", "containerPort": own.port}]


def test_the_metrics_service_selects_the_pod_of_the_operator(helm: Helm) -> None:
    rendered = helm.render({})
    service, deployment = rendered["Service", f"{RELEASE}-metrics"]["spec"], rendered["Deployment", RELEASE]["spec"]
    assert service["selector"] == deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"]
    assert [port["targetPort"] for port in service["ports"]] == ["http"]


def test_two_releases_in_one_namespace_do_not_select_each_others_pods(helm: Helm) -> None:
    first, second = helm.render({}, release="one"), helm.render({}, release="two")
    assert {kind for kind, _ in set(first) & set(second)} == {"CustomResourceDefinition"}
    selectors = [
        rendered["Deployment", f"{name}-finetune-operator"]["spec"]["selector"]
        for name, rendered in (("one", first), ("two", second))
    ]
    assert selectors[0] != selectors[1]


def test_the_operator_has_no_right_to_read_secrets_and_none_to_write_specs(helm: Helm) -> None:
    rules = helm.render({})["ClusterRole", RELEASE]["rules"]
    assert not any({"secrets", "*"} & set(rule["resources"]) or "*" in rule["verbs"] for rule in rules)
    (jobs,) = [rule for rule in rules if rule["resources"] == ["finetunejobs"]]
    assert set(jobs["verbs"]) == READ_ONLY_VERBS


def test_every_verb_has_a_comment(helm: Helm) -> None:
    switches = (
        "networkPolicies.jobs.create",
        "jobPolicy.requireLabelOnSecrets",
        "jobPolicy.requireLabelOnVolumeClaims",
    )
    text = helm("template", RELEASE, CHART, "--set", ",".join(f"{name}=true" for name in switches))
    roles = [one for one in text.split("\n---\n") if re.search(r"\nkind: (Cluster)?Role\n", one)]
    assert len(roles) == 5
    for role in roles:
        verbs = [line for line in role.splitlines() if line.startswith("  - ")]
        assert verbs
        assert [line for line in verbs if not re.fullmatch(r"  - [a-z]+ # \w.*", line)] == []


def test_users_who_may_view_edit_or_administer_a_namespace_may_do_so_with_its_jobs(helm: Helm) -> None:
    rendered = helm.render({})
    verbs = {}
    for name in ("view", "edit", "admin"):
        role = rendered["ClusterRole", f"{RELEASE}-{name}"]
        assert role["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{name}"] == "true"
        (rule,) = role["rules"]
        assert (rule["apiGroups"], rule["resources"]) == (["finetune.dev"], ["finetunejobs"])
        verbs[name] = set(rule["verbs"])
    assert verbs["view"] == READ_ONLY_VERBS
    assert verbs["edit"] - verbs["view"] == {"create", "update", "patch", "delete"}
    assert verbs["admin"] - verbs["edit"] == {"deletecollection"}


def test_the_dashboard_shows_metrics_that_the_operator_has() -> None:
    metrics = Metrics()
    metrics.show_queue(lambda: 0, lambda: 0)
    metrics.show_workers(1, lambda: 0, lambda: 0)
    metrics.show_jobs(dict)
    metrics.show_watches(dict)
    metrics.show_leader(lambda: True)
    families = {family.name: family.type for family in metrics.registry.collect()}
    samples = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
    known = {name + suffix for name, kind in families.items() for suffix in samples[kind]}
    panels = json.loads((CHART / "files/dashboard.json").read_text())["panels"]
    used = set()
    metric = r"\b(?:finetune|controller_runtime|workqueue|rest_client|leader_election)_\w+"
    for panel in panels:
        for target in panel["targets"]:
            used |= set(re.findall(metric, target["expr"]))
    assert len(used) > 10
    assert used <= known
    assert len({panel["id"] for panel in panels}) == len(panels)
