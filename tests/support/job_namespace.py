"""A namespace of the test cluster with a simulated kubelet and FineTuneJobs."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from factories import make_job
from finetune_api.constants import CONFIG_KEY, Phase, Stage
from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import Status
from finetune_operator.clusters.api_server import ApiServer
from finetune_operator.errors import StaleError
from finetune_operator.manifests import JobKey, Manifest
from reconciled_job import Fault, FaultyServer, ReconciledJob
from simulated_kubelet import FOREVER, PodEnd, Script, SimulatedKubelet, succeed

JOBS = "/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs"


class JobNamespace:
    """One namespace."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server, self.namespace = server, namespace
        self.kubelet = SimulatedKubelet(server, namespace)

    async def create(
        self, name: str, script: Script = succeed, fault: Fault | None = None, **spec: Any
    ) -> ReconciledJob:
        """Create a job whose pods end according to the script; its operator gets the fault."""
        self.kubelet.scripts[name] = script
        job = make_job(name, namespace=self.namespace, **{"workers": {"nodes": 2}, **spec})
        await self.server.request("POST", JOBS.format(namespace=self.namespace), job)
        return self.reconciled(name, fault)

    def reconciled(self, name: str, fault: Fault | None = None) -> ReconciledJob:
        """Return the operator of an existing job."""
        return ReconciledJob(FaultyServer(self.server, fault), JobKey(self.namespace, name))

    async def jobs(self) -> dict[str, Any]:
        """Name -> spec of every `batch/v1` Job of the namespace."""
        found = await self.server.request("GET", f"/apis/batch/v1/namespaces/{self.namespace}/jobs")
        return {job["metadata"]["name"]: job["spec"] for job in found["items"]}

    async def config(self, child: str) -> TrainerConfig:
        """The configuration of an attempt."""
        found = await self.server.request("GET", f"/api/v1/namespaces/{self.namespace}/configmaps/{child}")
        return TrainerConfig.model_validate_json(found["data"][CONFIG_KEY])

    async def read(self, name: str) -> Manifest:
        """Return the current state of a job."""
        found: Manifest = await self.server.request("GET", f"{JOBS.format(namespace=self.namespace)}/{name}")
        return found

    async def change(self, name: str, **spec: Any) -> None:
        """Edit a job like `kubectl edit`, and retry on conflicts with the operator."""
        path = f"{JOBS.format(namespace=self.namespace)}/{name}"
        while True:
            job = await self.read(name)
            for block, value in spec.items():
                job["spec"][block] = {**job["spec"].get(block, {}), **value} if isinstance(value, dict) else value
            try:
                await self.server.request("PUT", path, job)
            except StaleError:
                continue
            return

    async def remove(self, name: str) -> None:
        """`kubectl delete` without waiting."""
        path = f"{JOBS.format(namespace=self.namespace)}/{name}"
        await self.server.request("DELETE", path, {"propagationPolicy": "Background"})

    async def event_reasons(self, name: str) -> list[str]:
        """Reasons of the Events on a job."""
        selector = f"involvedObject.name={name},involvedObject.kind=FineTuneJob"
        path = f"/api/v1/namespaces/{self.namespace}/events"
        return [event["reason"] for event in (await self.server.request("GET", path, fieldSelector=selector))["items"]]


def run_scenario(admin: Path, namespace: str, scenario: Callable[[JobNamespace], Awaitable[None]]) -> None:
    """Run a scenario together with the simulated kubelet."""

    async def run() -> None:
        server = await ApiServer.connect(admin)
        world = JobNamespace(server, namespace)
        kubelet = asyncio.create_task(world.kubelet.run())
        try:
            await scenario(world)
        finally:
            world.kubelet.stopping = True
            try:
                await kubelet
            finally:
                await server.close()

    asyncio.run(run())


def in_phase(*phases: Phase) -> Callable[[Status], bool]:
    return lambda status: status.phase in phases


def is_training(status: Status) -> bool:
    """Whether the first training attempt is running according to status."""
    return status.phase is Phase.TRAINING and status.run.attempts[-1].stage is Stage.TRAIN


def training_ends(*ends: PodEnd) -> Script:
    """Return a script with the ends of consecutive training attempts; all other pods succeed."""

    def script(stage: Stage, attempt: int, index: int) -> PodEnd:
        if stage is not Stage.TRAIN or attempt > len(ends):
            return PodEnd()
        return ends[attempt - 1] if index == 1 or ends[attempt - 1] == FOREVER else FOREVER

    return script
