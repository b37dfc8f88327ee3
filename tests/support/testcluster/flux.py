"""Flux's kustomize-controller, without source-controller: the test serves the artifacts that it would make from Git."""

import hashlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from . import binaries
from .access import Kubectl, condition, documents
from .control_plane import ControlPlane
from .daemons import Daemon
from .missing import MissingError

CONTROLLER = "github.com/fluxcd/kustomize-controller"  # its version is in go.mod
SOURCES = "github.com/fluxcd/source-controller@v1.9.0"  # the version of its api in go.mod
"""Not in go.mod, because not all modules that it requires are available. Only the CRDs are used."""
SOURCES_SUM = "h1:5msg2yyjVYDULZos+2ve8MZzcSqTpusiXmrOeBhc9yY="
CRDS = {
    "kustomizations.kustomize.toolkit.fluxcd.io": CONTROLLER,
    "gitrepositories.source.toolkit.fluxcd.io": SOURCES,
    "ocirepositories.source.toolkit.fluxcd.io": SOURCES,
    "buckets.source.toolkit.fluxcd.io": SOURCES,
}
"""What the controller watches, and the Go module that contains the CRD."""
FEATURES = "--feature-gates=CancelHealthCheckOnNewRevision=true"
"""As docs/gitops.md recommends."""


def install_crds(control: ControlPlane) -> None:
    for name, module in CRDS.items():
        plural, _, group = name.partition(".")
        path = _sources(module) / f"config/crd/bases/{group}_{plural}.yaml"
        control.kubectl("apply", "--server-side", "-f", str(path))
    for name in CRDS:
        control.kubectl.until(f"crd/{name}", lambda found: condition(found, "Established") == "True", within=60)


def _sources(module: str) -> Path:
    """The folder of a module's files."""
    found = binaries.downloaded_module(binaries.FLUX, module)
    if module == SOURCES and found.checksum != SOURCES_SUM:
        raise MissingError(f"{module} has the checksum {found.checksum}, not {SOURCES_SUM}")
    return found.folder


class Flux:
    """A Kustomization with its GitRepository in kubectl's namespace, and the controller of this namespace."""

    def __init__(self, kubectl: Kubectl, name: str, source: str, folder: Path, address: str) -> None:
        self._kubectl, self._source = kubectl, source
        self._folder, self._address = folder, address
        self.namespace, self.resource = kubectl.namespace, f"kustomization/{name}"

    def publish(self, repository: Path, revision: str) -> None:
        """Make a commit the newest one of the GitRepository, as source-controller does."""
        path = self._folder / f"{revision}.tar.gz"
        subprocess.run(["git", "-C", repository, "archive", f"--output={path}", revision], check=True)
        content = path.read_bytes()
        artifact = {
            "revision": _named(revision),
            "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
            "size": len(content),
            "path": path.name,
            "url": f"{self._address}/{path.name}",
            "lastUpdateTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        patch = json.dumps({"status": {"artifact": artifact}})
        self._kubectl("patch", self._source, "--subresource=status", "--type=merge", f"--patch={patch}")

    def read(self) -> Any:
        return self._kubectl.json("get", self.resource)

    def until(self, holds: Callable[[Any], bool], what: str) -> Any:
        """Wait until the Kustomization fulfils a condition; the Kustomization."""
        return self._kubectl.until(self.resource, holds, within=60, what=f"Flux: {what}")

    def until_applied(self, revision: str) -> None:
        """Wait until the objects of a commit are applied, or rejected. Their health may not be known yet."""

        def is_applied(found: Any) -> bool:
            return is_attempted(found, revision) and (
                has_result(found) or message(found, "Reconciling").startswith("Running health checks ")
            )

        self.until(is_applied, f"{revision} is applied")

    def until_result(self, revision: str) -> Any:
        """Wait until there is a result of a commit; the Kustomization."""
        return self.until(lambda found: is_attempted(found, revision) and has_result(found), f"result of {revision}")

    def request_reconciliation(self) -> str:
        """Request one like `flux reconcile kustomization`; the identifier of the request."""
        stamp = datetime.now(UTC).isoformat()
        self._kubectl("annotate", "--overwrite", self.resource, f"reconcile.fluxcd.io/requestedAt={stamp}")
        return stamp


def has_result(kustomization: Any) -> bool:
    return condition(kustomization, "Ready") in {"True", "False"}


def is_attempted(kustomization: Any, revision: str) -> bool:
    return bool(kustomization.get("status", {}).get("lastAttemptedRevision") == _named(revision))


def reason(kustomization: Any, kind: str = "Ready") -> str:
    return _field(kustomization, kind, "reason")


def message(kustomization: Any, kind: str = "Ready") -> str:
    return _field(kustomization, kind, "message")


def _field(kustomization: Any, kind: str, field: str) -> str:
    listed = kustomization.get("status", {}).get("conditions", ())
    return next((str(one[field]) for one in listed if one["type"] == kind), "")


def _named(revision: str) -> str:
    return f"main@sha1:{revision}"


@contextmanager
def running_flux(kubectl: Kubectl, program: Path, folder: Path, manifests: list[Any]) -> Iterator[Flux]:
    """Flux with a GitRepository and a Kustomization, which are moved to kubectl's namespace."""
    source, kustomization = (
        one | {"metadata": one["metadata"] | {"namespace": kubectl.namespace}} for one in manifests
    )
    artifacts, scratch = folder / "artifacts", folder / "tmp"
    for path in (artifacts, scratch):
        path.mkdir()
    with _served(artifacts) as address:
        kubectl("create", "-f", "-", stdin=documents([source, kustomization]))
        daemon = Daemon(
            "kustomize-controller",
            [program, "--watch-all-namespaces=false", "--metrics-addr=0", "--health-addr=0", FEATURES],
            log=folder / "kustomize-controller.log",
            environment={
                "KUBECONFIG": str(kubectl.kubeconfig),
                "RUNTIME_NAMESPACE": kubectl.namespace,
                "TMPDIR": str(scratch),
            },
        )
        flux = Flux(
            kubectl,
            kustomization["metadata"]["name"],
            f"gitrepository/{source['metadata']['name']}",
            artifacts,
            address,
        )
        try:
            daemon.until(lambda: condition(flux.read(), "Ready"), within=60, what="reads the Kustomization")
            yield flux
        finally:
            daemon.kill()
            # Its finalizer would keep the namespace.
            kubectl("patch", flux.resource, "--type=merge", '--patch={"metadata": {"finalizers": null}}')


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The address under which the files of a folder are served on loopback."""

    def handle(*arguments: Any) -> None:
        _Quiet(*arguments, directory=str(folder))

    with ThreadingHTTPServer(("127.0.0.1", 0), handle) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
