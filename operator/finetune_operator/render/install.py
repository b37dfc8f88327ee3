"""Manifests of an installation: CRD, RBAC, Deployment and metrics Service."""

from collections.abc import Sequence

from finetune_api import constants
from finetune_api.crd import crd

from ..manifests import Manifest
from ..settings import OperatorSettings

NAME = "finetune-operator"
NAMESPACE = "finetune-system"
IMAGE = "finetune-operator:0.1.0"
PORT = 8081
NETWORK_POLICIES = "--network-policies-from="
"""Argument of `run` that requires an additional permission."""
_LABELS = {"app.kubernetes.io/name": NAME}
_NETWORK_POLICIES: Manifest = {
    "apiGroups": ["networking.k8s.io"],
    "resources": ["networkpolicies"],
    "verbs": ["create", "get"],
}


def render_install(
    *,
    namespace: str = NAMESPACE,
    image: str = IMAGE,
    arguments: Sequence[str] = (),
    run_as_user: int | None = OperatorSettings().run_as_user,
) -> tuple[Manifest, ...]:
    """Return everything for one operator that serves the whole cluster, in the order of creation.

    `arguments` are those of `run`. `run_as_user` is the user of the operator; None: assigned by the cluster.
    """
    return (
        crd(),
        _namespace(namespace),
        _object("v1", "ServiceAccount", NAME, namespace),
        *render_role(namespace, network_policies=any(NETWORK_POLICIES in argument for argument in arguments)),
        _deployment(namespace, image, arguments, run_as_user),
        _service(namespace),
    )


def render_role(namespace: str, *, network_policies: bool = False) -> tuple[Manifest, Manifest]:
    """Return the role and its binding. The operator has no access to Secrets, which it only refers to in pods.

    `network_policies`: the operator creates a NetworkPolicy for each attempt.
    """
    rules = [*_rules(), *((_NETWORK_POLICIES,) if network_policies else ())]
    role = _object("rbac.authorization.k8s.io/v1", "ClusterRole", NAME, None) | {"rules": rules}
    binding = _object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", NAME, None) | {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}],
    }
    return role, binding


def _rules() -> tuple[Manifest, ...]:
    def rule(group: str, resources: list[str], *verbs: str) -> Manifest:
        return {"apiGroups": [group], "resources": resources, "verbs": list(verbs)}

    return (
        rule(constants.GROUP, [constants.PLURAL], "get", "list", "watch"),
        rule(constants.GROUP, [f"{constants.PLURAL}/status"], "update"),
        # Required with the admission plugin OwnerReferencesPermissionEnforcement.
        rule(constants.GROUP, [f"{constants.PLURAL}/finalizers"], "update"),
        rule("batch", ["jobs"], "create", "get", "list", "watch", "delete"),
        rule("", ["services", "configmaps"], "create", "get", "delete"),
        rule("", ["pods"], "list", "watch"),
        rule("", ["events"], "create", "list"),
    )


def _namespace(name: str) -> Manifest:
    """Return the namespace, with Pod Security Standard `restricted`."""
    namespace = _object("v1", "Namespace", name, None)
    namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "restricted"
    return namespace


def _service(namespace: str) -> Manifest:
    """Return the Service of the metrics, which are also available before the operator is ready."""
    spec = {
        "selector": _LABELS,
        "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        "publishNotReadyAddresses": True,
    }
    return _object("v1", "Service", f"{NAME}-metrics", namespace) | {"spec": spec}


def network_policy_spec(pods: Manifest, operator_namespace: str) -> Manifest:
    """Return the spec of a policy that allows traffic among these pods, and from the operator to their progress."""
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator_namespace}},
        "podSelector": {"matchLabels": _LABELS},
    }
    return {
        "podSelector": pods,
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": pods}]},
            {"from": [operator], "ports": [{"protocol": "TCP", "port": constants.PROGRESS_PORT}]},
        ],
    }


def render_network_policy(operator_namespace: str) -> Manifest:
    """Return a policy that allows traffic among the trainer pods of a namespace, and from the operator to their
    progress. It is applied manually, once per namespace with jobs.
    """
    trainers = {"matchLabels": {constants.LABEL_MANAGED_BY: constants.MANAGED_BY}}
    spec = network_policy_spec(trainers, operator_namespace)
    return _object("networking.k8s.io/v1", "NetworkPolicy", "finetune-trainers", None) | {"spec": spec}


def _deployment(namespace: str, image: str, arguments: Sequence[str], run_as_user: int | None) -> Manifest:
    probe = {"port": "http", "scheme": "HTTP"}
    container = {
        "name": "operator",
        "image": image,
        "args": ["run", *arguments],
        "ports": [{"name": "http", "containerPort": PORT}],
        "livenessProbe": {"httpGet": {"path": "/healthz", **probe}, "periodSeconds": 20, "failureThreshold": 3},
        "readinessProbe": {"httpGet": {"path": "/readyz", **probe}, "periodSeconds": 5},
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod = {
        "serviceAccountName": NAME,
        "securityContext": {
            "runAsNonRoot": True,
            **({} if run_as_user is None else {"runAsUser": run_as_user}),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    spec = {
        "replicas": 1,
        # Two operators at the same time are safe, but repeat each other's work.
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": _LABELS},
        "template": {"metadata": {"labels": _LABELS}, "spec": pod},
    }
    return _object("apps/v1", "Deployment", NAME, namespace) | {"spec": spec}


def _object(api_version: str, kind: str, name: str, namespace: str | None) -> Manifest:
    metadata: Manifest = {"name": name, "labels": dict(_LABELS)}
    if namespace is not None:
        metadata["namespace"] = namespace
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}
