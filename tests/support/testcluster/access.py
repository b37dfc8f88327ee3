"""Access to a cluster for tests: kubeconfigs for any user, and kubectl."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
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
    """One cluster, one user. JSON is valid YAML, so every client can read it."""
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
    """Kubeconfig of an existing service account, with a token of one hour; the rest is copied from kubectl's."""
    token = kubectl.within(namespace)("create", "token", name, "--duration=1h").strip()
    content = json.loads(kubectl("config", "view", "--raw", "--flatten", "--minify", "-o", "json"))
    content["users"] = [{"name": "account", "user": {"token": token}}]
    content["contexts"][0]["context"] |= {"user": "account", "namespace": namespace}
    return write_kubeconfig(path, content)


def documents(manifests: Sequence[Manifest]) -> str:
    """Concatenated documents. kubectl validates a List itself instead of sending it to the API server."""
    return "\n---\n".join(map(json.dumps, manifests))


@dataclass(frozen=True)
class Kubectl:
    """`kubectl("get", "pods")` in a namespace, as a user. Returns the output, or raises KubectlError."""

    program: Path
    kubeconfig: Path
    cache: Path
    """Cache of discovery information. Not in the home folder of the user, and without the user's preferences."""
    namespace: str = "default"

    @property
    def environment(self) -> dict[str, str]:
        return dict(os.environ) | {"KUBECACHEDIR": str(self.cache), "KUBERC": "off"}

    def command(self, *arguments: str) -> list[str]:
        return [str(self.program), "--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace, *arguments]

    def run(self, *arguments: str, stdin: str | None = None, within: float = 60) -> subprocess.CompletedProcess[str]:
        """Run kubectl, with any exit status."""
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
        """Error of the API server for creating these objects; None if there is none."""
        done = self.run("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=documents(manifests))
        return done.stderr.strip() if done.returncode else None

    def dry_run(self, manifest: Manifest) -> Any:
        """The object that the API server would create."""
        arguments = ("create", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-")
        return json.loads(self(*arguments, stdin=documents([manifest])))

    def until(self, resource: str, condition: Callable[[Any], Any], *, within: float, what: str = "") -> Any:
        """Watch one object (`pod/name`) until the condition holds; the object.

        The condition is also looked at while the object does not change, since it may depend on other things.
        """
        started = time.monotonic()
        with closing(ObjectWatch(self, resource)) as watch:
            try:
                return until(lambda: watch.newest_if(condition), within=within, what=what or resource)
            except AssertionError as error:
                seen = watch.newest or {"stderr": watch.stderr}
                shown = json.dumps(seen.get("status", seen), indent=1)
                waited = time.monotonic() - started
                raise AssertionError(f"{error} (waited {waited:.0f} s)\n{shown[-TAIL:]}") from None

    def as_user(self, path: Path) -> "Kubectl":
        return replace(self, kubeconfig=path)

    def within(self, namespace: str) -> "Kubectl":
        return replace(self, namespace=namespace)


_SILENT_SECONDS = 10.0
"""A watch that prints nothing for this long is replaced: it does not notice that its connection is dead."""


class ObjectWatch:
    """The newest state of one object, from `kubectl get --watch`: one process instead of one for each look.

    Its output is a file: kubectl would wait for whoever reads a pipe, and the CRD alone is ten times what a pipe holds.
    """

    def __init__(self, kubectl: Kubectl, resource: str) -> None:
        assert "/" in resource, f"{resource} is a list; kubectl prints only its changed objects"
        self._command = kubectl.command("get", resource, "--output=json", "--watch")
        self._environment = kubectl.environment
        self._process: subprocess.Popen[bytes] | None = None
        self._printed, self._errors = TemporaryFile(), TemporaryFile()  # noqa: SIM115 - close() closes them
        self._text = b""
        """What it has printed since the last whole object."""
        self._read_bytes, self._read_at = 0, 0.0
        self.newest: Any = None
        """None: there has been no such object."""
        self.stderr = ""
        """Of the last kubectl that has ended, as it does while there is no such object."""

    def newest_if(self, condition: Callable[[Any], Any]) -> Any:
        """The object's newest state, if there is one and the condition holds of it."""
        self._read()
        return self.newest if self.newest is not None and condition(self.newest) else None

    def _read(self) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdout=self._printed, stderr=self._errors, env=self._environment
            )
            self._read_at = time.monotonic()
        has_ended = self._process.poll() is not None
        new = os.pread(self._printed.fileno(), os.fstat(self._printed.fileno()).st_size, self._read_bytes)
        self._read_bytes += len(new)
        if new:
            self._read_at = time.monotonic()
        # kubectl indents what an object contains: its last line is the first one that is a closing brace.
        *objects, self._text = (self._text + new).split(b"\n}\n")
        if objects:
            self.newest = json.loads(objects[-1] + b"\n}")
        if has_ended:
            self._errors.seek(0)
            self.stderr = self._errors.read().decode()
            self._end()
        elif time.monotonic() > self._read_at + _SILENT_SECONDS:
            self._end()  # the next one prints the current state first

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process, self._text = None, b""

    def close(self) -> None:
        self._end()
        self._printed.close()
        self._errors.close()


def condition(manifest: Manifest, kind: str) -> str | None:
    """Status of one of the object's conditions: `condition(node, "Ready") == "True"`."""
    listed = (manifest.get("status") or {}).get("conditions") or []  # null for a moment in a new CRD
    return next((str(one["status"]) for one in listed if one["type"] == kind), None)
