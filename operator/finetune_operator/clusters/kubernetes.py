"""Cluster with an API server: live reads, and writes with preconditions. Nothing is cached."""

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from finetune_api import constants
from finetune_api.progress import FOR_STATUS, Progress

from ..errors import ApiError, ClusterConflictError, StaleError
from ..manifests import JobKey, Manifest, controller_uid
from ..names import service_name
from .api_server import ApiServer
from .pod_progress import get_progress

METADATA_OF_ALL = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
"""Media type for lists of metadata."""
_METADATA_ONLY = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
"""Media type for the metadata of one object: of a created one, whose content is known, or of one whose content must not
be read."""
_PLURALS = {
    "ConfigMap": "configmaps",
    "Service": "services",
    "Job": "jobs",
    "Event": "events",
    "NetworkPolicy": "networkpolicies",
    "Secret": "secrets",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "PodGroup": "podgroups",
}
_SPEC_HASH = constants.ANNOTATION_ATTEMPT_SPEC_HASH


_KUEUE_VERSIONS = ("v1beta2", "v1beta1")
"""Versions of Kueue's API, newest first. A missing version is answered with 404."""


def path_of(api_version: str, plural: str, namespace: str, name: str = "") -> str:
    """`/apis/batch/v1/namespaces/ml/jobs/example`; the collection if there is no name, the cluster if there is no
    namespace."""
    root = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
    scope = f"{root}/namespaces/{namespace}" if namespace else root
    return f"{scope}/{plural}" + (f"/{name}" if name else "")


