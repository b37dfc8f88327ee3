"""Hundreds of simulated nodes: kwok reports for them, and pods that are placed on them succeed immediately.

For scalability tests, which measure the operator and the API server, not training.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import binaries
from .access import condition
from .control_plane import ControlPlane
from .daemons import Daemon

LABEL = {"type": "kwok"}
TAINT = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
TOLERATION = {"key": TAINT["key"], "operator": "Exists", "effect": "NoSchedule"}


def simulated_node(index: int, gpus: int, *, tainted: bool) -> dict[str, Any]:
    size = {"cpu": "64", "memory": "256Gi", "pods": "250", "ephemeral-storage": "1Ti", "nvidia.com/gpu": str(gpus)}
    name = f"simulated-{index:04d}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": LABEL | {"kubernetes.io/hostname": name},
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
        },
        "spec": {"taints": [TAINT] if tainted else []},
        "status": {"capacity": size, "allocatable": size, "nodeInfo": {"kubeletVersion": "simulated"}},
    }


@contextmanager
def simulated_nodes(
    control: ControlPlane, count: int, *, gpus: int = 8, tainted: bool = False, removed: bool = True
) -> Iterator[list[str]]:
    """Yield their names once all are ready. Next to real nodes, taint them, and give the pods LABEL and TOLERATION.

    `removed`: delete them at the end, because others use the control plane after that.
    """
    program = binaries.built(binaries.KWOK, control.say) / "kwok"
    selector = ",".join(f"{key}={value}" for key, value in LABEL.items())
    started = time.monotonic()
    kwok = Daemon(
        "kwok",
        [
            program,
            f"--kubeconfig={control.kubectl.kubeconfig}",
            "--manage-all-nodes=false",
            f"--manage-nodes-with-label-selector={selector}",
            "--node-lease-duration-seconds=20",
        ],
        log=control.folder / "kwok.log",
    )
    try:
        nodes = [simulated_node(index, gpus, tainted=tainted) for index in range(count)]
        control.kubectl.apply(*nodes)
        kwok.until(lambda: ready_count(control, selector) == count, within=60 + count / 5, what=f"{count} ready nodes")
        control.say(f"{count} simulated nodes: {time.monotonic() - started:.1f} s")
        yield [node["metadata"]["name"] for node in nodes]
    finally:
        kwok.kill()
        if removed:
            control.kubectl("delete", "nodes", f"--selector={selector}", "--wait=false", within=300)


def ready_count(control: ControlPlane, selector: str) -> int:
    nodes = control.kubectl.json("get", "nodes", f"--selector={selector}")["items"]
    return sum(condition(node, "Ready") == "True" for node in nodes)
