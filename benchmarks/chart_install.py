"""Benchmark the installation of the chart on real nodes: helm, compared with kubectl and the same objects.

    python benchmarks/chart_install.py [--rounds N]

`helm` is the time of `helm install --wait`. `kubectl` is the time of `kubectl apply --server-side` of the objects that
`helm template` renders, and of `kubectl rollout status` of the operator's Deployment. Both end when the operator, whose
image is on the nodes, is ready. Between two installations everything is removed, including the CRD and the namespace,
which is then created again. The two alternate, and in every other round in the opposite order. Prints all times and, as
the last line, a JSON object; the exit status is 1 if the ratio of the medians is above its limit.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("operator", "trainer", "tests/support")]

from finetune_api.constants import GROUP, VERSION  # noqa: E402
from operator_process import CRD, NAME, installation  # noqa: E402
from testcluster import binaries  # noqa: E402
from testcluster.access import Kubectl  # noqa: E402
from testcluster.builds import Buildah, require_buildah  # noqa: E402
from testcluster.control_plane import ControlPlane  # noqa: E402
from testcluster.daemons import until  # noqa: E402
from testcluster.helm import CHART, RELEASE, Helm  # noqa: E402
from testcluster.pods import PodsCluster  # noqa: E402
from testcluster.run_folder import run_folder  # noqa: E402

SYSTEM = "finetune-system"
LIMIT_SECONDS = 300
MOST = 1.2
"""Limit of the ratio."""
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Installer:
    """The two ways to install the chart with its defaults."""

    helm: Helm
    kubectl: Kubectl
    """In the namespace of the release."""

    def install_with_helm(self) -> None:
        self.helm("install", RELEASE, CHART, "--wait", f"--timeout={LIMIT_SECONDS}s", within=LIMIT_SECONDS)

    def install_with_kubectl(self, manifests: str) -> None:
        self.kubectl("apply", "--server-side", "--filename=-", stdin=manifests)
        waits = ("rollout", "status", f"deployment/{NAME}", f"--timeout={LIMIT_SECONDS}s")
        self.kubectl(*waits, within=LIMIT_SECONDS)

    def seconds(self, tool: str) -> float:
        """Return the time of an installation, which is removed afterwards."""
        manifests = self.helm("template", RELEASE, CHART)
        self.kubectl("create", "namespace", SYSTEM)
        self.kubectl.until("serviceaccount/default", lambda _: True, within=60)
        start = time.monotonic()
        if tool == "helm":
            self.install_with_helm()
        else:
            self.install_with_kubectl(manifests)
        seconds = time.monotonic() - start
        self.remove(manifests)
        return seconds

    def remove(self, manifests: str) -> None:
        """Delete the namespace with the release, and the objects outside of it."""
        self.kubectl("delete", "--filename=-", "--ignore-not-found", stdin=manifests, within=LIMIT_SECONDS)
        self.kubectl("delete", "namespace", SYSTEM, within=LIMIT_SECONDS)
        # A CRD that is created again while the old one is still served may never be established.
        served = ("get", "--raw", f"/apis/{GROUP}/{VERSION}")
        until(lambda: self.kubectl.run(*served).returncode != 0, within=60, what=f"{CRD} is not served any more")


@contextmanager
def dedicated_installer() -> Iterator[Installer]:
    """Start a cluster whose nodes have the image of the operator."""
    require_buildah()
    builder = Buildah(Path(tempfile.mkdtemp(prefix="finetune-images-")))
    with run_folder() as folder, tempfile.TemporaryDirectory() as home:
        control = ControlPlane(folder).start()
        cluster = PodsCluster(control)
        try:
            cluster.start()
            (container,) = installation()["Deployment", NAME]["spec"]["template"]["spec"]["containers"]
            builder.make_base()
            builder.build("operator", container["image"])
            archive = builder.archive(container["image"], container["image"])
            for node in cluster.nodes.values():
                node.load_image(archive)
            helm = Helm(binaries.built(binaries.HELM) / "helm", Path(home))
            yield Installer(helm.on(control.kubectl.kubeconfig, SYSTEM), control.kubectl.within(SYSTEM))
        finally:
            cluster.stop()
            control.stop()
            builder.remove()


def main() -> int:
    """Measure and print the results. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5, help=f"installations with each, at least {LEAST_ROUNDS}")
    rounds = parser.parse_args().rounds
    if rounds < LEAST_ROUNDS:
        parser.error(f"--rounds must be at least {LEAST_ROUNDS}, not {rounds}")
    tools = ["helm", "kubectl"]
    found: dict[str, list[float]] = {tool: [] for tool in tools}
    with dedicated_installer() as installer:
        installer.seconds("kubectl")  # the first pod of an image takes longer
        print(f"{'round':<8}{'helm':>8}{'kubectl':>10}   seconds", flush=True)
        for number in range(rounds):
            for tool in tools if number % 2 == 0 else reversed(tools):
                found[tool].append(installer.seconds(tool))
            print(f"{number + 1:<8}{found['helm'][-1]:>8.2f}{found['kubectl'][-1]:>10.2f}", flush=True)
    helm, kubectl = (statistics.median(found[tool]) for tool in tools)
    ratio = round(helm / kubectl, 3)
    print(f"{'median':<8}{helm:>8.2f}{kubectl:>10.2f}   ratio {ratio:.3f}, must be <= {MOST}\n")
    times = {"helmSeconds": round(helm, 2), "kubectlSeconds": round(kubectl, 2)}
    print(json.dumps({"benchmark": "chart", "rounds": rounds, **times, "installRatio": ratio, "maxInstallRatio": MOST}))
    return 0 if ratio <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
