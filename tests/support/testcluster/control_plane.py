"""etcd, API server, controller manager and scheduler: an API like that of a cluster, without nodes.

TLS, RBAC and the default admission plugins are enabled. All files are in one folder.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import binaries
from .access import Kubectl, certificate_user, kubeconfig, service_account_kubeconfig, write_kubeconfig
from .daemons import Daemon
from .missing import MissingError
from .network import Network, free_port, own_address
from .pki import Authority

NODE_GRACE_SECONDS = 12
"""Seconds without a heartbeat until a node is NotReady. The default is 50."""
CLIENT_LIMITS = ("--kube-api-qps=500", "--kube-api-burst=1000")
"""The default limits, 20 requests per second, would dominate benchmarks."""
FEATURES = "--feature-gates=GenericWorkload=true"
"""PodGroups, for gang scheduling: beta and disabled by default in Kubernetes 1.37."""
ALONE_SERVICES = "10.96.0.0/16"
"""Service addresses of a cluster without a network; nothing listens on them."""


class ControlPlane:
    """One control plane. `kubectl` has administrator permissions."""

    def __init__(self, folder: Path, say: binaries.Say = print) -> None:
        self.folder = folder
        self.say = say
        self.daemons: list[Daemon] = []
        self.network: Network | None = None
        self.why_no_network = ""

    def start(self) -> "ControlPlane":
        if sys.platform != "linux":
            raise MissingError("the test cluster's processes need Linux")
        self.programs = binaries.built(binaries.KUBERNETES, self.say)
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        self.say(f"control plane {binaries.KUBERNETES_VERSION} at {self.server}: {time.monotonic() - started:.1f} s")
        return self

    def _start(self) -> None:
        self._start_network()
        self.address = self.network.host if self.network else own_address()
        self.port = free_port(self.address)
        self.authority = Authority(self.folder / "pki")
        self.service_accounts = self.authority.key_pair("service-accounts")
        administrator = self.kubeconfig("admin", ["system:masters"])
        self.kubectl = Kubectl(self.programs / "kubectl", administrator, self.folder / "kubectl")
        etcd = self._start_etcd()
        server = self._start_api_server(etcd)
        self._start_controllers()
        server.until(lambda: self.kubectl.run("get", "--raw", "/readyz").returncode == 0, within=60, what="/readyz")
        # The controller manager creates it; no pod is admitted without it.
        account = ("get", "serviceaccount", "default")
        server.until(lambda: self.kubectl.run(*account).returncode == 0, within=60, what="the default service account")

    def _start_network(self) -> None:
        """Start the network. If that is not possible, the API server uses the machine's address, and there are no
        nodes."""
        try:
            require_root()
            self.network = Network.start(self.folder, self.programs / "pause")
        except MissingError as error:
            self.why_no_network = str(error)

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.port}"

    @property
    def services(self) -> str:
        return self.network.services if self.network else ALONE_SERVICES

    def _daemon(self, name: str, *flags: str) -> Daemon:
        daemon = Daemon(name, [self.programs / name, *flags], log=self.folder / f"{name}.log")
        self.daemons.append(daemon)
        return daemon

    def _start_etcd(self) -> str:
        clients, peers = (f"http://127.0.0.1:{free_port('127.0.0.1')}" for _ in range(2))
        self._daemon(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
        )
        return clients

    def _start_api_server(self, etcd: str) -> Daemon:
        first_service = self.services.rsplit(".", 1)[0] + ".1"
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
        hosts = [f"IP:{ip}" for ip in ("127.0.0.1", self.address, first_service)] + [f"DNS:{name}" for name in names]
        serving = self.authority.issue("kube-apiserver", hosts=hosts)
        to_kubelets = self.authority.issue("apiserver-kubelet", ["system:masters"])
        return self._daemon(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={serving.cert}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.authority.cert}",
            "--anonymous-auth=false",
            "--authorization-mode=Node,RBAC",
            # With PodNodeSelector, a namespace can select the nodes of its pods.
            "--enable-admission-plugins=NodeRestriction,PodNodeSelector",
            f"--kubelet-certificate-authority={self.authority.cert}",
            f"--kubelet-client-certificate={to_kubelets.cert}",
            f"--kubelet-client-key={to_kubelets.key}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer={self.server}",
            f"--service-account-key-file={self.service_accounts.cert}",
            f"--service-account-signing-key-file={self.service_accounts.key}",
            f"--service-cluster-ip-range={self.services}",
            "--allow-privileged",
            "--runtime-config=scheduling.k8s.io/v1beta1=true",
            FEATURES,
        )

    def _start_controllers(self) -> None:
        self._daemon(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig('system:kube-controller-manager')}",
            "--leader-elect=false",
            "--secure-port=0",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self.service_accounts.key}",
            f"--root-ca-file={self.authority.cert}",
            "--node-monitor-period=1s",
            f"--node-monitor-grace-period={NODE_GRACE_SECONDS}s",
            "--concurrent-job-syncs=20",
            FEATURES,
            *CLIENT_LIMITS,
        )
        self._daemon(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig('system:kube-scheduler')}",
            "--leader-elect=false",
            "--secure-port=0",
            FEATURES,
            *CLIENT_LIMITS,
        )

    def kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Kubeconfig of a user with a certificate. RBAC determines the permissions of the user and the groups."""
        content = kubeconfig(self.server, self.authority.cert, certificate_user(self.authority.issue(user, groups)))
        return write_kubeconfig(self.folder / "kubeconfigs" / user.replace(":", "-").replace("/", "-"), content)

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """Kubeconfig of an existing service account, with a token of one hour."""
        path = self.folder / "kubeconfigs" / f"{namespace}-{name}"
        return service_account_kubeconfig(self.kubectl, path, namespace, name)

    def stop(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.kill()
        self.daemons.clear()
        if self.network:
            self.network.stop()
            self.network = None


def require_root() -> None:
    if os.geteuid() != 0:
        raise MissingError("nodes need root: they create mounts, network namespaces and control groups")
