"""Nodes, each with a containerd and a kubelet, and their shared kube-proxy and DNS.

A node is a PID and a mount namespace. Its first process is `pause`. When that is killed, the kernel kills everything on
the node (kubelet, containerd, shims, containers) and removes its mounts. This implements both the loss of a node and
its cleanup. The fixed folders of containerd, CNI and kubelet (/run, /var/lib, /var/log) are private to the node.
"""

import json
import os
import shutil
from pathlib import Path

from . import images
from .access import certificate_user, condition, kubeconfig, write_kubeconfig
from .cgroups import ControlGroup
from .control_plane import ControlPlane, require_root
from .daemons import Daemon, NotInTimeError, run
from .missing import MissingError
from .network import Network
from .node_config import cni_config, containerd_config, kubelet_config, private_places

PACKAGES = ("containerd", "runc", "containernetworking-plugins", "iptables", "conntrack")
INSTALL = f"apt-get install -y --no-install-recommends {' '.join(PACKAGES)}"
TOOLS = ("containerd", "ctr", "runc", "iptables", "conntrack", "mount")
PLUGINS = ("bridge", "host-local", "loopback")
PLUGIN_FOLDERS = (Path("/usr/lib/cni"), Path("/opt") / "cni/bin")


def plugin_folder() -> Path | None:
    return next((one for one in PLUGIN_FOLDERS if all((one / name).exists() for name in PLUGINS)), None)


def require_tools() -> None:
    require_root()
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if plugin_folder() is None:
        missing.append("CNI plugins")
    if missing:
        raise MissingError(f"nodes need {', '.join(missing)} (make cluster-tools, or: {INSTALL})")


class Node:
    """One node of a control plane that has a network."""

    def __init__(self, control: ControlPlane, network: Network, name: str, index: int) -> None:
        self.control = control
        self.network = network
        self.name = name
        self.index = index
        self.address = network.node(index)
        self.folder = control.folder / name
        self.group = ControlGroup(f"{control.folder.name}/{name}")
        self.init: Daemon | None = None
        self.containerd: Daemon | None = None
        self.kubelet: Daemon | None = None

    def prepare(self) -> None:
        """Create what exists once, independently of restarts."""
        self.folder.mkdir()
        plugins = plugin_folder()
        assert plugins is not None
        certificate = self.control.authority.issue(
            f"system:node:{self.name}", ["system:nodes"], [f"IP:{self.address}", f"DNS:{self.name}"]
        )
        user = kubeconfig(self.control.server, self.control.authority.cert, certificate_user(certificate))
        write_kubeconfig(self.folder / "kubeconfig", user)
        kubelet = kubelet_config(self.folder, self.address, self.network.gateway, self.group.name, certificate)
        kubelet["authentication"]["x509"] = {"clientCAFile": str(self.control.authority.cert)}
        (self.folder / "kubelet.json").write_text(json.dumps(kubelet, indent=1))
        (self.folder / "containerd.toml").write_text(containerd_config(self.folder, plugins, images.PAUSE))
        (self.folder / "cni").mkdir()
        network = cni_config(self.network.pods, self.network.pods_of(self.index), self.network.gateway)
        (self.folder / "cni/10-bridge.conflist").write_text(json.dumps(network))
        (self.folder / "resolv.conf").write_text(f"nameserver {self.network.gateway}\n")
        self.network.inside("ip", "address", "add", f"{self.address}/17", "dev", "bridge")

    def start(self) -> None:
        """Start it without waiting until the node is ready."""
        self.group.create()
        self._start_init()
        self.start_containerd()
        self.start_kubelet()

    def _start_init(self) -> None:
        ready = self.folder / "booted"
        ready.unlink(missing_ok=True)
        script = f"{private_places(self.folder)}\ntouch {ready}\nexec {self.control.programs / 'pause'}"
        isolated = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-euc", script)
        self.init = Daemon(self.name, self.network.enter(*isolated), log=self.folder / "init.log")
        try:
            self.init.until(ready.exists, within=10, what="its namespaces")
        except NotInTimeError as error:
            raise MissingError(
                f"nodes need permission to mount (tmpfs, overlay) and to create namespaces: {error}"
            ) from error

    @property
    def init_pid(self) -> int:
        """PID as seen from this machine; within the node it is 1."""
        assert self.init is not None
        return int(Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()[0])

    def enter(self, *command: str | Path) -> list[str]:
        """Prefix a command so that it runs on the node."""
        return ["nsenter", f"--target={self.init_pid}", "--mount", "--pid", "--net", *map(str, command)]

    def inside(self, *command: str | Path) -> str:
        return run(*self.enter(*command))

    def start_containerd(self) -> None:
        command = self.enter("containerd", "--config", self.folder / "containerd.toml")
        self.containerd = Daemon(f"containerd of {self.name}", command, log=self.folder / "containerd.log")
        version = self.enter("ctr", "version")
        self.containerd.until(lambda: is_successful(version), within=30, what="an answer")
        known = self.inside("ctr", "--namespace=k8s.io", "images", "list", "--quiet")
        if images.HOST not in known:
            self.load_image(images.pause_image(self.control.programs / "pause"))
            self.load_image(images.host_image())

    def load_image(self, archive: bytes) -> None:
        file = self.folder / "image.tar"
        file.write_bytes(archive)
        self.inside("ctr", "--namespace=k8s.io", "images", "import", file)
        file.unlink()

    def kill_container(self, container: str) -> None:
        """kill -9 all of its processes, like the kernel's out-of-memory killer or a user. `container`: its id."""
        listed = self.inside("ctr", "--namespace=k8s.io", "tasks", "ps", container).splitlines()[1:]
        # The first process is the parent of the others: the kernel kills them with it, possibly before `kill` does.
        run(*self.enter("sh", "-c", 'kill -9 "$@" 2>/dev/null || true', "sh", *(line.split()[0] for line in listed)))

    def start_kubelet(self) -> None:
        command = self.enter(
            self.control.programs / "kubelet",
            f"--kubeconfig={self.folder / 'kubeconfig'}",
            f"--config={self.folder / 'kubelet.json'}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'kubelet-pki'}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
        )
        self.kubelet = Daemon(f"kubelet of {self.name}", command, log=self.folder / "kubelet.log")

    def lease(self) -> str:
        """Time of the kubelet's last heartbeat."""
        found = self.control.kubectl.within("kube-node-lease").run("get", f"lease/{self.name}", "-o", "json")
        return str(json.loads(found.stdout)["spec"].get("renewTime")) if found.returncode == 0 else ""

    def is_ready(self) -> bool:
        found = self.control.kubectl.run("get", f"node/{self.name}", "-o", "json")
        return found.returncode == 0 and condition(json.loads(found.stdout), "Ready") == "True"

    def kill(self) -> None:
        """Kill it like a power failure."""
        if self.init is not None and self.init.process.poll() is None:
            os.kill(self.init_pid, 9)
        for daemon in (self.init, self.kubelet, self.containerd):
            if daemon is not None:
                daemon.kill()
        self.init = self.kubelet = self.containerd = None
        # They do not survive a restart of a real machine; a kubelet that finds some waits for their containers.
        self.group.remove()


def is_successful(command: list[str]) -> bool:
    try:
        run(*command)
    except RuntimeError:
        return False
    return True
