"""Releases of the chart on a cluster."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_api.constants import GROUP, VERSION
from operator_process import CRD, install
from process_support import until
from testcluster.access import Kubectl
from testcluster.control_plane import ControlPlane
from testcluster.existing import ExistingCluster
from testcluster.helm import CHART, RELEASE, Helm, Values

SYSTEM = "finetune-system"
"""Namespace of the release."""
COLUMN = "Learning-Rate"
"""A printer column that the CRD of `changed_chart` has in addition."""


@dataclass(frozen=True)
class Release:
    """The release of the chart on the cluster."""

    helm: Helm
    kubectl: Kubectl
    """In the namespace of the release."""
    values: Values

    def install(self, *chart: str | Path) -> None:
        self.helm.with_values(
            *("install", RELEASE, *chart, "--create-namespace", "--wait", "--timeout=120s"), values=self.values
        )

    def upgrade(self, chart: Path, values: Values) -> None:
        self.helm.with_values("upgrade", RELEASE, chart, "--wait", "--timeout=120s", values=values)

    def rollback(self, revision: int) -> None:
        self.helm("rollback", RELEASE, str(revision), "--wait", "--timeout=120s")

    def uninstall(self) -> None:
        self.helm("uninstall", RELEASE, "--cascade=foreground", "--wait", "--timeout=120s")

    def objects(self) -> list[str]:
        """Names of what the release has in its namespace."""
        selector = "--selector=app.kubernetes.io/name=finetune-operator"
        return self.kubectl("get", "all,serviceaccounts,configmaps", selector, "--output=name").split()

    def operators(self) -> set[str]:
        """UIDs of the operator's pods; none may have restarted."""
        listed = self.kubectl.json("get", "pods")["items"]
        pods = [pod for pod in listed if "deletionTimestamp" not in pod["metadata"]]
        statuses = [status for pod in pods for status in pod["status"]["containerStatuses"]]
        assert all(status["restartCount"] == 0 for status in statuses)
        return {pod["metadata"]["uid"] for pod in pods}

    def leader(self) -> str | None:
        """UID of the pod that holds the Lease."""
        holder = self.kubectl.json("get", f"lease/{RELEASE}")["spec"].get("holderIdentity", "")
        pods = self.kubectl.json("get", "pods")["items"]
        named = (pod["metadata"]["uid"] for pod in pods if holder.startswith(f"{pod['metadata']['name']}_"))
        return next(named, None)

    def columns(self) -> set[str]:
        """Printer columns of the CRD on the server."""
        (version,) = self.kubectl.json("get", f"crd/{CRD}")["spec"]["versions"]
        return {column["name"] for column in version["additionalPrinterColumns"]}


@contextmanager
def own_installation(control: ControlPlane | ExistingCluster) -> Iterator[None]:
    """Remove the CRD and the permissions of the other tests; afterwards remove the installation and install them."""
    roles = [f"clusterrole/{RELEASE}{name}" for name in ("", "-view", "-edit", "-admin")]
    permissions = ("delete", f"clusterrolebinding/{RELEASE}", *roles, "--ignore-not-found")
    control.kubectl(*permissions)
    control.kubectl("delete", f"crd/{CRD}", "--ignore-not-found")
    # A CRD that is created again while the old one is still served may never be established.
    served = ("get", "--raw", f"/apis/{GROUP}/{VERSION}")
    until(lambda: control.kubectl.run(*served).returncode != 0, within=30, what="the CRD is not served any more")
    try:
        yield
    finally:
        control.kubectl("delete", "namespace", SYSTEM, "--ignore-not-found", "--timeout=120s", within=130)
        control.kubectl(*permissions)
        install(control)


def changed_chart(folder: Path) -> Path:
    """The next version of the chart, whose CRD has another column."""
    chart = folder / "finetune-operator"
    shutil.copytree(CHART, chart)
    template = chart / "templates/crd.yaml"
    first = "    additionalPrinterColumns:\n"
    column = f"    - name: {COLUMN}\n      type: number\n      jsonPath: .spec.training.learningRate\n"
    text = template.read_text()
    assert text.count(first) == 1
    template.write_text(text.replace(first, first + column))
    described = chart / "Chart.yaml"
    described.write_text(described.read_text().replace("\nversion: 0.1.0", "\nversion: 0.1.1"))
    return chart