class KubernetesCluster:
    """FineTuneJobs and their children in a Kubernetes cluster."""

    def __init__(self, server: ApiServer, wrote: Callable[[JobKey, Manifest], None] = lambda *_: None) -> None:
        """`wrote` is called with the object that each write of status returns."""
        self._server = server
        self._wrote = wrote

    # ---- reads -----------------------------------------------------------------------------------------------------

    async def get(self, key: JobKey) -> Manifest | None:
        """Return the FineTuneJob, or None."""
        return await self.get_live(key)

    async def get_live(self, key: JobKey) -> Manifest | None:
        """Return the FineTuneJob from the API server, or None."""
        return await self._get(_job_path(key))

    async def list_jobs(self, key: JobKey, awaited: Sequence[str]) -> list[Manifest]:
        """Return all Jobs with the label of the FineTuneJob. Awaited Jobs that are not listed are read by name."""
        found = await self._list("batch/v1", "jobs", key)
        missing = set(awaited) - {job["metadata"]["name"] for job in found}
        read = [await self._get(path_of("batch/v1", "jobs", key.namespace, name)) for name in sorted(missing)]
        return found + [job for job in read if job is not None]

    async def list_pods(self, key: JobKey, jobs: Sequence[str]) -> list[Manifest]:
        """Return all pods of these Jobs."""
        return await self._list("v1", "pods", key, f",{constants.LABEL_JOB_NAME} in ({','.join(jobs)})")

    async def read_config(self, key: JobKey, child: str) -> str | None:
        """Return the configuration from the ConfigMap of the attempt."""
        found = await self._get(path_of("v1", "configmaps", key.namespace, child))
        return None if found is None else str((found.get("data") or {}).get(constants.CONFIG_KEY, ""))

    async def read_labels(self, key: JobKey, kind: str, name: str) -> Mapping[str, str] | None:
        """Return the labels of an object; None if it does not exist. The response has only its metadata."""
        found = await self._get(path_of("v1", _PLURALS[kind], key.namespace, name), accept=_METADATA_ONLY)
        return None if found is None else found["metadata"].get("labels") or {}

    async def list_warnings(self, key: JobKey, names: tuple[str, ...]) -> list[Manifest]:
        """Return Warning Events for these objects, oldest first."""
        path = path_of("v1", "events", key.namespace)
        found: list[Manifest] = []
        for name in names:
            selector = f"type=Warning,involvedObject.name={name}"
            found += (await self._server.request("GET", path, fieldSelector=selector))["items"]
        return sorted(found, key=lambda event: event.get("lastTimestamp") or event["metadata"]["creationTimestamp"])

    async def read_queue_reason(self, key: JobKey, uid: str) -> str:
        """Return the message of Kueue's Workload for the Job with this UID; empty without one, or without Kueue."""
        for version in _KUEUE_VERSIONS:
            path = path_of(f"kueue.x-k8s.io/{version}", "workloads", key.namespace)
            try:
                found = await self._server.request("GET", path, labelSelector=f"kueue.x-k8s.io/job-uid={uid}")
            except ApiError as error:
                if error.is_missing or error.status == HTTPStatus.FORBIDDEN:
                    continue
                raise
            return next(filter(None, map(_queue_reason, found["items"])), "")
        return ""

    async def list_versions(self, namespaces: tuple[str, ...]) -> dict[JobKey, str]:
        """Return the resource versions of all FineTuneJobs. No namespaces: the whole cluster."""
        found = {}
        for path in (path_of(constants.API_VERSION, constants.PLURAL, name) for name in namespaces or ("",)):
            items = (await self._server.request("GET", path, accept=METADATA_OF_ALL))["items"]
            for item in items or ():  # null if there are none
                metadata = item["metadata"]
                found[JobKey(metadata["namespace"], metadata["name"])] = metadata["resourceVersion"]
        return found

    async def read_progress(self, pod: Manifest) -> Progress | None:
        """Return the response to `GET /progress`; None without a complete response."""
        address = _address(pod)
        return await get_progress(address, constants.PROGRESS_PORT, FOR_STATUS) if address else None

    async def serves_pod_groups(self) -> bool:
        """Return whether this version of PodGroups is served. It is read for each attempt that would use it: an
        administrator can enable it at any time."""
        try:
            found = await self._server.request("GET", f"/apis/{constants.POD_GROUP_API}")
        except ApiError as error:
            if error.is_missing or error.status == HTTPStatus.FORBIDDEN:
                return False
            raise
        return any(resource["name"] == "podgroups" for resource in found["resources"])

    async def _get(self, path: str, *, accept: str = "application/json") -> Manifest | None:
        try:
            return await self._server.request("GET", path, accept=accept)
        except ApiError as error:
            if error.is_missing:
                return None
            raise

    async def _list(self, api_version: str, plural: str, key: JobKey, more: str = "") -> list[Manifest]:
        path = path_of(api_version, plural, key.namespace)
        answer = await self._server.request("GET", path, labelSelector=f"{constants.LABEL_JOB}={key.name}{more}")
        items: list[Manifest] = answer["items"]
        return items

    # ---- writes ----------------------------------------------------------------------------------------------------

    async def create_child(self, manifest: Manifest) -> None:
        """Create a child. Raises ClusterConflictError if it exists with another owner.

        A ConfigMap or PodGroup of a Job that does not exist is replaced if its content differs. Raises StaleError if it
        has changed since, and ApiError if it is still being deleted.
        """
        metadata, plural = manifest["metadata"], _PLURALS[manifest["kind"]]
        path = path_of(manifest["apiVersion"], plural, metadata["namespace"])
        try:
            # Without strict validation, the API server drops unknown fields, for example a misspelt one in the affinity
            # of a job.
            await self._server.request("POST", path, manifest, accept=_METADATA_ONLY, fieldValidation="Strict")
        except ApiError as error:
            if not error.exists:
                raise
            existing = await self._server.request("GET", f"{path}/{metadata['name']}")
            if controller_uid(existing) != controller_uid(manifest):
                what = f"{manifest['kind']} {metadata['namespace']}/{metadata['name']}"
                raise ClusterConflictError(f"{what} exists and belongs to another owner; delete it") from None
            if _differs(existing, manifest):
                await self._replace_unused(path, existing, manifest)

    async def _replace_unused(self, path: str, existing: Manifest, manifest: Manifest) -> None:
        """Replace an object that was created before the cluster refused the Job of the same name. It is immutable, or
        has fields that are.

        If the Job exists, its pods may have used the object, which is kept.
        """
        metadata = existing["metadata"]
        if await self._get(path_of("batch/v1", "jobs", metadata["namespace"], metadata["name"])) is not None:
            return
        preconditions = {name: metadata[name] for name in ("uid", "resourceVersion")}
        await self._server.request("DELETE", f"{path}/{metadata['name']}", {"preconditions": preconditions})
        await self._server.request("POST", path, manifest, accept=_METADATA_ONLY)

    async def delete_job(self, key: JobKey, name: str, uid: str, *, has_gang: bool = False) -> None:
        """Delete a Job in the foreground: it is listed until its last pod has ended.

        The Job is deleted last, so that an interrupted deletion is found and repeated.
        """
        for plural, child in (("services", service_name(name)), ("configmaps", name)):
            await self._delete(path_of("v1", plural, key.namespace, child), {})
        if has_gang:
            await self._delete_pod_group(key, name)
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Foreground"}
        await self._delete(path_of("batch/v1", "jobs", key.namespace, name), body)

    async def _delete_pod_group(self, key: JobKey, name: str) -> None:
        """Delete a PodGroup. Kubernetes keeps it until its pods have ended.

        Without the permission, which an installation with `pods.gangScheduling: false` does not have, it is kept until
        the FineTuneJob is deleted: an attempt that was started before must still be stopped.
        """
        try:
            await self._delete(path_of(constants.POD_GROUP_API, "podgroups", key.namespace, name), {})
        except ApiError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise

    async def update_status(self, manifest: Manifest, status: Manifest) -> None:
        """Replace the status of the object that was read. Raises StaleError if it has changed since."""
        key = JobKey(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        written = await self._server.request("PUT", f"{_job_path(key)}/status", {**manifest, "status": status})
        self._wrote(key, written)

    async def create_event(self, event: Manifest) -> None:
        """Create an Event. Does nothing if it exists: Events with equal names have equal content."""
        try:
            path = path_of("v1", "events", event["metadata"]["namespace"])
            await self._server.request("POST", path, event, accept=_METADATA_ONLY)
        except ApiError as error:
            if not error.exists:
                raise

    async def _delete(self, path: str, body: Manifest) -> None:
        """Delete an object. Does nothing if it does not exist or has another UID."""
        try:
            await self._server.request("DELETE", path, body)
        except StaleError:
            return
        except ApiError as error:
            if not error.is_missing:
                raise


def _job_path(key: JobKey) -> str:
    return path_of(constants.API_VERSION, constants.PLURAL, key.namespace, key.name)


def _queue_reason(workload: Manifest) -> str:
    """Return why Kueue does not admit a Workload: it is deactivated, or the message of the condition that is not True
    yet, which Kueue updates with every try to admit it."""
    conditions = {entry["type"]: entry for entry in (workload.get("status") or {}).get("conditions") or ()}
    if (workload.get("spec") or {}).get("active") is False:
        # Kueue does not try to admit it, so the other conditions are those of the last try.
        evicted = conditions.get("Evicted", {})
        reported = str(evicted.get("message", "")) if evicted.get("status") == "True" else ""
        return f"{reported or 'The workload is deactivated'} (spec.active of Workload {workload['metadata']['name']})"
    waiting = (conditions.get(kind, {}) for kind in ("QuotaReserved", "Admitted"))
    return next((str(one.get("message", "")) for one in waiting if one.get("status") == "False"), "")


def _differs(existing: Manifest, manifest: Manifest) -> bool:
    """Return whether a child must be replaced: it has other content than it would be created with, or is being deleted.

    The API server adds fields to the spec of a PodGroup, so specs are compared by the hash in its annotations.
    """
    if manifest["kind"] == "PodGroup":
        before, after = (one["metadata"].get("annotations", {}).get(_SPEC_HASH) for one in (existing, manifest))
        return before != after or "deletionTimestamp" in existing["metadata"]
    return bool(existing.get("data") != manifest.get("data"))


def _address(pod: Manifest) -> str | None:
    status = pod.get("status", {})
    address: str | None = status.get("podIP") if status.get("phase") == "Running" else None
    return address
