"""A test cluster leaves nothing on the machine, whether it is stopped or its tests are killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testcluster.cgroups import ControlGroup
from testcluster.control_plane import ControlPlane
from testcluster.daemons import until
from testcluster.node_config import TUNABLES
from testcluster.pod_manifests import python_pod
from testcluster.pods import PodsCluster
from testcluster.run_folder import run_folder, sweep

SUPPORT = Path(__file__).parents[1] / "support"
PLACES = (
    *("/etc/cni/net.d", "/run/containerd", "/run/netns", "/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet"),
    *("/var/log/containers", "/var/log/pods"),
)
START_AND_WAIT = """
import sys, time
from testcluster.control_plane import ControlPlane
from testcluster.pods import PodsCluster
from testcluster.run_folder import run_folder
with run_folder() as folder:
    PodsCluster(ControlPlane(folder).start()).start(["node-x"])
    print("FOLDER", folder, flush=True)
    time.sleep(600)
"""


def processes_of(folder: Path) -> list[str]:
    """Command lines that contain the folder. Those of containers do not; these are found by control group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just exited
        found += [command] if str(folder) in command else []
    return found


def machine_state() -> dict[str, object]:
    """State of the machine that a cluster could change."""
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout.splitlines()
    tunables = (*TUNABLES, "net/ipv4/ip_forward")
    return {
        "rules": [line for line in rules if not line.startswith(("#", ":"))],
        "kernel": {name: Path("/proc/sys", name).read_text() for name in tunables},
        "places": [place for place in PLACES if Path(place).exists()],
    }


@pytest.fixture
def nodes_possible(pods_cluster: PodsCluster) -> PodsCluster:
    """Skip with the reason if nodes are not possible."""
    return pods_cluster


@pytest.mark.usefixtures("nodes_possible")
def test_a_second_cluster_runs_concurrently_and_leaves_nothing() -> None:
    before = machine_state()
    with run_folder() as folder:
        control = ControlPlane(folder).start()
        nodes = PodsCluster(control).start(["node-a"])
        control.kubectl.until("serviceaccount/default", lambda _: True, within=30)
        control.kubectl.apply(python_pod("sleeper", "import time; time.sleep(600)"))
        control.kubectl.until("pod/sleeper", lambda pod: pod["status"]["phase"] == "Running", within=60)
        assert control.network is not None
        interface = control.network.interface
        assert processes_of(folder) != []
        nodes.stop()
        control.stop()
    assert processes_of(folder) == []
    assert not ControlGroup(folder.name).exists()
    assert not folder.exists()
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    assert not (Path("/sys/class/net") / interface).exists()
    assert interface not in subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    assert machine_state() == before


@pytest.mark.usefixtures("nodes_possible")
def test_the_cluster_of_a_killed_test_run_is_removed() -> None:
    command = [sys.executable, "-c", START_AND_WAIT]
    environment = dict(os.environ) | {"PYTHONPATH": str(SUPPORT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        folder = Path(next(line for line in run.stdout if line.startswith("FOLDER")).split()[1])
        started = processes_of(folder)
        run.send_signal(signal.SIGKILL)
    assert len(started) > 5
    until(lambda: processes_of(folder) == [], within=20, what="its processes have ended")
    assert folder.exists()
    sweep()
    assert not folder.exists()
    assert not ControlGroup(folder.name).exists()
