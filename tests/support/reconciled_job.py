"""Reconciles of the operator against a real API server, run by a test: one job, one loop, injected faults."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from finetune_api.v1alpha1 import Status
from finetune_operator.clusters.api_server import ApiServer
from finetune_operator.clusters.kubernetes import KubernetesCluster
from finetune_operator.errors import ApiError, ApiUnreachableError
from finetune_operator.manifests import JobKey, Manifest
from finetune_operator.reconcile import ReconcileResult, reconcile
from finetune_operator.settings import OperatorSettings

RECORDED: dict[tuple[Any, ...], Manifest] = {}
"""FineTuneJobs as the operator has written them, one for each combination of phase and conditions."""
MUTATING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
SETTINGS = OperatorSettings(progress_seconds=0.1)
_PASS_SECONDS, _LONGEST_PASS_SECONDS = 0.1, 0.5
"""Time between two passes: after one that has written something, and at most, while nothing happens."""


class CrashError(BaseException):
    """The operator crashes at this point. Not an Exception, so that nothing in the operator can catch it."""


@dataclass(frozen=True)
class Fault:
    """What happens to one mutating request, or to every second one of each object."""

    kind: str
    """`crash` or `timeout`, `before` or `after` the server executes it, or the status of the response."""
    at: int | None = None
    """Index of the request, from 0. None: every second one of each object, from the one with the index `first`."""
    first: int = 0

    def applies(self, index: int, index_of_object: int) -> bool:
        """Whether a request has the fault: its index among all requests, and among those of the same object."""
        return index_of_object % 2 == self.first if self.at is None else index == self.at


def record(job: Manifest) -> None:
    """Keep an object if none with these conditions is known."""
    status, generation = job["status"], job["metadata"]["generation"]
    conditions = ((one["type"], one["status"], one["reason"]) for one in status["conditions"])
    RECORDED.setdefault((status["phase"], status["observedGeneration"] == generation, *conditions), job)


@dataclass
class FaultyServer:
    """An ApiServer, some of whose mutating requests fail."""

    server: ApiServer
    fault: Fault | None = None
    calls: list[str] = field(default_factory=list)
    """Every mutating request: method, path and, if it creates an object, the name of the object."""
    failed: list[str] = field(default_factory=list)
    """Those of them that had the fault."""

    async def request(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        if method not in MUTATING:
            return await self.server.request(method, path, body, **options)
        call = f"{method} {path} {_object(body) if method == 'POST' else ''}".strip()
        is_faulty = self.fault is not None and self.fault.applies(len(self.calls), self.calls.count(call))
        self.calls.append(call)
        if self.fault is None or not is_faulty:
            response = await self.server.request(method, path, body, **options)
            if method == "PUT" and path.endswith("/status"):
                record(response)
            return response
        self.failed.append(call)
        return await self._fail(self.fault.kind, method, path, body, options)

    async def _fail(self, kind: str, method: str, path: str, body: Any, options: dict[str, Any]) -> Any:
        if kind.endswith("after"):
            await self.server.request(method, path, body, **options)
        if kind.startswith("crash"):
            raise CrashError
        if kind.startswith("timeout"):
            raise ApiUnreachableError(f"{method} {path}: no answer")
        raise ApiError(int(kind), "Injected", f"status {kind}, as requested by the test", retry_after=0.1)


def _object(body: Manifest) -> str:
    """Name of an object that is created. That of an Event depends on the job's UID, its reason does not."""
    return str(body["reason"] if body["kind"] == "Event" else body["metadata"]["name"])


@dataclass
class ReconciledJob:
    """One job under an operator that is restarted after each crash."""

    server: FaultyServer
    key: JobKey
    settings: OperatorSettings = SETTINGS
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    """The operator's client, whose requests may fail."""
    crashes: int = 0
    last: ReconcileResult | None = None

    async def until(self, holds: Callable[[Status], bool], *, within: float = 60.0) -> Status:
        """Reconcile repeatedly, as watches and a queue would: seldom while nothing happens."""
        pause = _PASS_SECONDS
        async with asyncio.timeout(within):
            while True:
                written = len(self.server.calls)
                await self.step()
                if self.last is not None and holds(self.last.status):
                    return self.last.status
                pause = _PASS_SECONDS if len(self.server.calls) > written else min(2 * pause, _LONGEST_PASS_SECONDS)
                await asyncio.sleep(pause)

    async def step(self) -> None:
        """Reconcile once, in an operator that has just started: it has no state except the cluster's."""
        cluster = KubernetesCluster(self.server)  # type: ignore[arg-type]
        try:
            self.last = await reconcile(cluster, self.key, self.settings, self.clock())
        except CrashError:
            self.crashes += 1
        except (ApiError, ApiUnreachableError):
            await asyncio.sleep(_PASS_SECONDS)

    async def children(self) -> list[str]:
        """Kind and name of everything that belongs to the job."""
        found = []
        for path, kind in (("/apis/batch/v1", "jobs"), ("/api/v1", "configmaps"), ("/api/v1", "services")):
            listed = await self.server.server.request(
                "GET",
                f"{path}/namespaces/{self.key.namespace}/{kind}",
                labelSelector=f"finetune.dev/job={self.key.name}",
            )
            found += [f"{kind}/{item['metadata']['name']}" for item in listed["items"]]
        return sorted(found)
