"""Why a Job waits in a queue, from Workloads as Kueue v0.17 writes them."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from finetune_operator.clusters.kubernetes import KubernetesCluster
from finetune_operator.errors import ApiError
from finetune_operator.manifests import JobKey, Manifest

NO_QUOTA = {"type": "QuotaReserved", "status": "False", "message": "insufficient quota for cpu"}
RESERVED = {"type": "QuotaReserved", "status": "True", "message": "Quota reserved in ClusterQueue shared"}
NO_CHECK = {"type": "Admitted", "status": "False", "message": "The workload has failed admission checks"}
EVICTED = {"type": "Evicted", "status": "True", "message": "The workload is deactivated due to too many requeues"}
READMITTED = {"type": "Evicted", "status": "False", "message": "Previously: preempted"}


@dataclass
class WorkloadServer:
    """The Workloads of a namespace, in one version of Kueue's API."""

    workloads: list[Manifest]
    version: str = "v1beta2"

    async def request(self, _method: str, path: str, **options: Any) -> Manifest:
        if f"/{self.version}/" not in path:
            raise ApiError(404, "NotFound", path)
        assert options == {"labelSelector": "kueue.x-k8s.io/job-uid=u"}
        return {"items": self.workloads}


def reason(server: WorkloadServer) -> str:
    cluster = KubernetesCluster(server)  # type: ignore[arg-type]
    return asyncio.run(cluster.read_queue_reason(JobKey("default", "example"), "u"))


def workload(*conditions: Manifest, active: bool = True) -> Manifest:
    return {"metadata": {"name": "job-a1"}, "spec": {"active": active}, "status": {"conditions": list(conditions)}}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], ""),
        ([{"metadata": {"name": "job-a1"}}], ""),
        ([workload(NO_QUOTA)], NO_QUOTA["message"]),
        ([workload(RESERVED, NO_CHECK)], NO_CHECK["message"]),
        ([workload(READMITTED, NO_QUOTA)], NO_QUOTA["message"]),
        ([workload(NO_QUOTA, EVICTED, active=False)], f"{EVICTED['message']} (spec.active of Workload job-a1)"),
        (
            [workload(NO_QUOTA, READMITTED, active=False)],
            "The workload is deactivated (spec.active of Workload job-a1)",
        ),
    ],
    ids=["none", "new", "quota", "check", "evicted before", "deactivated by Kueue", "deactivated just now"],
)
def test_the_reason_is_the_one_that_kueue_reports_last(found: list[Manifest], expected: str) -> None:
    assert reason(WorkloadServer(found)) == expected


def test_the_reason_is_read_from_both_versions_of_the_api() -> None:
    assert reason(WorkloadServer([workload(NO_QUOTA)], version="v1beta1")) == NO_QUOTA["message"]
    assert reason(WorkloadServer([workload(NO_QUOTA)], version="v1alpha1")) == ""
