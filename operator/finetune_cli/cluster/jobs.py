"""Read FineTuneJobs and their children in a cluster, with the permissions of the user's kubeconfig.

`cluster_jobs` converts errors to CommandError.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from finetune_api import constants
from finetune_api.trainer_config import StorageSettings
from finetune_operator.errors import ApiError, ApiUnreachableError
from finetune_operator.manifests import Manifest

from ..exit_status import USAGE, CommandError
from .errors import command_error, is_unknown_kind, missing_job, no_connection

if TYPE_CHECKING:  # importing the client takes a second
    from finetune_operator.clusters.api_server import ApiServer

_MAX_LOG_BYTES = 64 * 2**20
"""Maximum size of one response. By default, kubelets rotate logs at 10 MiB and return the current file only."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ClusterAccess:
    """The user's options for the cluster. Absent options default to the kubeconfig."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: Path | None = None

    @property
    def is_requested(self) -> bool:
        """Whether the user requested a cluster, regardless of local runs."""
        return (self.namespace, self.context, self.kubeconfig) != (None, None, None)

    def is_configured(self, environ: Mapping[str, str] = os.environ) -> bool:
        """Whether there is a kubeconfig file or the service account of a pod."""
        if self.kubeconfig is not None:
            return self.kubeconfig.is_file()
        named = environ.get("KUBECONFIG") or "~/.kube/config"
        files = [Path(name).expanduser() for name in named.split(os.pathsep) if name]
        in_pod = "KUBERNETES_SERVICE_HOST" in environ and "KUBECONFIG" not in environ
        return in_pod or any(path.is_file() for path in files)


class ClusterJobs:
    """The FineTuneJobs of one namespace. Created by `cluster_jobs`."""

    def __init__(self, access: ClusterAccess, server: "ApiServer", servers: AsyncExitStack) -> None:
        self._access, self._server, self._servers = access, server, servers
        self._renewal = asyncio.Lock()
        self.namespace = access.namespace or server.namespace
        self.where = f"context {server.context}" if server.context else "the cluster of this pod"

    async def get(self, name: str) -> Manifest:
        """Return the FineTuneJob. Raises MissingJobError, which suggests similar names."""
        path = self._path(constants.API_VERSION, constants.PLURAL)
        _check_name(name)
        try:
            return await self._object(f"{path}/{name}")
        except ApiError as error:
            if not error.is_missing or is_unknown_kind(error):
                raise
        try:
            items = (await self._object(path))["items"]
        except ApiError:
            items = []  # the user may get a FineTuneJob but not list them
        known = sorted(item["metadata"]["name"] for item in items)
        raise missing_job(name, known, namespace=self.namespace, where=self.where)

    async def events(self, job: Manifest) -> list[Manifest] | None:
        """Return the Events of the job, or None if the user may not read them."""
        wanted = {
            "involvedObject.kind": constants.KIND,
            "involvedObject.name": job["metadata"]["name"],
            "involvedObject.uid": job["metadata"]["uid"],
        }
        selector = ",".join(f"{field}={value}" for field, value in wanted.items())
        try:
            items: list[Manifest] = (await self._object(self._path("v1", "events"), fieldSelector=selector))["items"]
        except ApiError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            return None
        return items

    async def pods(self, name: str) -> list[Manifest]:
        """Return the pods of all runs of a job."""
        return await self._children("pods", name)

    async def storage(self, name: str) -> StorageSettings | None:
        """Return the storage settings in the newest ConfigMap of a job, or None if it is missing or unreadable."""
        try:
            found = await self._children("configmaps", name)
        except ApiError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            return None
        if not found:
            return None
        newest = max(found, key=lambda child: child["metadata"]["creationTimestamp"])
        return StorageSettings.model_validate(json.loads(newest["data"][constants.CONFIG_KEY])["storage"])

    async def log(self, pod: str, *, since: str = "") -> str:
        """Return the log of the trainer container, each line with its timestamp. `since` is in RFC 3339."""
        query = {
            "container": constants.TRAINER_CONTAINER,
            "timestamps": "true",
            "limitBytes": str(_MAX_LOG_BYTES),
            **({"sinceTime": since} if since else {}),
        }
        path = f"{self._path('v1', 'pods')}/{pod}/log"
        return await self._ask(lambda server: server.text(path, **query))

    async def _children(self, plural: str, name: str) -> list[Manifest]:
        """Return objects of a core kind with the label of the job."""
        selector = f"{constants.LABEL_JOB}={name}"
        items: list[Manifest] = (await self._object(self._path("v1", plural), labelSelector=selector))["items"]
        return items

    def _path(self, api_version: str, plural: str) -> str:
        from finetune_operator.clusters.kubernetes import path_of

        return path_of(api_version, plural, self.namespace)

    async def _object(self, path: str, **query: str) -> Manifest:
        return await self._ask(lambda server: server.request("GET", path, None, **query))

    async def _ask(self, call: "Callable[[ApiServer], Awaitable[Answer]]") -> Answer:
        """Call the API server, and once more with a new token if the old one has expired.

        Tokens of cloud providers are valid for minutes only.
        """
        server = self._server
        try:
            return await call(server)
        except ApiError as error:
            if error.status != HTTPStatus.UNAUTHORIZED:
                raise
        async with self._renewal:
            if self._server is server:
                self._server = await _connect(self._access, self._servers)
        return await call(self._server)


@asynccontextmanager
async def cluster_jobs(access: ClusterAccess) -> AsyncIterator[ClusterJobs]:
    """Connect to a cluster. Raises CommandError for API errors, also for those within the block."""
    if access.namespace is not None:
        _check_name(access.namespace)
    async with AsyncExitStack() as servers:
        try:
            yield ClusterJobs(access, await _connect(access, servers), servers)
        except (ApiError, ApiUnreachableError) as error:
            raise command_error(error) from None


async def _connect(access: ClusterAccess, servers: AsyncExitStack) -> "ApiServer":
    if not access.is_configured():
        raise no_connection(f"{access.kubeconfig}: no such file" if access.kubeconfig else "there is no kubeconfig")
    from kubernetes.aio.config import ConfigException
    from yaml import YAMLError

    from finetune_operator.clusters.api_server import ApiServer

    try:
        server = await ApiServer.connect(access.kubeconfig, context=access.context)
    except (ConfigException, YAMLError, OSError) as error:
        raise no_connection(" ".join(str(error).split())) from None
    except (TypeError, AttributeError):  # YAML of another structure
        raise no_connection("the kubeconfig is invalid") from None
    servers.push_async_callback(server.close)
    return server


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise CommandError(f"{name!r} must be a Kubernetes name: a-z, 0-9, '-' and '.'", USAGE)
