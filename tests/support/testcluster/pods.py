"""A cluster that runs pods: nodes for a control plane, and operations on them."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import binaries
from .control_plane import ControlPlane
from .daemons import Daemon, until
from .missing import MissingError
from .nodes import Node, require_tools
from .shared_services import start_dns, start_proxy

NAMES = ("node-a", "node-b")


class PodsCluster:
    """Nodes of one control plane, which outlives them."""

    def __init__(self, control: ControlPlane) -> None:
        self.control = control
        self.nodes: dict[str, Node] = {}
        self.shared: list[Daemon] = []

    @property
    def host_address(self) -> str:
        """Address at which pods reach this machine; they reach nothing else outside of the cluster."""
        assert self.control.network is not None
        return self.control.network.host

    def start(self, names: Sequence[str] = NAMES) -> "PodsCluster":
        require_tools()
        network = self.control.network
        if network is None:
            raise MissingError(self.control.why_no_network)
        binaries.built(binaries.COREDNS, self.control.say)
        started = time.monotonic()
        try:
            for index, name in enumerate(names):
                node = self.nodes[name] = Node(self.control, network, name, index)
                node.prepare()
                node.start()
            self.shared.append(start_dns(self.control, network))
            for node in self.nodes.values():
                self._until_ready(node)
            self.shared.append(start_proxy(self.control, network, names[0]))
        except BaseException:
            self.stop()
            raise
        self.control.say(f"nodes {', '.join(names)}: {time.monotonic() - started:.1f} s")
        return self

    def _until_ready(self, node: Node, heartbeat: str = "") -> None:
        """Wait until the node is ready and, if given, has a newer heartbeat: Ready alone may be outdated."""
        assert node.kubelet is not None
        node.kubelet.until(lambda: node.lease() not in {"", heartbeat} and node.is_ready(), within=60, what="Ready")

    def kill_container(self, pod: Mapping[str, Any]) -> None:
        """kill -9 all processes of a running pod's only container."""
        (status,) = pod["status"]["containerStatuses"]
        self.nodes[pod["spec"]["nodeName"]].kill_container(status["containerID"].removeprefix("containerd://"))

    def kill_node(self, name: str) -> None:
        """Kill it like a power failure. The API server notices when the grace period has expired."""
        self.nodes[name].kill()

    def restart_node(self, name: str) -> None:
        """Restart a killed node, and wait until its kubelet has reported."""
        node = self.nodes[name]
        heartbeat = node.lease()
        node.start()
        self._until_ready(node, heartbeat)

    def kill_kubelet(self, name: str) -> None:
        """Kill only the kubelet: its pods continue to run."""
        kubelet = self.nodes[name].kubelet
        assert kubelet is not None
        kubelet.kill()

    def restart_kubelet(self, name: str) -> None:
        node = self.nodes[name]
        heartbeat = node.lease()
        node.start_kubelet()
        self._until_ready(node, heartbeat)

    def until_not_ready(self, name: str, within: float = 60) -> None:
        until(lambda: not self.nodes[name].is_ready(), within=within, what=f"{name} is NotReady")

    def add_gpus(self, name: str, count: int) -> None:
        """Add GPUs that the node does not have: pods that request them are placed and run on its CPU."""
        path = "/status/capacity/nvidia.com~1gpu"
        patch = f'[{{"op": "add", "path": "{path}", "value": "{count}"}}]'
        self.control.kubectl("patch", f"node/{name}", "--subresource=status", "--type=json", f"--patch={patch}")

    def stop(self) -> None:
        for daemon in reversed(self.shared):
            daemon.kill()
        for node in self.nodes.values():
            node.kill()
        self.nodes.clear()
        self.shared.clear()
