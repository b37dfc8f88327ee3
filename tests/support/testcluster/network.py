"""A cluster's own network: a bridge in a network namespace that is connected to this machine.

Nodes, their pods, kube-proxy and DNS are in the namespace. Their fixed ports, the bridge and kube-proxy's rules are
local to it, so clusters can run concurrently, and everything is removed with the last process of the namespace. This
machine has an address on the bridge, on which the API server listens. Tests reach pods from it directly, and Services
through the gateway.

    host: 10.N.0.1 (API server) ── veth ── bridge 10.N.0.2 (gateway, DNS) ── nodes 10.N.0.11… ── pods 10.N.11.2…
"""

import json
import random
import shutil
import socket
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from .daemons import Daemon, run, until
from .missing import MissingError

CHOICES = range(64, 250)
FIRST_NODE = 11
CLAIMS = 5
"""Number of tries, because another cluster may take a range between the check and the claim."""


def taken() -> list[IPv4Network]:
    """Ranges to which this machine has routes."""
    routes = json.loads(run("ip", "-json", "-4", "route", "show", "table", "all"))
    ways = [IPv4Network(one["dst"], strict=False) for one in routes if one["dst"] not in {"default", "unreachable"}]
    # Wider routes (such as 10.0.0.0/8 to a company's network) apply only to addresses without a more specific route.
    return [way for way in ways if way.prefixlen >= 12]


def free_octet() -> int:
    ways = taken()
    free = [one for one in CHOICES if not any(way.overlaps(IPv4Network(f"10.{one}.0.0/16")) for way in ways)]
    if not free:
        raise MissingError("no free range 10.N.0.0/16 for the cluster's network")
    return random.choice(free)


def interface_name(octet: int) -> str:
    return f"finetune{octet}"


def claim_octet(namespace_pid: int) -> int:
    """Create the interface pair to the namespace. Its name claims the range: creating a second one fails."""
    ends = ("type", "veth", "peer", "name", "host", "netns", str(namespace_pid))
    refused: RuntimeError | None = None
    for _ in range(CLAIMS):
        octet = free_octet()
        try:
            run("ip", "link", "add", interface_name(octet), *ends)
        except RuntimeError as error:
            refused = error
        else:
            return octet
    raise MissingError(str(refused))


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def own_address() -> str:
    """A non-loopback address of this machine, which the API server requires. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError as error:
            raise MissingError(
                f"this machine has no address but loopback, and only root can create one ({error})"
            ) from error
        return str(probe.getsockname()[0])


@dataclass
class Network:
    """See the module. Requires root."""

    octet: int
    namespace: Daemon

    @classmethod
    def start(cls, folder: Path, pause: Path) -> "Network":
        for tool, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
            if shutil.which(tool) is None:
                raise MissingError(f"{tool} is not on the path (apt-get install {package})")
        holder = Daemon("network", ["unshare", "--net", pause], log=folder / "network.log")
        try:
            ours, theirs = Path("/proc/self/ns/net"), Path(f"/proc/{holder.pid}/ns/net")
            holder.until(lambda: theirs.readlink() != ours.readlink(), within=10, what="a namespace of its own")
            network = cls(claim_octet(holder.pid), holder)
            network._connect()
        except Exception as error:
            holder.kill()
            raise MissingError(f"no network for the cluster: {error}") from error
        return network

    def _connect(self) -> None:
        # A fixed address: otherwise the bridge uses the lowest address of its ports, which changes as pods come and go.
        self.inside("sh", "-euc", f"""
            ip link set lo up
            ip link add bridge address 02:00:0a:{self.octet:02x}:00:02 type bridge
            ip address add {self.gateway}/17 dev bridge
            ip link set host master bridge up
            ip link set bridge up
            echo 1 > /proc/sys/net/ipv4/ip_forward
        """)  # fmt: skip
        run("ip", "address", "add", f"{self.host}/17", "dev", self.interface)
        run("ip", "link", "set", self.interface, "up")
        run("ip", "route", "add", self.services, "via", self.gateway)

    @property
    def interface(self) -> str:
        return interface_name(self.octet)

    @property
    def host(self) -> str:
        return f"10.{self.octet}.0.1"

    @property
    def gateway(self) -> str:
        return f"10.{self.octet}.0.2"

    @property
    def pods(self) -> str:
        return f"10.{self.octet}.0.0/17"

    @property
    def services(self) -> str:
        return f"10.{self.octet}.128.0/17"

    def node(self, index: int) -> str:
        return f"10.{self.octet}.0.{FIRST_NODE + index}"

    def pods_of(self, index: int) -> tuple[str, str]:
        """First and last address of a node's pods."""
        return f"10.{self.octet}.{FIRST_NODE + index}.2", f"10.{self.octet}.{FIRST_NODE + index}.250"

    def enter(self, *command: str | Path) -> list[str]:
        """Prefix a command so that it runs in the namespace."""
        return ["nsenter", f"--net=/proc/{self.namespace.pid}/ns/net", *map(str, command)]

    def inside(self, *command: str | Path) -> str:
        return run(*self.enter(*command))

    def stop(self) -> None:
        """Call it when nothing runs in the namespace anymore: it exists as long as its last process."""
        self.namespace.kill()
        interface = Path("/sys/class/net") / self.interface
        until(lambda: not interface.exists(), within=10, what=f"{self.interface} is removed with its namespace")
