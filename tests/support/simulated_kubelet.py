"""A kubelet that runs nothing: it places pods on a node that is only an object, and ends them as a test says.

API server, Job controller and scheduler around it are the real ones. What it answers for a pod is what a real kubelet
answers: phase, container state, exit code, termination message, and after a deletion an end within the grace period.
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
from finetune_api.progress import EvaluateResult, Progress, TerminationMessage, TrainResult
from finetune_api.trainer_config import SplitCounts
from finetune_api.v1alpha1 import Metric
from finetune_operator.clusters.api_server import ApiServer
from finetune_operator.errors import ApiError

NODE = "simulated"
LABEL = "finetune.test/simulated"
"""Of the node: real pods are kept away by it as a taint, pods of a simulated kubelet's namespace are kept there."""
_LOOK_SECONDS = 0.2
_LEASE_SECONDS = 2.0

Manifest = dict[str, Any]


@dataclass(frozen=True)
class End:
    """How a pod ends."""

    code: int = 0
    after: float = 0.0
    """Seconds after it has started; infinite: only when it is told to."""
    message: str | None = None
    """Termination message; None: what a trainer leaves that has done its work."""
    disrupted: bool = False


FOREVER = End(after=float("inf"))
Script = Callable[[Stage, int, int], End]
"""(stage, attempt, index of the pod) -> its end."""
Room = Callable[[Stage, int, int], bool]
"""(stage, attempt, index of the pod) -> whether there is a node for it."""


def done(_stage: Stage, _attempt: int, _index: int) -> End:
    """Everything goes well."""
    return End()


@dataclass
class SimulatedKubelet:
    """Looks after the pods of one namespace until it is told to stop.

    Not cancelled: a TLS connection that is cut in the middle of a call outlives the event loop.
    """

    server: ApiServer
    namespace: str
    scripts: dict[str, Script] = field(default_factory=dict)
    """By name of the FineTuneJob; others get `done`."""
    rooms: dict[str, Room] = field(default_factory=dict)
    """By name of the FineTuneJob; there is room for all pods of others."""
    stopped_code: int = 75
    stop_seconds: float = 0.0
    """How long a pod goes on after it was told to end: it saves."""
    started: dict[str, float] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    """When pods were told to end."""
    dead: bool = False
    """True: the node does not answer any more, and its pods stay as they are."""
    stopping: bool = False
    stuck: str = ""
    """What it says of pods that it cannot start; empty: it starts them."""

    async def run(self) -> None:
        await self._claim_namespace()
        await self._make_node()
        loop, leased = asyncio.get_running_loop(), float("-inf")
        while not self.stopping:
            if not self.dead:
                if loop.time() >= leased + _LEASE_SECONDS:
                    leased = loop.time()
                    await self._lease()
                pods = await self.server.request("GET", f"/api/v1/namespaces/{self.namespace}/pods")
                await asyncio.gather(*(self._look_after(pod) for pod in pods["items"]))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look_after(self, pod: Manifest) -> None:
        try:
            await self._step(pod)
        except ApiError as error:
            # Forbidden: nothing is made any more in a namespace that is being deleted, not even a binding.
            is_ending = error.status == HTTPStatus.FORBIDDEN and "being terminated" in str(error)
            if not is_ending and error.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
                raise

    async def _step(self, pod: Manifest) -> None:
        uid, phase = pod["metadata"]["uid"], pod["status"].get("phase", "Pending")
        end = self._end(pod)
        now = asyncio.get_running_loop().time()
        if "deletionTimestamp" in pod["metadata"]:
            if phase == "Running" and now < self.told.setdefault(uid, now) + self.stop_seconds:
                return
            if phase in {"Pending", "Running"}:
                await self._patch(pod, "Failed", self.stopped_code, "")
            await self.server.request("DELETE", _path(pod), {"gracePeriodSeconds": 0})
        elif phase == "Pending" and not pod["spec"].get("nodeName"):
            if not self._has_room(pod):
                return
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod["metadata"]["name"]}}
            target = {"target": {"apiVersion": "v1", "kind": "Node", "name": NODE}}
            await self.server.request("POST", f"{_path(pod)}/binding", binding | target)
        elif phase == "Pending" and self.stuck:
            await self._complain(pod)
        elif phase == "Pending":
            self.started[uid] = now
            await self._patch(pod, "Running", None, "")
        elif phase == "Running" and now >= self.started.setdefault(uid, now) + end.after:
            if end.disrupted:
                await self._disrupt(pod)
            message = last_word(pod, end) if end.message is None else end.message
            await self._patch(pod, "Failed" if end.code else "Succeeded", end.code, message)

    def _end(self, pod: Manifest) -> End:
        return self.scripts.get(pod["metadata"]["labels"][constants.LABEL_JOB], done)(*_place(pod))

    def _has_room(self, pod: Manifest) -> bool:
        room = self.rooms.get(pod["metadata"]["labels"][constants.LABEL_JOB])
        return room is None or room(*_place(pod))

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
        ready = {"type": "Ready", "status": "True" if code is None else "False"}
        status = {"phase": phase, "containerStatuses": [container], "conditions": [ready], "startTime": stamp}
        await self.server.request("PATCH", f"{_path(pod)}/status", {"status": status})

    async def _complain(self, pod: Manifest) -> None:
        """Once for each pod; and whenever the scheduler's word that it has no place comes after it was given one."""
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
        told = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "evicted"}
        # Without a time it would be taken for an old one, and taken back, by the controller for such conditions.
        told["lastTransitionTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await self.server.request("PATCH", f"{_path(pod)}/status", {"status": {"conditions": [told]}})

    async def _claim_namespace(self) -> None:
        """Its pods are not for the real nodes that earlier tests may have started."""
        selector = {"scheduler.alpha.kubernetes.io/node-selector": f"{LABEL}=true"}
        await self.server.request(
            "PATCH", f"/api/v1/namespaces/{self.namespace}", {"metadata": {"annotations": selector}}
        )

    async def _make_node(self) -> None:
        # The scheduler places nothing there: the node is there for longer than anybody looks after it.
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
        """The heartbeat without which the node controller takes the node for lost."""
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


def _named(pod: Manifest) -> Manifest:
    return {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}


def _place(pod: Manifest) -> tuple[Stage, int, int]:
    labels = pod["metadata"]["labels"]
    index = int(pod["metadata"]["annotations"][constants.COMPLETION_INDEX])
    return Stage(labels[constants.LABEL_STAGE]), int(labels[constants.LABEL_ATTEMPT]), index


def _path(pod: Manifest) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def last_word(pod: Manifest, end: End) -> str:
    """What a trainer leaves: its stage's result, or nothing but its exit code."""
    stage = Stage(pod["metadata"]["labels"][constants.LABEL_STAGE])
    if end.code:
        return TerminationMessage(stage=stage, exit_code=end.code, error=f"exit {end.code}", rank=0).encode()
    if pod["metadata"]["annotations"][constants.COMPLETION_INDEX] != "0":
        return TerminationMessage(stage=stage, exit_code=0).encode()
    return RESULTS[stage].encode()


RESULTS = {
    Stage.PREPARE: TerminationMessage(
        stage="prepare",
        exit_code=0,
        prepared=make_prepared(zero_stage=0, counts=SplitCounts(train=8)),
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
