"""What containerd, CNI and a kubelet are told. Pure: paths and addresses in, configuration out."""

from pathlib import Path
from typing import Any

from .pki import Certificate

KUBELET_PORT = 10250
LEASE_SECONDS = 8

TUNABLES = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
"""Settings of the kernel that a kubelet insists on, with its values."""


def private_places(folder: Path) -> str:
    """Shell: what is the node's own although its path is fixed.

    The kernel's settings are this whole machine's, and a kubelet would change them; it gets files that hold what it
    wants.
    """
    lines = ["mount -t tmpfs tmpfs /run"]
    for place in (Path("/var/lib"), Path("/var/log")):
        own = folder / "places" / place.name
        layers = f"lowerdir={place},upperdir={own}/upper,workdir={own}/work"
        lines += [f"mkdir -p {own}/upper {own}/work", f"mount -t overlay overlay -o {layers} {place}"]
    for name, value in TUNABLES.items():
        own = folder / "sysctl" / name
        lines += [f"mkdir -p {own.parent}", f"echo {value} > {own}", f"mount --bind {own} /proc/sys/{name}"]
    return "\n".join(lines)


def containerd_config(folder: Path, plugins: Path, pause: str) -> str:
    """State and socket stay in /run, as in a machine's: they do not survive a restart of the node."""
    return f"""\
version = 2
root = "{folder / "containerd"}"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt",
]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true # the right to lower it may be missing
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{folder / "cni"}"
"""


def cni_config(subnet: str, pods: tuple[str, str], gateway: str) -> dict[str, Any]:
    """All nodes' pods are on one bridge: they reach each other with no overlay."""
    first, last = pods
    ipam = {
        "type": "host-local",
        "dataDir": "/run/cni",
        "ranges": [[{"subnet": subnet, "rangeStart": first, "rangeEnd": last, "gateway": gateway}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "bridge", "hairpinMode": True, "ipam": ipam}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}


def kubelet_config(folder: Path, address: str, dns: str, group: str, certificate: Certificate) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "port": KUBELET_PORT,
        "healthzBindAddress": address,
        "tlsCertFile": str(certificate.cert),
        "tlsPrivateKeyFile": str(certificate.key),
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}},
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{group}",
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "clusterDomain": "cluster.local",
        "clusterDNS": [dns],
        "resolvConf": str(folder / "resolv.conf"),
        "podLogsDir": str(folder / "pod-logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "makeIPTablesUtilChains": False,
        # A lost node is to be noticed within seconds.
        "nodeLeaseDurationSeconds": LEASE_SECONDS,
        "nodeStatusUpdateFrequency": "2s",
        # The images come from nowhere: one that is collected is lost.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        # Simultaneous starts of many pods are what tests do.
        "registryPullQPS": 0,
        "serializeImagePulls": False,
    }
