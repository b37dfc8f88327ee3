"""Pods of the tests: this machine's Python in an empty image, under Pod Security `restricted`."""

import os
import sys
from typing import Any

from .images import HOST, ROOT, host_volume

PACKAGES = os.pathsep.join(str(ROOT / folder) for folder in ("operator", "trainer"))
RESTRICTED_POD = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def python_template(code: str, *, claim: str = "", env: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A pod template that runs `python -c code`. Keyword arguments are further fields of the pod's spec."""
    volume, mounts = host_volume(claim=claim)
    variables = {"PYTHONPATH": PACKAGES} | (env or {})
    container = {
        "name": "main",
        "image": HOST,
        "imagePullPolicy": "Never",
        "command": [sys.executable, "-u", "-c", code],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        # torch creates a temporary file when it is imported.
        "volumeMounts": [*mounts, {"name": "tmp", "mountPath": "/tmp"}],
        "securityContext": RESTRICTED_CONTAINER,
        "terminationMessagePolicy": "File",
    }
    defaults = {
        "restartPolicy": "Never",
        "securityContext": RESTRICTED_POD,
        "volumes": [volume, {"name": "tmp", "emptyDir": {}}],
        "containers": [container],
        "tolerations": [
            # The default is five minutes.
            {"key": f"node.kubernetes.io/{why}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}
            for why in ("not-ready", "unreachable")
        ],
    }
    return {"spec": defaults | spec}


def python_pod(name: str, code: str, **options: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}} | python_template(code, **options)


def indexed_job(name: str, template: dict[str, Any], pods: int) -> dict[str, Any]:
    spec = {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "backoffLimit": 0,
        "template": {"metadata": {"labels": {"ring": name}}} | template,
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def headless_service(name: str) -> dict[str, Any]:
    """DNS names for the job's pods, also before they are ready."""
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"ring": name}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
