"""Every option of the chart, rendered by the real helm."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import chart_values
from finetune_api.constants import LABEL_MANAGED_BY, MANAGED_BY, PROGRESS_PORT
from finetune_operator.__main__ import _parser, _settings
from finetune_operator.job_policy.model import parse_policy
from finetune_operator.pod_defaults import parse_defaults
from finetune_operator.render.network_policy import network_policy_spec
from finetune_operator.settings import OperatorSettings, PodAdditions
from testcluster.helm import CHART, RELEASE, Helm, Rendered

CRD = ("CustomResourceDefinition", "finetunejobs.finetune.dev")
DIGEST = f"sha256:{'a' * 64}"
TOLERATION = {"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}
AFFINITY = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}
PEER = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
CERTIFICATES: dict[str, Any] = {
    "volumes": [{"name": "ca", "configMap": {"name": "ca", "defaultMode": 0o444}}],
    "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
    "env": [{"name": "AWS_CA_BUNDLE", "value": "/etc/ca/ca.crt"}],
}
CLUSTER_SCOPED = {"CustomResourceDefinition", "Namespace", "ClusterRole", "ClusterRoleBinding"}


def nested(path: str, value: Any) -> dict[str, Any]:
    """`nested("a.b", 1)` -> {"a": {"b": 1}}."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def pod(rendered: Rendered) -> dict[str, Any]:
    spec: dict[str, Any] = rendered["Deployment", RELEASE]["spec"]["template"]["spec"]
    return spec


def container(rendered: Rendered) -> dict[str, Any]:
    (only,) = pod(rendered)["containers"]
    found: dict[str, Any] = only
    return found


def arguments(rendered: Rendered) -> Any:
    """The arguments of the operator as `run` understands them, without those that name files in the cluster."""
    given = [one for one in container(rendered)["args"] if not one.startswith(("--pod-additions=", "--policy="))]
    return _parser().parse_args(given)


def settings(rendered: Rendered) -> OperatorSettings:
    return _settings(arguments(rendered))


# ---- namespaces and rights -------------------------------------------------------------------------------------------


def test_namespaces_limit_the_operator_to_a_role_in_each(helm: Helm) -> None:
    rendered = helm.render({"namespaces": ["ml", "nlp"]})
    assert arguments(rendered).namespace == ["ml", "nlp"]
    assert ("ClusterRole", RELEASE) not in rendered
    assert ("ClusterRoleBinding", RELEASE) not in rendered
    everywhere = helm.render({})["ClusterRole", RELEASE]["rules"]
    for namespace in ("ml", "nlp"):
        assert rendered["Role", f"{namespace}/{RELEASE}"]["rules"] == everywhere
        binding = rendered["RoleBinding", f"{namespace}/{RELEASE}"]
        assert binding["roleRef"]["kind"] == "Role"
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": RELEASE, "namespace": "finetune-system"},
        ]


def test_a_namespace_whose_name_is_a_number_or_a_word_of_yaml_stays_a_name(helm: Helm) -> None:
    rendered = helm.render({"namespaces": ["123", "null"]})
    assert {"123", "null"} == {
        rendered["Role", f"{name}/{RELEASE}"]["metadata"]["namespace"] for name in ("123", "null")
    }


def test_a_team_can_install_the_operator_without_a_right_in_the_cluster(helm: Helm) -> None:
    values = {"namespaces": ["ml"], "crd": {"install": False}, "rbac": {"aggregate": False}}
    assert not CLUSTER_SCOPED & {kind for kind, _ in helm.render(values)}


def test_the_crd_can_be_left_to_another_release(helm: Helm) -> None:
    assert set(helm.render({})) - set(helm.render(nested("crd.install", False))) == {CRD}


def test_rights_can_be_left_to_an_administrator(helm: Helm) -> None:
    kinds = {kind for kind, _ in helm.render(nested("rbac.create", False))}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}


