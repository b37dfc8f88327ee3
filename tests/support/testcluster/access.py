"""How tests talk to a cluster: kubeconfigs for whom they like, and kubectl."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .daemons import TAIL, until
from .pki import Certificate

Manifest = Mapping[str, Any]


class KubectlError(AssertionError):
    """kubectl did not exit with 0."""

    def __init__(self, command: Sequence[str], status: int, stderr: str) -> None:
        super().__init__(f"kubectl {' '.join(command)}: exit status {status}\n{stderr[-TAIL:]}")
        self.stderr = stderr


def kubeconfig(server: str, ca: Path, user: Mapping[str, str], namespace: str = "default") -> dict[str, Any]:
    """One cluster, one user. JSON is YAML: every client reads it."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(ca)}}],
        "users": [{"name": "test", "user": dict(user)}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        "current-context": "test",
    }


def certificate_user(certificate: Certificate) -> dict[str, str]:
    return {"client-certificate": str(certificate.cert), "client-key": str(certificate.key)}


def write_kubeconfig(path: Path, content: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(content, indent=1))
    return path


def service_account_kubeconfig(kubectl: "Kubectl", path: Path, namespace: str, name: str) -> Path:
    """Of a service account that exists, with a token of an hour; the rest is as in kubectl's own."""
    token = kubectl.within(namespace)("create", "token", name, "--duration=1h").strip()
    content = json.loads(kubectl("config", "view", "--raw", "--flatten", "--minify", "-o", "json"))
    content["users"] = [{"name": "account", "user": {"token": token}}]
    content["contexts"][0]["context"] |= {"user": "account", "namespace": namespace}
    return write_kubeconfig(path, content)


def documents(manifests: Sequence[Manifest]) -> str:
    """One after the other. A List would do, but kubectl checks one itself and does not ask the API server."""
    return "\n---\n".join(map(json.dumps, manifests))


@dataclass(frozen=True)
class Kubectl:
    """`kubectl("get", "pods")` in a namespace, as a user. The text that it printed, or KubectlError."""

    program: Path
    kubeconfig: Path
    cache: Path
    """What it remembers of clusters. Not in the home of who runs the tests, and not with his preferences."""
    namespace: str = "default"

    @property
    def environment(self) -> dict[str, str]:
        return dict(os.environ) | {"KUBECACHEDIR": str(self.cache), "KUBERC": "off"}

    def command(self, *arguments: str) -> list[str]:
        return [str(self.program), "--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace, *arguments]

    def run(self, *arguments: str, stdin: str | None = None, within: float = 60) -> subprocess.CompletedProcess[str]:
        """Whatever its exit status is."""
        command = self.command(*arguments)
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=within, check=False, env=self.environment
        )

    def __call__(self, *arguments: str, stdin: str | None = None, within: float = 60) -> str:
        done = self.run(*arguments, stdin=stdin, within=within)
        if done.returncode != 0:
            raise KubectlError(arguments, done.returncode, done.stderr)
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "-o", "json"))

    def apply(self, *manifests: Manifest, server_side: bool = False) -> None:
        self("apply", f"--server-side={server_side}".lower(), "-f", "-", stdin=documents(manifests))

    def refusal(self, *manifests: Manifest) -> str | None:
        """What the API server says against creating these; None if nothing."""
        done = self.run("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=documents(manifests))
        return done.stderr.strip() if done.returncode else None

    def until(
        self, resource: str, condition: Callable[[Any], Any], *, within: float, what: str = "", every: float = 0.05
    ) -> Any:
        """Poll one object (`pod/name`) or a list (`pods`) until the condition holds; the object."""
        last: dict[str, Any] = {}

        def check() -> Any:
            done = self.run("get", resource, "-o", "json")
            last["seen"] = json.loads(done.stdout) if done.returncode == 0 else {"stderr": done.stderr}
            return last["seen"] if done.returncode == 0 and condition(last["seen"]) else None

        started = time.monotonic()
        try:
            return until(check, within=within, what=what or resource, every=every)
        except AssertionError as error:
            seen = json.dumps(last.get("seen", {}).get("status", last.get("seen")), indent=1)
            raise AssertionError(f"{error} (waited {time.monotonic() - started:.0f} s)\n{seen[-TAIL:]}") from None

    def as_user(self, path: Path) -> "Kubectl":
        return replace(self, kubeconfig=path)

    def within(self, namespace: str) -> "Kubectl":
        return replace(self, namespace=namespace)


def condition(manifest: Manifest, kind: str) -> str | None:
    """Status of one of the object's conditions: `condition(node, "Ready") == "True"`."""
    listed = (manifest.get("status") or {}).get("conditions") or []  # a new CRD's are null for a moment
    return next((str(one["status"]) for one in listed if one["type"] == kind), None)
