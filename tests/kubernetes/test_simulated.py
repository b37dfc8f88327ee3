"""Simulated nodes: a hundred in seconds, for benchmarks; pods on them succeed immediately."""

import os

import pytest

from testcluster import binaries
from testcluster.access import Kubectl, condition
from testcluster.control_plane import ControlPlane
from testcluster.pod_manifests import indexed_job
from testcluster.simulated import LABEL, TOLERATION, simulated_nodes

COUNT = 100


@pytest.fixture
def wanted(control_plane: ControlPlane) -> ControlPlane:
    """Skip unless kwok is built or required: only this test needs it."""
    if not isinstance(control_plane, ControlPlane):
        pytest.skip("simulated nodes are not for an existing cluster")
    if not (binaries.is_built(binaries.KWOK) or "simulated" in os.environ.get("FINETUNE_TEST_REQUIRE", "").split(",")):
        pytest.skip("kwok is not built (3 minutes); FINETUNE_TEST_REQUIRE=simulated does")
    return control_plane


def test_a_job_on_simulated_nodes_completes(wanted: ControlPlane, kubectl: Kubectl) -> None:
    container = {"name": "main", "image": "none", "resources": {"limits": {"nvidia.com/gpu": "8"}}}
    spec = {"restartPolicy": "Never", "containers": [container], "nodeSelector": LABEL, "tolerations": [TOLERATION]}
    with simulated_nodes(wanted, COUNT, tainted=True) as names:
        kubectl.apply(indexed_job("wide", {"spec": spec}, pods=COUNT))
        kubectl.until("job/wide", lambda job: condition(job, "Complete") == "True", within=60)
        pods = kubectl.json("get", "pods", "--selector=ring=wide")["items"]
    assert len(pods) == COUNT
    assert {pod["spec"]["nodeName"] for pod in pods} <= set(names)