def test_the_roles_of_users_can_be_left_alone(helm: Helm) -> None:
    left_out = set(helm.render({})) - set(helm.render(nested("rbac.aggregate", False)))
    assert left_out == {("ClusterRole", f"{RELEASE}-{name}") for name in ("view", "edit", "admin")}


def test_the_namespace_is_rendered_with_pod_security_restricted(helm: Helm) -> None:
    namespace = helm.render(nested("namespace.create", True))["Namespace", "finetune-system"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_service_account_can_be_named_and_annotated(helm: Helm) -> None:
    rendered = helm.render({"serviceAccount": {"name": "trainer", "annotations": {"role": "arn"}}})
    assert rendered["ServiceAccount", "trainer"]["metadata"]["annotations"] == {"role": "arn"}
    assert pod(rendered)["serviceAccountName"] == "trainer"
    assert rendered["ClusterRoleBinding", RELEASE]["subjects"][0]["name"] == "trainer"


@pytest.mark.parametrize(("name", "used"), [("present", "present"), ("", "default")])
def test_a_service_account_that_exists_can_be_used(helm: Helm, name: str, used: str) -> None:
    rendered = helm.render({"serviceAccount": {"create": False, "name": name}})
    assert "ServiceAccount" not in {kind for kind, _ in rendered}
    assert pod(rendered)["serviceAccountName"] == used
    assert rendered["ClusterRoleBinding", RELEASE]["subjects"][0]["name"] == used


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({"repository": "images.example/own"}, "images.example/own:0.1.0"),
        ({"repository": "images.example:5000/own", "tag": "1"}, "images.example:5000/own:1"),
        ({"repository": "own", "tag": "1", "digest": DIGEST}, f"own@{DIGEST}"),
    ],
)
def test_images_have_a_repository_a_tag_and_a_digest(helm: Helm, image: dict[str, str], reference: str) -> None:
    assert container(helm.render({"image": image}))["image"] == reference
    assert settings(helm.render({"trainerImage": image})).trainer_image == reference


def test_the_operators_image_can_come_from_a_private_registry(helm: Helm) -> None:
    rendered = helm.render({"image": {"pullPolicy": "Always"}, "imagePullSecrets": [{"name": "registry"}]})
    assert container(rendered)["imagePullPolicy"] == "Always"
    assert pod(rendered)["imagePullSecrets"] == [{"name": "registry"}]


# ---- settings of jobs and of the operator ----------------------------------------------------------------------------


def test_storage_becomes_the_default_of_jobs(helm: Helm) -> None:
    storage = {"endpoint": "https://s3.example.com:9000/x", "region": "eu-west-1", "credentialsSecret": "storage"}
    found = settings(helm.render({"storage": storage}))
    assert (found.storage.endpoint, found.storage.region) == ("https://s3.example.com:9000/x", "eu-west-1")
    assert (found.storage.path_style, found.credentials_secret) == (True, "storage")


@pytest.mark.parametrize("user", [12345, 1000660000])
def test_users_can_be_chosen_also_with_large_numbers(helm: Helm, user: int) -> None:
    """Helm reads numbers as floating point and would write 1.00066e+09."""
    rendered = helm.render(nested("security.runAsUser", user))
    assert pod(rendered)["securityContext"]["runAsUser"] == user
    assert settings(rendered).run_as_user == user


