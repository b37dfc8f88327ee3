"""The operator as a process: watches, queue, workers, probes; it ends on SIGTERM, and nothing is lost by that."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import kopf

from .clusters.api_server import ApiServer
from .clusters.kubernetes import KubernetesCluster
from .handlers import make_registry, make_settings
from .health import Health
from .http_server import serve
from .manifests import JobKey
from .metrics import Metrics
from .queue import KeyedQueue
from .settings import OperatorSettings
from .table import JobTable
from .worker import Workers

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceOptions:
    """How the process runs; what jobs get is in OperatorSettings."""

    namespaces: tuple[str, ...] = ()
    """Namespaces to serve; none: the whole cluster."""
    kubeconfig: Path | None = None
    workers: int = 24
    host: str = "0.0.0.0"
    port: int = 8081
    """Of metrics and probes."""
    resync_seconds: float = 300.0


async def run_service(settings: OperatorSettings, options: ServiceOptions) -> None:
    """Serve until SIGTERM or SIGINT. Raises what ends the watches, so that the process ends with them."""
    metrics = Metrics()
    queue: KeyedQueue[JobKey] = KeyedQueue()
    table = JobTable()
    metrics.jobs.set_function(lambda: len(table))
    ready = asyncio.Event()
    async with _connection(options.kubeconfig, metrics) as server:
        cluster = KubernetesCluster(server, table.wrote)
        workers = Workers(cluster, queue, settings, metrics)
        health = Health(queue, workers.longest_seconds, metrics, options.resync_seconds)
        probes = await serve(options.host, options.port, metrics.registry, health.problems, ready.is_set)
        watching = kopf.operator(
            registry=make_registry(queue, table),
            settings=make_settings(),
            clusterwide=not options.namespaces,
            namespaces=options.namespaces,
            ready_flag=ready,
        )
        background = [
            asyncio.create_task(workers.run(options.workers)),
            asyncio.create_task(health.beat()),
            asyncio.create_task(health.resync(cluster, table, options.namespaces)),
        ]
        try:
            await watching
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await cluster.close()
            await probes.cleanup()


@contextlib.asynccontextmanager
async def _connection(kubeconfig: Path | None, metrics: Metrics) -> AsyncIterator[ApiServer]:
    server = await ApiServer.connect(kubeconfig, metrics.called)
    try:
        yield server
    finally:
        await server.close()
