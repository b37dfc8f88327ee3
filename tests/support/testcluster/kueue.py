"""Kueue: its controller as a process, and the objects of its default installation. It needs a cluster of its own,
because its webhooks must answer whenever a pod or a Job is created."""

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from . import binaries
from .access import documents
from .control_plane import ControlPlane
from .daemons import Daemon
from .network import free_port

MODULE = "sigs.k8s.io/kueue"  # its version is in go.mod
NAMESPACE = "kueue-system"
ACCOUNT = "kueue-controller-manager"
SECRET = "kueue-webhook-server-cert"
SERVICE = "kueue-webhook-service"
CONFIG = "controller_manager_config.yaml"
ADDRESS = "127.0.0.1"
OMITTED = frozenset({"Deployment", "Service", "APIService"})
"""Kinds that need pods, or a cluster network."""


@contextmanager
def running_kueue(control: ControlPlane, folder: Path, program: Path) -> Iterator[None]:
    """Install Kueue, and run its controller with the permissions and the configuration of the installation."""
    webhooks, health = free_port(ADDRESS), free_port(ADDRESS)
    manifests = _installation(control)
    config = _install(control, manifests, webhooks)
    certificates = folder / "webhook-certificates"
    certificates.mkdir()
    config["webhook"] = {"host": ADDRESS, "port": webhooks, "certDir": str(certificates)}
    config["health"] = {"healthProbeBindAddress": f"{ADDRESS}:{health}"}
    config["metrics"] = {"bindAddress": "0"}
    config["leaderElection"] = {"leaderElect": False}
    config["featureGates"] = {"VisibilityOnDemand": False}  # an API service, which needs a cluster network
    path = folder / CONFIG
    path.write_text(json.dumps(config))
    daemon = Daemon(
        "kueue",
        [program, f"--config={path}", "--zap-log-level=2"],
        log=folder / "kueue.log",
        environment={"KUBECONFIG": str(control.service_account_kubeconfig(NAMESPACE, ACCOUNT))},
    )
    try:
        daemon.until(lambda: _mounted(control, certificates), within=60, what="makes the certificates of its webhooks")
        daemon.until(lambda: _is_ready(health), within=120, what="/readyz")
        yield
    finally:
        daemon.kill()


def _installation(control: ControlPlane) -> list[Any]:
    """The objects of config/default in the Go module, which are those of a release."""
    folder = binaries.downloaded_module(binaries.KUEUE, MODULE).folder
    found = control.kubectl("kustomize", str(folder / "config/default"))
    return list(yaml.load_all(found, Loader=yaml.CSafeLoader))  # ten times as fast as safe_load_all for 1.7 MB


def _install(control: ControlPlane, manifests: list[Any], port: int) -> Any:
    """Create the objects, with the webhooks at a port of this machine; returns the configuration of the controller."""
    # An external name, because nothing forwards the addresses of Services to processes of this machine.
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": ADDRESS},
    }
    kept = [one for one in manifests if one["kind"] not in OMITTED and _namespace(one) in {None, NAMESPACE}]
    for manifest in kept:
        for client in _webhook_clients(manifest):
            client["service"]["port"] = port
    kubectl = control.kubectl.within(NAMESPACE)
    kubectl("apply", "--server-side", "-f", "-", stdin=documents([*kept, service]))
    crds = [f"crd/{one['metadata']['name']}" for one in kept if one["kind"] == "CustomResourceDefinition"]
    kubectl("wait", "--for=condition=Established", *crds, "--timeout=60s")
    (config,) = (one["data"][CONFIG] for one in kept if one["kind"] == "ConfigMap")
    return yaml.safe_load(config)


def _namespace(manifest: Any) -> str | None:
    """None: it is in no namespace. Only the API service has an object in another one than Kueue's."""
    found: str | None = manifest["metadata"].get("namespace")
    return found


def _webhook_clients(manifest: Any) -> list[Any]:
    """How the API server reaches the webhooks of an object."""
    if manifest["kind"] == "CustomResourceDefinition":
        conversion = manifest["spec"].get("conversion") or {}
        return [conversion["webhook"]["clientConfig"]] if "webhook" in conversion else []
    return [one["clientConfig"] for one in manifest.get("webhooks", ())]


def _mounted(control: ControlPlane, folder: Path) -> bool:
    """Write the Secret with the certificates into the folder, as a kubelet does, when the controller has made it."""
    found = control.kubectl.within(NAMESPACE).json("get", "secret", SECRET)
    for name, content in (found.get("data") or {}).items():
        scratch = folder / f".{name}"
        scratch.touch(mode=0o600)
        scratch.write_bytes(base64.b64decode(content))
        os.replace(scratch, folder / name)
    return (folder / "tls.crt").exists()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{ADDRESS}:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
