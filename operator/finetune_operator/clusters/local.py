"""Cluster on one machine: pods are processes, objects are files. Jobs end as with the Job controller of Kubernetes."""

import asyncio
import os
import signal
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from finetune_api import constants
from finetune_api.clock import rfc3339, utc_now
from finetune_api.constants import Env, Phase
from finetune_api.progress import FOR_STATUS, Progress
from finetune_api.v1alpha1.status import in_current_shape

from ..errors import ClusterConflictError
from ..manifests import JobKey, Manifest
from ..names import service_name
from .local_objects import ObjectFolder
from .local_pod import LocalPod, PodPlace, pod_manifest
from .local_ports import free_ports
from .pod_progress import get_progress

_HOST = "127.0.0.1"
"""Address of every local pod."""


class LocalCluster:
    """Runs one FineTuneJob at a time. `on_change` is called when a child changes."""

    def __init__(
        self, work_dir: Path, key: JobKey, *, environ: Mapping[str, str], on_change: Callable[[], None]
    ) -> None:
        self._objects = ObjectFolder(work_dir, key)
        self._namespace = key.namespace
        self._environ = {**environ, Env.CACHE: str(work_dir / "cache")}
        self._on_change = on_change
        self._pods: dict[str, list[LocalPod]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._grace: set[asyncio.Task[None]] = set()
        self._mark_lost()

    # ---- the Cluster protocol --------------------------------------------------------------------------------------

    async def get(self, key: JobKey) -> Manifest | None:
        """Return the FineTuneJob, or None."""
        return self._objects.read(constants.KIND, key.name)

    async def list_jobs(self, key: JobKey, awaited: Sequence[str] = ()) -> list[Manifest]:
        """Return its Jobs, running and ended."""
        return self._objects.list("Job")

    async def list_pods(self, key: JobKey, jobs: Sequence[str]) -> list[Manifest]:
        """Return the pods of these Jobs, running and ended."""
        running = {pod.name: pod.manifest() for pods in self._pods.values() for pod in pods}
        stored = {manifest["metadata"]["name"]: manifest for manifest in self._objects.list("Pod")}
        found = {**stored, **running}.values()
        return [pod for pod in found if pod["metadata"]["labels"][constants.LABEL_JOB_NAME] in jobs]

    async def serves_pod_groups(self) -> bool:
        """Return False: there is no scheduler."""
        return False

    async def create_child(self, manifest: Manifest) -> None:
        """Create a child. The pods of a Job start immediately.

        A ConfigMap of a Job that does not exist is replaced if its content differs.
        """
        existing = self._objects.read(manifest["kind"], manifest["metadata"]["name"])
        if existing is not None:
            if existing["metadata"]["ownerReferences"] != manifest["metadata"]["ownerReferences"]:
                what = f"{manifest['kind']} {manifest['metadata']['name']}"
                raise ClusterConflictError(f"{what} exists and belongs to another owner; delete it")
            has_job = self._objects.read("Job", manifest["metadata"]["name"]) is not None
            if has_job or existing.get("data") == manifest.get("data"):
                return
        metadata = {**manifest["metadata"], "uid": str(uuid.uuid4()), "creationTimestamp": rfc3339(utc_now())}
        stored = {**manifest, "metadata": metadata}
        self._objects.write(stored)
        if manifest["kind"] == "Job":
            self._tasks[metadata["name"]] = asyncio.create_task(self._run_job(stored))

    async def delete_job(self, key: JobKey, name: str, uid: str, *, has_gang: bool = False) -> None:
        """Send SIGTERM to the pods. The objects are removed when the last pod has ended."""
        job = self._objects.read("Job", name)
        if job is None or job["metadata"]["uid"] != uid:
            return
        job["metadata"]["deletionTimestamp"] = rfc3339(utc_now())
        self._objects.write(job)
        if name in self._tasks:
            self._terminate(job)
        else:
            self._remove(job)

    async def read_config(self, key: JobKey, child: str) -> str | None:
        """Return the configuration from the ConfigMap of the attempt."""
        found = self._objects.read("ConfigMap", child)
        return None if found is None else str(found["data"][constants.CONFIG_KEY])

    async def read_labels(self, key: JobKey, kind: str, name: str) -> Mapping[str, str] | None:
        """Return None: local runs have no Secrets and claims, and no policy that requires labels."""
        return None

    async def list_warnings(self, key: JobKey, names: tuple[str, ...]) -> list[Manifest]:
        """Return no Events: there is no scheduler and no kubelet."""
        return []

    async def read_queue_reason(self, key: JobKey, uid: str) -> str:
        """Return nothing: there are no queues."""
        return ""

    async def update_status(self, manifest: Manifest, status: Manifest) -> None:
        """Replace the status. The next reconcile handles a spec that has changed since it was read."""
        job = self._objects.read(constants.KIND, manifest["metadata"]["name"])
        if job is not None and job["metadata"]["uid"] == manifest["metadata"]["uid"]:
            self._objects.write({**job, "status": status})

    async def create_event(self, event: Manifest) -> None:
        """Do nothing: the display of the command reports the same transitions."""

    async def read_progress(self, pod: Manifest) -> Progress | None:
        """Return the response of a pod to `GET /progress`, for the status."""
        name = pod["metadata"]["name"]
        running = next(
            (one for pods in self._pods.values() for one in pods if one.name == name and not one.ended), None
        )
        return None if running is None else await get_progress(_HOST, running.progress_port, FOR_STATUS)

    async def peek_progress(self, job_name: str) -> Progress | None:
        """Return the progress for a display, without effect on the shutdown of the pod."""
        pods = self._pods.get(job_name)
        return await get_progress(_HOST, pods[0].progress_port) if pods and not pods[0].ended else None

    # ---- operations of the user --------------------------------------------------------------------------------

    def put(self, manifest: Manifest) -> None:
        """Create or update a FineTuneJob: keeps UID and status, and increments the generation if the spec changed.

        A failed run is retried even if the spec is unchanged, because the cause may have been corrected elsewhere.
        """
        metadata = {"namespace": self._namespace, **manifest["metadata"]}
        old = self._objects.read(constants.KIND, metadata["name"])
        if old is None:
            metadata = {**metadata, "uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": rfc3339(utc_now())}
            self._objects.write({**manifest, "metadata": metadata})
            return
        kept = {name: old["metadata"][name] for name in ("uid", "creationTimestamp")}
        generation = old["metadata"]["generation"] + (old["spec"] != manifest["spec"])
        status = dict(in_current_shape(old.get("status", {})))
        if status.get("phase") == Phase.FAILED:
            status["run"] = {**status.get("run", {}), "failedSpecHash": ""}
        self._objects.write({**manifest, "metadata": {**metadata, **kept, "generation": generation}, "status": status})

    def kill_pod(self, job_name: str, index: int) -> None:
        """Kill the first process of a pod with SIGKILL, like the loss of a node or the out-of-memory killer."""
        self._pods[job_name][index].signal(signal.SIGKILL)

    async def close(self) -> None:
        """Kill all running pods."""
        for pods in self._pods.values():
            for pod in pods:
                pod.signal(signal.SIGKILL)
        await asyncio.gather(*self._tasks.values(), *self._grace)

    # ---- the Job controller and the kubelet ------------------------------------------------------------------------

    async def _run_job(self, job: Manifest) -> None:
        """Run a Job with backoffLimit 0: the first failed pod fails the Job after the other pods were terminated."""
        name = job["metadata"]["name"]
        config = self._objects.read("ConfigMap", name)
        assert config is not None, f"{name}: the ConfigMap is created before the Job"
        rendezvous, *progress = free_ports(1 + job["spec"]["parallelism"])
        self._pods[name] = [
            LocalPod(job, index, config["data"], self._place(job, index, rendezvous, port))
            for index, port in enumerate(progress)
        ]
        waiting = {asyncio.create_task(pod.run()) for pod in self._pods[name]}
        has_failed = False
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not has_failed and any(task.result() for task in done):
                has_failed = True
                self._terminate(job)
        self._finish(name, has_failed)

    def _finish(self, name: str, has_failed: bool) -> None:
        for pod in self._pods[name]:
            self._objects.write(pod.manifest())
        del self._pods[name], self._tasks[name]
        job = self._objects.read("Job", name)
        assert job is not None, f"{name}: a Job is removed only after its pods"
        if "deletionTimestamp" in job["metadata"]:
            self._remove(job)
        else:
            self._objects.write(_ended(job, "Failed" if has_failed else "Complete"))
        self._on_change()

    def _terminate(self, job: Manifest) -> None:
        """Send SIGTERM, and SIGKILL after the grace period."""
        pods = self._pods[job["metadata"]["name"]]
        for pod in pods:
            pod.signal(signal.SIGTERM)
        grace = job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        task = asyncio.create_task(self._kill_late(pods, grace))
        self._grace.add(task)
        task.add_done_callback(self._grace.discard)

    async def _kill_late(self, pods: list[LocalPod], grace: float) -> None:
        await asyncio.wait([asyncio.create_task(pod.wait()) for pod in pods], timeout=grace)
        for pod in pods:
            pod.signal(signal.SIGKILL)

    def _place(self, job: Manifest, index: int, rendezvous: int, progress: int) -> PodPlace:
        name = f"{job['metadata']['name']}-{index}"
        threads = max(1, (os.cpu_count() or 1) // int(job["spec"]["parallelism"]))
        return PodPlace(
            folder=self._objects.root / "pods" / name,
            log=self._objects.root / "logs" / f"{name}.log",
            environ={"OMP_NUM_THREADS": str(threads), **self._environ},
            rendezvous_port=rendezvous,
            progress_port=progress,
        )

    def _remove(self, job: Manifest) -> None:
        name = job["metadata"]["name"]
        for index in range(job["spec"]["parallelism"]):
            self._objects.remove("Pod", f"{name}-{index}")
        for kind, child in (("ConfigMap", name), ("Service", service_name(name)), ("Job", name)):
            self._objects.remove(kind, child)

    def _mark_lost(self) -> None:
        """Mark Jobs that ran in an earlier process as failed by the loss of a node: their pods ended with that
        process."""
        lost = {"type": "DisruptionTarget", "status": "True", "reason": "MachineLost"}
        for job in self._objects.list("Job"):
            if "deletionTimestamp" in job["metadata"]:
                self._remove(job)
            elif not job.get("status", {}).get("conditions"):
                state = {"terminated": {"exitCode": 137, "finishedAt": rfc3339(utc_now()), "message": ""}}
                for index in range(job["spec"]["parallelism"]):
                    self._objects.write(pod_manifest(job, index, "Failed", state, (lost,)))
                self._objects.write(_ended(job, "Failed"))


def _ended(job: Manifest, kind: str) -> Manifest:
    condition = {"type": kind, "status": "True", "lastTransitionTime": rfc3339(utc_now())}
    return {**job, "status": {"conditions": [condition]}}
