"""Services shared by all nodes: kube-proxy, which implements Services, and DNS, which resolves names.

There is one of each, since the nodes share one network namespace; both survive the loss of a node.
"""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from . import binaries
from .control_plane import ControlPlane
from .daemons import Daemon
from .network import Network

PROXY_HEALTH_PORT = 10256
DNS_READY_PORT = 8181


def start_dns(control: ControlPlane, network: Network) -> Daemon:
    """Without a cache, because a name that is resolved too early would stay unknown for seconds."""
    control.kubectl.apply(*dns_rights())
    config = control.folder / "Corefile"
    config.write_text(f"""\
cluster.local in-addr.arpa {{
    bind {network.gateway}
    ready {network.gateway}:{DNS_READY_PORT}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {control.kubeconfig("system:coredns")}
        pods verified
        ttl 1
    }}
}}
. {{
    bind {network.gateway}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
""")
    program = binaries.built(binaries.COREDNS, control.say) / "coredns"
    daemon = Daemon("coredns", network.enter(program, "-conf", config), log=control.folder / "coredns.log")
    ready = f"http://{network.gateway}:{DNS_READY_PORT}/ready"
    daemon.until(lambda: answers(ready), within=30, what="ready")
    return daemon


def dns_rights() -> list[dict[str, Any]]:
    rbac = "rbac.authorization.k8s.io"
    name = "system:coredns"
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    role = {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": name}],
    }
    return [role, binding]


def start_proxy(control: ControlPlane, network: Network, node: str) -> Daemon:
    """Call it when the node exists; otherwise it would wait for the node for half a minute."""
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": node,
        "clientConnection": {"kubeconfig": str(control.kubeconfig("system:kube-proxy"))},
        "healthzBindAddress": f"{network.gateway}:{PROXY_HEALTH_PORT}",
        "metricsBindAddress": "127.0.0.1:10249",
        "clusterCIDR": network.pods,
        "conntrack": {"maxPerCore": 0, "min": 0},  # do not change the settings of this machine
        # Pods share a bridge: without this, a response would go directly to the client, from an address that it did not
        # use.
        "iptables": {"masqueradeAll": True, "minSyncPeriod": "0s"},
    }
    file: Path = control.folder / "kube-proxy.json"
    file.write_text(json.dumps(config, indent=1))
    command = network.enter(control.programs / "kube-proxy", f"--config={file}")
    daemon = Daemon("kube-proxy", command, log=control.folder / "kube-proxy.log")
    live = f"http://{network.gateway}:{PROXY_HEALTH_PORT}/livez"
    daemon.until(lambda: answers(live), within=30, what="live")
    return daemon


def answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
