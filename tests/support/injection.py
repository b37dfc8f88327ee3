"""Containers that a platform injects into pods: by a MutatingAdmissionPolicy, which needs no webhook."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune_api import constants
from process_support import until
from testcluster.access import Kubectl
from testcluster.images import HOST
from testcluster.pod_manifests import RESTRICTED_CONTAINER, python_pod

API = "admissionregistration.k8s.io/v1"

Spec = dict[str, Any]


def shell_container(name: str, script: str, **more: Any) -> Spec:
    """A container that runs a shell of this machine, in a pod that has the volume of `host_volume`."""
    mount = {"name": "host", "mountPath": "/usr", "subPath": "usr", "readOnly": True}
    return {
        "name": name,
        "image": HOST,
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", script],
        "volumeMounts": [mount],
        "securityContext": RESTRICTED_CONTAINER,
        **more,
    }


@contextmanager
def injected(kubectl: Kubectl, stage: constants.Stage, container: Spec, *, is_init: bool = False) -> Iterator[None]:
    """Add a container to the pods of a stage that are created in kubectl's namespace, which have no init containers."""
    name = f"{kubectl.namespace}-{stage}"
    if is_init:
        patch = f'path: "/spec/initContainers", value: [{_literal("Object.spec.initContainers", container)}]'
    else:
        patch = f'path: "/spec/containers/-", value: {_literal("Object.spec.containers", container)}'
    kubectl.apply(*_policy(name, kubectl.namespace, stage, f'[JSONPatch{{op: "add", {patch}}}]'))
    try:
        # The API server reads new policies within seconds.
        pod = python_pod("any", "", claim="host")
        pod["metadata"]["labels"] = {constants.LABEL_STAGE: str(stage)}
        until(lambda: container["name"] in _containers(kubectl.dry_run(pod)), within=30, what=f"{name} is effective")
        yield
    finally:
        kubectl("delete", f"mutatingadmissionpolicy/{name}", f"mutatingadmissionpolicybinding/{name}")


def _containers(pod: Spec) -> set[str]:
    return {entry["name"] for field in ("initContainers", "containers") for entry in pod["spec"].get(field, [])}


def _policy(name: str, namespace: str, stage: constants.Stage, patch: str) -> tuple[Spec, Spec]:
    label = f"object.metadata.?labels[?'{constants.LABEL_STAGE}'].orValue('')"
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    rule = {
        "matchConstraints": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "resourceRules": [pods],
        },
        "matchConditions": [{"name": "stage", "expression": f"{label} == '{stage}'"}],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
    }
    metadata = {"name": name}
    policy = {"apiVersion": API, "kind": "MutatingAdmissionPolicy", "metadata": metadata, "spec": rule}
    binding = {
        "apiVersion": API,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": metadata,
        "spec": {"policyName": name},
    }
    return policy, binding


def _literal(kind: str, value: Any) -> str:
    """The value in CEL. `kind` is the name of its type, such as `Object.spec.containers`."""
    if isinstance(value, dict):
        fields = (f"{name}: {_literal(f'{kind}.{name}', entry)}" for name, entry in value.items())
        return f"{kind}{{{', '.join(fields)}}}"
    if isinstance(value, list):
        return f"[{', '.join(_literal(kind, entry) for entry in value)}]"
    return json.dumps(value)
