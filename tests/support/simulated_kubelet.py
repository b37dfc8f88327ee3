"""A kubelet that runs nothing: it binds pods to a node that exists only as an object, and ends them as a test
specifies.

API server, Job controller and scheduler are real. It reports the same as a real kubelet: phase, container state, exit
code, termination message, and after a deletion an end within the grace period.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from factories import make_prepared
from finetune_api import constants
from finetune_api.constants import Stage
from finetune_api.progress import EvaluateResult, PollResult, Progress, TerminationMessage, TrainResult
from finetune_api.trainer_config import SplitCounts
from finetune_api.v1alpha1 import Metric
from finetune_operator.clusters.api_server import ApiServer
from finetune_operator.errors import ApiError

NODE = "simulated"
LABEL = "finetune.test/simulated"
"""Label and taint of the node: the taint keeps real pods away, the label keeps the pods of its namespaces on it."""
_LOOK_SECONDS = 0.2
_LEASE_SECONDS = 2.0

Manifest = dict[str, Any]


@dataclass(frozen=True)
class PodEnd:
    """How a pod ends."""

    code: int = 0
    after: float = 0.0
    """Seconds after its start; infinite: only when it is terminated."""
    message: str | None = None
    """Termination message; None: the message of a trainer that has completed its stage."""
    disrupted: bool = False
    source_digest: str = ""
    """What a poll of the source files reports."""


FOREVER = PodEnd(after=float("inf"))
Script = Callable[[Stage, int, int], PodEnd]
"""(stage, attempt, pod index) -> how the pod ends."""
Capacity = Callable[[Stage, int, int], bool]
"""(stage, attempt, pod index) -> whether a node has capacity for the pod."""


def succeed(_stage: Stage, _attempt: int, _index: int) -> PodEnd:
    """Succeed immediately."""
    return PodEnd()


@dataclass
class SimulatedKubelet:
    """Manages the pods of one namespace until it is stopped.

    It must not be cancelled: a TLS connection that is closed during a request outlives the event loop.
    """

    server: ApiServer
    namespace: str
    scripts: dict[str, Script] = field(default_factory=dict)
    """By name of the FineTuneJob; `succeed` for others."""
    sidecars: dict[str, str] = field(default_factory=dict)
    """Name of the FineTuneJob -> name of a container that is injected into its pods and runs until they are deleted."""
    capacity: dict[str, Capacity] = field(default_factory=dict)
    """By name of the FineTuneJob; there is capacity for all pods of others."""
    stopped_code: int = 75
    stop_seconds: float = 0.0
    """How long a pod runs after SIGTERM, to save its state."""
    started: dict[str, float] = field(default_factory=dict)
    reported: dict[str, float] = field(default_factory=dict)
    """Time of SIGTERM, by UID of the pod."""
    dead: bool = False
    """True: the node does not respond, and its pods keep their state."""
    stopping: bool = False
    stuck: str = ""
    """Message for pods that it cannot start; empty: it starts them."""

    async def run(self) -> None:
        await self._claim_namespace()
        await self._make_node()
        loop, leased = asyncio.get_running_loop(), float("-inf")
        while not self.stopping:
            if not self.dead:
                if loop.time() >= leased + _LEASE_SECONDS:
                    leased = loop.time()
                    await self._lease()
                pods = await self.server.request("GET", f"/api/v1/namespaces/{self.namespace}/pods?resourceVersion=0")
                await asyncio.gather(*(self._sync(pod) for pod in pods["items"]))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _sync(self, pod: Manifest) -> None:
        try:
            await self._step(pod)
        except ApiError as error:
            # Forbidden: nothing can be created in a namespace that is being deleted, not even a binding.
            is_ending = error.status == HTTPStatus.FORBIDDEN and "being terminated" in str(error)
            if not is_ending and error.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
                raise

    async def _step(self, pod: Manifest) -> None:
        uid, phase = pod["metadata"]["uid"], pod["status"].get("phase", "Pending")
        end = self._end(pod)
        now = asyncio.get_running_loop().time()
        if "deletionTimestamp" in pod["metadata"]:
            if phase != "Running" or now >= self.reported.setdefault(uid, now) + self.stop_seconds:
                await self._terminate(pod, phase)
        elif phase == "Pending" and not pod["spec"].get("nodeName"):
            if not self._has_capacity(pod):
                return
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod["metadata"]["name"]}}
            target = {"target": {"apiVersion": "v1", "kind": "Node", "name": NODE}}
            await self.server.request("POST", f"{_path(pod)}/binding", binding | target)
        elif phase == "Pending" and self.stuck:
            await self._report_mount_failure(pod)
        elif phase == "Pending":
            self.started[uid] = now
            await self._patch(pod, "Running", None, "")
        elif phase == "Running" and _trainer_has_ended(pod):
            return  # a sidecar is running
        elif phase == "Running" and now >= self.started.setdefault(uid, now) + end.after:
            if end.disrupted:
                await self._disrupt(pod)
            message = termination_message_of(pod, end) if end.message is None else end.message
            await self._patch(pod, "Failed" if end.code else "Succeeded", end.code, message)

    async def _terminate(self, pod: Manifest, phase: str) -> None:
        if phase in {"Pending", "Running"} and _trainer_has_ended(pod):
            await self.server.request("PATCH", f"{_path(pod)}/status", {"status": {"phase": "Failed"}})
        elif phase in {"Pending", "Running"}:
            await self._patch(pod, "Failed", self.stopped_code, "")
        await self.server.request("DELETE", _path(pod), {"gracePeriodSeconds": 0})

    def _end(self, pod: Manifest) -> PodEnd:
        return self.scripts.get(pod["metadata"]["labels"][constants.LABEL_JOB], succeed)(*_place(pod))

    def _has_capacity(self, pod: Manifest) -> bool:
        capacity = self.capacity.get(pod["metadata"]["labels"][constants.LABEL_JOB])
        return capacity is None or capacity(*_place(pod))

    async def _patch(self, pod: Manifest, phase: str, code: int | None, message: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        state: Manifest = {"running": {"startedAt": stamp}}
        if code is not None:
            state = {"terminated": {"exitCode": code, "finishedAt": stamp, "startedAt": stamp, "message": message}}
        container = {
            "name": constants.TRAINER_CONTAINER,
            "image": "simulated",
            "imageID": "",
            "ready": code is None,
            "restartCount": 0,
            "state": state,
        }
        containers = [container]
        sidecar = self.sidecars.get(pod["metadata"]["labels"][constants.LABEL_JOB])
        if sidecar is not None and "deletionTimestamp" not in pod["metadata"]:
            phase = "Running"
            containers.append({**container, "name": sidecar, "ready": True, "state": {"running": {"startedAt": stamp}}})
        ready = {"type": "Ready", "status": "True" if code is None else "False"}
        status = {"phase": phase, "containerStatuses": containers, "conditions": [ready], "startTime": stamp}
        await self.server.request("PATCH", f"{_path(pod)}/status", {"status": status})

    async def _report_mount_failure(self, pod: Manifest) -> None:
        """Report once per pod, and correct a PodScheduled condition that the scheduler wrote after the binding."""
        conditions = pod["status"].get("conditions", ())
        if any((entry["type"], entry["status"]) == ("PodScheduled", "False") for entry in conditions):
            placed = {"type": "PodScheduled", "status": "True"}
            await self.server.request("PATCH", f"{_path(pod)}/status", {"status": {"conditions": [placed]}})
        if pod["metadata"]["uid"] in self.started:
            return
        self.started[pod["metadata"]["uid"]] = 0.0
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "metadata": {"generateName": "stuck-"},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", **_named(pod)},
            "type": "Warning",
            "reason": "FailedMount",
            "message": self.stuck,
            "lastTimestamp": stamp,
        }
        await self.server.request("POST", f"/api/v1/namespaces/{self.namespace}/events", event)

    async def _disrupt(self, pod: Manifest) -> None:
        reported = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "message": "evicted",
        }
        # Without a time, the disruption controller would consider the condition outdated and remove it.
        reported["lastTransitionTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await self.server.request("PATCH", f"{_path(pod)}/status", {"status": {"conditions": [reported]}})

    async def _claim_namespace(self) -> None:
        """Keep its pods off the real nodes that earlier tests may have started."""
        selector = {"scheduler.alpha.kubernetes.io/node-selector": f"{LABEL}=true"}
        await self.server.request(
            "PATCH", f"/api/v1/namespaces/{self.namespace}", {"metadata": {"annotations": selector}}
        )

    async def _make_node(self) -> None:
        # The scheduler places no other pods there, because the node remains after its kubelet has stopped.
        spec = {"taints": [{"key": LABEL, "value": "true", "effect": "NoSchedule"}]}
        metadata = {"name": NODE, "labels": {LABEL: "true"}}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec}
        try:
            await self.server.request("POST", "/api/v1/nodes", node)
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
        size = {"cpu": "1000", "memory": "4000Gi", "pods": "10000"}
        status = {"capacity": size, "allocatable": size, "conditions": [{"type": "Ready", "status": "True"}]}
        await self.server.request("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status})

    async def _lease(self) -> None:
        """Send the heartbeat, without which the node controller considers the node lost."""
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        spec = {"holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": stamp}
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NODE}, "spec": spec}
        try:
            await self.server.request("PATCH", f"{leases}/{NODE}", {"spec": spec})
        except ApiError as error:
            if not error.is_missing:
                raise
            await self.server.request("POST", leases, lease)


def _trainer_has_ended(pod: Manifest) -> bool:
    containers = pod["status"].get("containerStatuses", ())
    return any("terminated" in entry["state"] for entry in containers if entry["name"] == constants.TRAINER_CONTAINER)


def _named(pod: Manifest) -> Manifest:
    return {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}


def _place(pod: Manifest) -> tuple[Stage, int, int]:
    labels = pod["metadata"]["labels"]
    index = int(pod["metadata"]["annotations"][constants.COMPLETION_INDEX])
    return Stage(labels[constants.LABEL_STAGE]), int(labels[constants.LABEL_ATTEMPT]), index


def _path(pod: Manifest) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def termination_message_of(pod: Manifest, end: PodEnd) -> str:
    """The message of a trainer: the result of its stage, or only its exit code."""
    stage = Stage(pod["metadata"]["labels"][constants.LABEL_STAGE])
    if end.code:
        return TerminationMessage(stage=stage, exit_code=end.code, error=f"exit {end.code}", rank=0).encode()
    if pod["metadata"]["annotations"][constants.COMPLETION_INDEX] != "0":
        return TerminationMessage(stage=stage, exit_code=0).encode()
    if stage is Stage.POLL:
        polled = PollResult(source_digest=end.source_digest)
        return TerminationMessage(stage=stage, exit_code=0, polled=polled).encode()
    return RESULTS[stage].encode()


RESULTS = {
    Stage.PREPARE: TerminationMessage(
        stage="prepare",
        exit_code=0,
        prepared=make_prepared(zero_stage=0, counts=SplitCounts(train=8), source_digest="first"),
    ),
    Stage.TRAIN: TerminationMessage(
        stage="train",
        exit_code=0,
        progress=Progress(stage="train", attempt=0, step=10, total_steps=10, first_step_time="2026-01-01T00:00:00Z"),
        trained=TrainResult(model_uri="s3://bucket/out/runs/r0001/model", digest="m", final_step=10),
    ),
    Stage.EVALUATE: TerminationMessage(
        stage="evaluate",
        exit_code=0,
        evaluated=EvaluateResult(
            report_uri="s3://bucket/out/runs/r0001/report.html",
            baseline={Metric.ACCURACY: 0.1},
            tuned={Metric.ACCURACY: 0.9},
        ),
    ),
}
