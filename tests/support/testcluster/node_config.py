"""Configuration of containerd, CNI and a kubelet. Pure: maps paths and addresses to configuration."""

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
"""Kernel settings that a kubelet requires, with their values."""


def private_places(folder: Path) -> str:
    """Shell commands that make fixed paths private to the node.

    Kernel settings apply to the whole machine, and a kubelet would change them; it gets files with the values that it
    requires instead.
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
    """State and socket are in /run, as on a machine: they do not survive a restart of the node."""
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
restrict_oom_score_adj = true # the permission to lower it may be missing
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
    """The pods of all nodes are on one bridge, so they reach each other without an overlay."""
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
        # A lost node must be detected within seconds.
        "nodeLeaseDurationSeconds": LEASE_SECONDS,
        "nodeStatusUpdateFrequency": "2s",
        # Images cannot be pulled again after garbage collection.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        # Tests start many pods at the same time.
        "registryPullQPS": 0,
        "serializeImagePulls": False,
    }
