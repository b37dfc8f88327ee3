"""The operator process: watches, queue, workers and probes. It can be stopped at any time with SIGTERM."""

import asyncio
import contextlib
import gc
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import kopf

from ..cache.job_cache import JobCache
from ..clusters.api_server import ApiServer
from ..clusters.cached import CachedCluster
from ..manifests import JobKey
from ..service_options import ServiceOptions
from ..settings import OperatorSettings
from .child_watches import Children
from .handlers import make_registry, make_settings, schedule
from .health import Health
from .http_server import serve
from .leader import LeaderElection, end_process, make_timer
from .metrics import Metrics
from .queue import KeyedQueue
from .worker import Workers

LOG = logging.getLogger(__name__)


_NESTING = 25_000
"""Recursion limit. An API server accepts JSON of 10,000 levels, Python by default about 1,000: an object with more
levels in a free-form field would end the watch of Kopf. Reading 10,000 levels needs 1.3 MB of stack."""


async def run_service(settings: OperatorSettings, options: ServiceOptions) -> None:
    """Run until SIGTERM or SIGINT. If a background task fails, the operator stops and its exception is raised."""
    _collect_garbage_seldom()
    sys.setrecursionlimit(_NESTING)
    metrics = Metrics()
    queue: KeyedQueue[JobKey] = KeyedQueue(added=metrics.added, taken=metrics.taken)
    ready = asyncio.Event()
    async with _connection(options.kubeconfig, metrics) as server, _election(options, metrics) as election:
        cache = JobCache(server.now, is_standby=election is not None)
        cluster = CachedCluster(server, cache)
        workers = Workers(cluster, queue, settings, metrics, server.now)
        health = Health(queue, workers.longest_seconds, metrics, options.resync_seconds)
        metrics.show_queue(lambda: len(queue), queue.oldest_seconds)
        metrics.show_workers(options.workers, lambda: workers.active, workers.longest_seconds)
        metrics.show_jobs(lambda: {} if cache.is_standby else cache.phases())  # sums over replicas must not count twice
        metrics.show_watches(health.silences)
        metrics.show_leader(lambda: not cache.is_standby)

        def awaited() -> tuple[str, ...]:
            closed = () if ready.is_set() else ("the watches are not open yet",)
            return closed + (election.awaited() if election else ())

        probes = await serve(options.host, options.port, metrics.registry, health.problems, awaited)
        stop = asyncio.Event()
        background = [
            asyncio.create_task(_reconcile(election, cache, queue, workers, options.workers)),
            asyncio.create_task(health.beat()),
            asyncio.create_task(health.resync(cluster, cache, options.namespaces)),
        ]
        children = Children(queue, cache, health.record_event)
        for namespace in options.namespaces or ("",):
            watches = children.watches(server, namespace, options.watch_silence_seconds)
            background += [asyncio.create_task(watch.run()) for watch in watches]
        for part in background:
            part.add_done_callback(lambda _: stop.set())  # the operator needs all of them

        async def end_background() -> None:
            await workers.finish()
            for part in background:
                part.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            if election is not None:
                await election.release()

        try:
            await kopf.operator(
                registry=make_registry(queue, cache, health.record_event, end_background),
                settings=make_settings(options.watch_silence_seconds),
                clusterwide=not options.namespaces,
                namespaces=options.namespaces,
                ready_flag=ready,
                stop_flag=stop,
            )
        finally:
            await end_background()  # if Kopf has failed before its end
            await probes.cleanup()
        for part in background:
            if not part.cancelled() and (error := part.exception()):
                raise error


async def _reconcile(
    election: LeaderElection | None, cache: JobCache, queue: KeyedQueue[JobKey], workers: Workers, count: int
) -> None:
    """Work as the leader, until cancelled. Before, the watches only update the cache."""
    async with asyncio.TaskGroup() as group:
        if election is not None:
            await election.acquire()
            group.create_task(election.hold())
            cache.is_standby = False
            for key in cache.versions():
                schedule(queue, cache, key)
        group.create_task(workers.run(count))


def _collect_garbage_seldom() -> None:
    """Collect garbage less often. Parsing lists of objects creates many containers, and by default Python searches for
    cycles after every 700. At a start with 5,000 jobs, this takes half of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@contextlib.asynccontextmanager
async def _connection(kubeconfig: Path | None, metrics: Metrics) -> AsyncIterator[ApiServer]:
    server = await ApiServer.connect(kubeconfig, metrics.called)
    try:
        yield server
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def _election(options: ServiceOptions, metrics: Metrics) -> AsyncIterator[LeaderElection | None]:
    """Leader election with connections of its own: with many workers, requests wait for a connection."""
    if options.lease is None:
        yield None
        return
    async with _connection(options.kubeconfig, metrics) as server:
        yield LeaderElection(server, options.lease, end_process, make_timer(options.lease.seconds))