def test_users_can_be_left_to_the_cluster(helm: Helm) -> None:
    rendered = helm.render(nested("security.runAsUser", "none"))
    assert pod(rendered)["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert settings(rendered).run_as_user is None


@pytest.mark.parametrize(("size", "argument"), [("500Mi", "500Mi"), ("0", "0"), (0, "0")])
def test_the_disk_of_jobs_can_be_chosen(helm: Helm, size: Any, argument: str) -> None:
    assert settings(helm.render(nested("pods.ephemeralStorage", size))).ephemeral_storage == argument


def test_the_grace_of_training_pods_can_be_chosen(helm: Helm) -> None:
    grace = {"minimumSeconds": 30, "maximumSeconds": 1000000}
    found = settings(helm.render(nested("pods.terminationGrace", grace))).termination_grace
    assert (found.least_seconds, found.most_seconds) == (30, 1000000)


def test_gang_scheduling_can_be_disabled_together_with_its_permissions(helm: Helm) -> None:
    enabled, disabled = helm.render({}), helm.render(nested("pods.gangScheduling", False))
    assert [settings(one).gang_scheduling for one in (enabled, disabled)] == [True, False]
    (rule,) = [one for one in enabled["ClusterRole", RELEASE]["rules"] if one["resources"] == ["podgroups"]]
    assert rule["apiGroups"] == ["scheduling.k8s.io"]
    kept = [one for one in enabled["ClusterRole", RELEASE]["rules"] if one is not rule]
    assert disabled["ClusterRole", RELEASE]["rules"] == kept


def test_volumes_mounts_and_variables_reach_every_pod_of_a_job(helm: Helm) -> None:
    rendered = helm.render({"pods": CERTIFICATES})
    name = f"{RELEASE}-pod-additions"
    assert json.loads(rendered["ConfigMap", name]["data"]["additions.json"]) == CERTIFICATES
    (mount,) = container(rendered)["volumeMounts"]
    (volume,) = pod(rendered)["volumes"]
    assert (volume["name"], volume["configMap"]) == (mount["name"], {"name": name})
    assert f"--pod-additions={mount['mountPath']}/additions.json" in container(rendered)["args"]


def test_defaults_of_what_jobs_leave_out_reach_the_operator(helm: Helm, tmp_path: Path) -> None:
    workers = {"nodeSelector": {"pool": "gpu"}, "priorityClassName": "batch", "imagePullSecrets": ["registry"]}
    tolerations = [{"key": "cpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1000000}]
    prepare = {"tolerations": tolerations, "runtimeClassName": "kata"}
    defaults = {"workers": workers, "prepare": prepare, "evaluate": {"schedulerName": "other"}}
    rendered = helm.render({"pods": {"defaults": defaults}})
    file = tmp_path / "additions.json"
    file.write_text(rendered["ConfigMap", f"{RELEASE}-pod-additions"]["data"]["additions.json"])
    found = _settings(_parser().parse_args(["run", f"--pod-additions={file}"]))
    assert found == OperatorSettings(additions=PodAdditions(defaults=parse_defaults(defaults)))


def test_the_operator_restarts_when_the_additions_of_pods_change(helm: Helm) -> None:
    templates = [
        helm.render(nested("pods.env", [{"name": "A", "value": value}]))["Deployment", RELEASE]["spec"]["template"]
        for value in ("1", "2")
    ]
    assert templates[0] != templates[1]


def test_the_work_of_the_operator_can_be_tuned(helm: Helm) -> None:
    values = {
        "workers": 4,
        "resyncSeconds": 60,
        "progressSeconds": 0.5,
        "watchSilenceSeconds": 120,
        "logLevel": "debug",
    }
    found = vars(arguments(helm.render({"operator": values})))
    names = ("workers", "resync_seconds", "progress_seconds", "watch_silence_seconds", "log_level")
    assert [found[name] for name in names] == [4, 60.0, 0.5, 120.0, "debug"]


# ---- the operator's pod ----------------------------------------------------------------------------------------------


def test_the_pod_of_the_operator_can_be_placed(helm: Helm) -> None:
    placement = {
        "nodeSelector": {"pool": "system"},
        "tolerations": [TOLERATION],
        "affinity": AFFINITY,
        "priorityClassName": "important",
    }
    spec = pod(helm.render({"operatorPod": placement}))
    assert {name: spec[name] for name in placement} == placement


def test_the_pod_of_the_operator_can_be_labeled_but_keeps_its_own_labels(helm: Helm) -> None:
    labels = {"team": "ml", "app.kubernetes.io/name": "other"}
    rendered = helm.render({"operatorPod": {"labels": labels, "annotations": {"sidecar": "no"}}})
    template = rendered["Deployment", RELEASE]["spec"]["template"]["metadata"]
    assert template["annotations"] == {"sidecar": "no"}
    own = rendered["Deployment", RELEASE]["spec"]["selector"]["matchLabels"]
    assert template["labels"] == {"team": "ml"} | own


def test_the_resources_of_the_operator_can_be_changed_one_by_one(helm: Helm) -> None:
    values = {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi", "cpu": 2}}
    assert container(helm.render(nested("operatorPod.resources", values)))["resources"] == {
        "requests": {"cpu": "100m", "memory": "1Gi"},
        "limits": {"memory": "2Gi", "cpu": 2},
    }


@pytest.mark.parametrize("replicas", [1, 2])
def test_evictions_of_the_last_operator_can_be_refused(helm: Helm, replicas: int) -> None:
    rendered = helm.render({"replicas": replicas, "podDisruptionBudget": {"create": True}})
    budget = rendered["PodDisruptionBudget", RELEASE]["spec"]
    assert budget["minAvailable"] == 1
    assert budget["selector"] == rendered["Deployment", RELEASE]["spec"]["selector"]


# ---- replicas --------------------------------------------------------------------------------------------------------


def lease_role(rendered: Rendered) -> dict[str, Any]:
    role: dict[str, Any] = rendered["Role", f"{RELEASE}-leader-election"]
    return role


def test_two_replicas_elect_a_leader_with_a_lease_that_they_may_use(helm: Helm) -> None:
    rendered = helm.render({"replicas": 2, "leaderElection": {"leaseSeconds": 30}})
    deployment = rendered["Deployment", RELEASE]["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    found = arguments(rendered)
    assert (found.lease, found.lease_seconds) == (("finetune-system", RELEASE), 30)
    create, use = lease_role(rendered)["rules"]
    assert (create["resources"], create["verbs"]) == (["leases"], ["create"])
    assert (use["resources"], use["resourceNames"], use["verbs"]) == (["leases"], [RELEASE], ["get", "update"])
    binding = rendered["RoleBinding", f"{RELEASE}-leader-election"]
    assert binding["roleRef"]["name"] == lease_role(rendered)["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": RELEASE, "namespace": "finetune-system"}]


def test_replicas_are_spread_over_nodes_as_far_as_possible(helm: Helm) -> None:
    (constraint,) = pod(helm.render({"replicas": 2}))["topologySpreadConstraints"]
    assert (constraint["topologyKey"], constraint["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert constraint["labelSelector"] == helm.render({})["Deployment", RELEASE]["spec"]["selector"]
    assert "topologySpreadConstraints" not in pod(helm.render({}))


def test_two_releases_in_a_namespace_have_their_own_leases(helm: Helm) -> None:
    texts = [helm("template", release, CHART, "--show-only=templates/deployment.yaml") for release in ("a", "b")]
    leases = [re.findall(r"--lease=(\S+)", text) for text in texts]
    assert leases == [["finetune-system/a-finetune-operator"], ["finetune-system/b-finetune-operator"]]


def test_without_a_lease_the_operator_is_terminated_before_its_successor_starts(helm: Helm) -> None:
    rendered = helm.render(nested("leaderElection.enabled", False))
    strategy = rendered["Deployment", RELEASE]["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert arguments(rendered).lease is None
    assert not {"Role", "RoleBinding"} & {kind for kind, _ in rendered}


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_the_metrics_service_can_be_annotated_or_left_out(helm: Helm) -> None:
    service = ("Service", f"{RELEASE}-metrics")
    annotated = helm.render(nested("metrics.service.annotations", {"prometheus.io/scrape": "true"}))[service]
    assert annotated["metadata"]["annotations"] == {"prometheus.io/scrape": "true"}
    assert service not in helm.render(nested("metrics.service.create", False))


def test_a_service_monitor_selects_the_metrics_service(helm: Helm) -> None:
    monitor_values = {"create": True, "interval": "1m", "labels": {"release": "prometheus"}}
    rendered = helm.render(nested("metrics.serviceMonitor", monitor_values))
    monitor, service = rendered["ServiceMonitor", RELEASE], rendered["Service", f"{RELEASE}-metrics"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["interval"]) == (service["spec"]["ports"][0]["name"], "1m")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


def test_the_dashboard_is_a_config_map_that_grafana_finds(helm: Helm) -> None:
    rendered = helm.render(nested("metrics.dashboard", {"create": True, "labels": {"board": "1"}}))
    found = rendered["ConfigMap", f"{RELEASE}-dashboard"]
    labels = found["metadata"]["labels"]
    assert (labels["grafana_dashboard"], labels["board"]) == ("1", "1")
    (text,) = found["data"].values()
    assert json.loads(text)["panels"][0]["targets"][0]["legendFormat"] == "{{phase}}"


# ---- network policies ------------------------------------------------------------------------------------------------


def test_the_operators_policy_admits_scrapes_and_lets_it_reach_what_it_needs(helm: Helm) -> None:
    values = {"create": True, "apiServerPorts": [16443], "metricsFrom": [PEER]}
    rendered = helm.render(nested("networkPolicies.operator", values))
    policy = rendered["NetworkPolicy", RELEASE]["spec"]
    assert policy["podSelector"] == rendered["Deployment", RELEASE]["spec"]["selector"]
    (scrapes,) = policy["ingress"]
    assert scrapes == {"ports": [{"protocol": "TCP", "port": 8081}], "from": [PEER]}
    dns, api_server, progress = policy["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert api_server == {"ports": [{"protocol": "TCP", "port": 16443}]}
    (peer,) = progress["to"]
    assert peer["podSelector"]["matchLabels"] == {LABEL_MANAGED_BY: MANAGED_BY}
    assert progress["ports"] == [{"protocol": "TCP", "port": PROGRESS_PORT}]


def test_policies_of_jobs_come_with_the_right_to_create_them_and_admit_the_operator(helm: Helm) -> None:
    rendered = helm.render(nested("networkPolicies.jobs.create", True))
    assert settings(rendered).operator_namespace == "finetune-system"
    policy = network_policy_spec({}, "finetune-system")
    operator = policy["ingress"][1]["from"][0]["podSelector"]["matchLabels"]
    labels = rendered["Deployment", RELEASE]["spec"]["template"]["metadata"]["labels"]
    assert operator.items() <= labels.items()

    def verbs(found: Rendered) -> list[str]:
        rules = found["ClusterRole", RELEASE]["rules"]
        return [verb for rule in rules if "networkpolicies" in rule["resources"] for verb in rule["verbs"]]

    assert verbs(rendered) == ["create", "get"]
    assert verbs(helm.render({})) == []


# ---- the job policy --------------------------------------------------------------------------------------------------

POLICY: dict[str, Any] = {
    "images": ["registry.example.com/team"],
    "serviceAccounts": [],
    "requireLabelOnSecrets": True,
}
LABELS = {"requireLabelOnSecrets": "secrets", "requireLabelOnVolumeClaims": "persistentvolumeclaims"}


def test_the_job_policy_is_the_one_that_the_operator_reads(helm: Helm) -> None:
    values = {**POLICY, "variables": ["NULL", "YES", "NCCL_*"], "serviceAccounts": ["123", "1e3"]}
    rendered = helm.render({"jobPolicy": values})
    name = f"{RELEASE}-job-policy"
    assert parse_policy(rendered["ConfigMap", name]["data"]["policy.yaml"]) == parse_policy(json.dumps(values))
    (mount,) = container(rendered)["volumeMounts"]
    (volume,) = pod(rendered)["volumes"]
    assert (volume["name"], volume["configMap"]) == (mount["name"], {"name": name})
    assert f"--policy={mount['mountPath']}/policy.yaml" in container(rendered)["args"]


def test_an_operator_without_a_job_policy_has_no_file(helm: Helm) -> None:
    for values in ({}, {"jobPolicy": {"images": None, "requireLabelOnSecrets": False}}):
        rendered = helm.render(values)
        assert ("ConfigMap", f"{RELEASE}-job-policy") not in rendered
        assert not [one for one in container(rendered)["args"] if one.startswith("--policy")]


def test_additions_and_a_job_policy_are_two_volumes(helm: Helm) -> None:
    rendered = helm.render({"pods": CERTIFICATES, "jobPolicy": POLICY})
    mounts = {mount["name"]: mount["mountPath"] for mount in container(rendered)["volumeMounts"]}
    assert {volume["name"] for volume in pod(rendered)["volumes"]} == set(mounts)
    assert len(set(mounts.values())) == 2


def test_the_operator_restarts_when_the_job_policy_changes(helm: Helm) -> None:
    templates = [
        helm.render(nested("jobPolicy.serviceAccounts", names))["Deployment", RELEASE]["spec"]["template"]
        for names in ([], ["trainer"])
    ]
    assert templates[0] != templates[1]


@pytest.mark.parametrize("field", LABELS)
def test_the_right_to_read_an_object_comes_with_the_label_that_it_must_have(helm: Helm, field: str) -> None:
    def verbs(values: dict[str, Any]) -> list[str]:
        rules = helm.render(values)["ClusterRole", RELEASE]["rules"]
        return [verb for rule in rules if LABELS[field] in rule["resources"] for verb in rule["verbs"]]

    assert verbs(nested(f"jobPolicy.{field}", True)) == ["get"]
    others = {name: True for name in LABELS if name != field} | {"images": [], "admission": {"create": True}}
    assert verbs({"jobPolicy": others}) == []


def test_the_admission_policy_has_the_rules_of_the_fields_that_are_set(helm: Helm) -> None:
    rendered = helm.render({"jobPolicy": {"images": [], "admission": {"create": True}}, "trainerImage": {"tag": "7"}})
    policy = rendered["ValidatingAdmissionPolicy", RELEASE]["spec"]
    messages = [rule["message"] for rule in policy["validations"]]
    assert [message.partition(" must")[0].partition(" and ")[0] for message in messages] == [
        *("spec.workers.image", "spec.workers.env[].name", "spec.workers.envFrom[].prefix"),
        "spec.workers.volumeMounts[].mountPath",
        *("spec.workers", "spec.workers.annotations", "spec.workers.volumes[]"),  # with every policy
    ]
    assert '"finetune-trainer:7"' in policy["validations"][0]["expression"]
    binding = rendered["ValidatingAdmissionPolicyBinding", RELEASE]["spec"]
    assert (binding["policyName"], binding["validationActions"]) == (RELEASE, ["Deny"])
    assert "matchResources" not in binding


def test_the_admission_policy_applies_to_the_namespaces_of_the_operator(helm: Helm) -> None:
    values = {"namespaces": ["ml"], "jobPolicy": {"images": [], "admission": {"create": True}}}
    selector = helm.render(values)["ValidatingAdmissionPolicyBinding", RELEASE]["spec"]["matchResources"]
    (expression,) = selector["namespaceSelector"]["matchExpressions"]
    assert expression == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["ml"]}


# ---- all of them -----------------------------------------------------------------------------------------------------

STAGE_DEFAULTS = {
    "nodeSelector": {"a": "b"},
    "tolerations": [TOLERATION],
    "schedulerName": "other",
    "runtimeClassName": "kata",
}
OTHERS: dict[str, Any] = {
    "namespaces": ["ml"],
    "image.repository": "other",
    "image.tag": "2",
    "image.digest": DIGEST,
    "image.pullPolicy": "Always",
    "trainerImage.repository": "other",
    "trainerImage.tag": "2",
    "trainerImage.digest": DIGEST,
    "imagePullSecrets": [{"name": "registry"}],
    "crd.install": False,
    "namespace.create": True,
    "rbac.create": False,
    "rbac.aggregate": False,
    "serviceAccount.create": False,
    "serviceAccount.name": "other",
    "serviceAccount.annotations": {"a": "b"},
    "storage.endpoint": "https://s3.example.com",
    "storage.region": "eu-west-1",
    "storage.credentialsSecret": "storage",
    "security.runAsUser": "none",
    "pods.ephemeralStorage": "2Gi",
    "pods.gangScheduling": False,
    "pods.terminationGrace.minimumSeconds": 60,
    "pods.terminationGrace.maximumSeconds": 600,
    "pods.volumes": CERTIFICATES["volumes"],
    "pods.volumeMounts": CERTIFICATES["volumeMounts"],
    "pods.env": CERTIFICATES["env"],
    **{
        f"pods.defaults.{block}.{name}": value
        for block in ("workers", "prepare", "evaluate")
        for name, value in STAGE_DEFAULTS.items()
    },
    "pods.defaults.workers.priorityClassName": "batch",
    "pods.defaults.workers.imagePullSecrets": ["registry"],
    "pods.defaults.workers.queue": "team",
    "jobPolicy.images": ["registry.example.com/team"],
    "jobPolicy.serviceAccounts": [],
    "jobPolicy.priorityClasses": [],
    "jobPolicy.tolerationKeys": [],
    "jobPolicy.storageEndpoints": [],
    "jobPolicy.variables": [],
    "jobPolicy.deniedVariables": [],
    "jobPolicy.hostAccess": [],
    "jobPolicy.volumeSources": [],
    "jobPolicy.runtimeClasses": [],
    "jobPolicy.schedulers": [],
    "jobPolicy.queues": [],
    "jobPolicy.labels": [],
    "jobPolicy.annotations": [],
    "jobPolicy.requireLabelOnSecrets": True,
    "jobPolicy.requireLabelOnVolumeClaims": True,
    "jobPolicy.admission.create": True,
    "operator.workers": 2,
    "operator.resyncSeconds": 60,
    "operator.progressSeconds": 1,
    "operator.watchSilenceSeconds": 100,
    "operator.logLevel": "debug",
    "replicas": 2,
    "leaderElection.enabled": False,
    "leaderElection.leaseSeconds": 30,
    "operatorPod.annotations": {"a": "b"},
    "operatorPod.labels": {"a": "b"},
    "operatorPod.resources.requests": {"cpu": "1"},
    "operatorPod.resources.limits": {"cpu": "1"},
    "operatorPod.nodeSelector": {"a": "b"},
    "operatorPod.tolerations": [TOLERATION],
    "operatorPod.affinity": AFFINITY,
    "operatorPod.priorityClassName": "important",
    "metrics.service.create": False,
    "metrics.service.annotations": {"a": "b"},
    "metrics.serviceMonitor.create": True,
    "metrics.serviceMonitor.labels": {"a": "b"},
    "metrics.serviceMonitor.interval": "1m",
    "metrics.dashboard.create": True,
    "metrics.dashboard.labels": {"a": "b"},
    "networkPolicies.operator.create": True,
    "networkPolicies.operator.apiServerPorts": [1],
    "networkPolicies.operator.metricsFrom": [PEER],
    "networkPolicies.jobs.create": True,
    "podDisruptionBudget.create": True,
}
"""Another value than the default, for every value."""
PARENTS = ("metrics.serviceMonitor", "metrics.dashboard", "networkPolicies.operator")
"""Groups whose values have an effect once they are created."""


def leaves(model: BaseModel, prefix: str = "") -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value, path = getattr(model, name), f"{prefix}{field.alias}"
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{path}.")
        else:
            yield path


@pytest.mark.parametrize("path", list(leaves(chart_values.ChartValues())))
def test_every_value_has_an_effect(helm: Helm, path: str) -> None:
    parent = next((one for one in PARENTS if path.startswith(f"{one}.") and not path.endswith(".create")), None)
    base = [] if parent is None else ["--set", f"{parent}.create=true"]
    if path == "jobPolicy.admission.create":
        base = ["--set-json", "jobPolicy.images=[]"]
    other = ["--set-json", f"{path}={json.dumps(OTHERS[path])}"]
    with_defaults = helm("template", RELEASE, CHART, *base)
    assert helm("template", RELEASE, CHART, *base, *other) != with_defaults
