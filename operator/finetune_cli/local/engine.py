"""The engine of `finetune run`: fork server, local cluster and reconcile loop.

The loop calls the reconcile function of the operator and then sleeps until something changes or is due. The difference
to a cluster is that children are local processes and files.
"""

import asyncio
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_api.clock import utc_now
from finetune_api.constants import Env
from finetune_api.progress import Progress
from finetune_api.rules import cluster_only
from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import FineTuneJob
from finetune_api.validation import InvalidJobError, parse_job
from finetune_operator.clusters.local import LocalCluster
from finetune_operator.manifests import JobKey, Manifest
from finetune_operator.reconcile import reconcile
from finetune_operator.settings import OperatorSettings

from .. import event_loop
from ..display import Display

_TICK_SECONDS = 0.2
"""Interval between updates of the display."""

OnTick = Callable[[FineTuneJob, Progress | None, LocalCluster], None]


class KilledError(Exception):
    """The user pressed Ctrl-C twice, and the run was stopped without saving."""


@dataclass(frozen=True)
class RunOptions:
    """Settings of a local run."""

    work_dir: Path
    storage: StorageSettings
    """Storage of jobs without an endpoint: the embedded server or that of the user."""
    environ: Mapping[str, str]
    """Environment of the pods: that of the user, plus storage credentials."""
    on_tick: OnTick | None = None
    """Called about five times a second while the job is running."""
    fork_server: Path | None = None
    """Socket of a running fork server. If None, the run starts its own."""


def run_locally(manifest: Manifest, options: RunOptions, display: Display) -> FineTuneJob:
    """Run a FineTuneJob until it has ended or is suspended, and return it.

    Raises InvalidJobError before anything is started, or KilledError after a second Ctrl-C.
    """
    if violations := cluster_only(parse_job(manifest, local=True).spec):
        raise InvalidJobError(violations)
    with _fork_server_of(options) as socket_path:
        environ = {**options.environ, Env.FORK_SERVER: str(socket_path)}
        return event_loop.run(_Run(manifest, options, environ, display).run())


class _Run:
    """One local run and its cluster."""

    def __init__(self, manifest: Manifest, options: RunOptions, environ: Mapping[str, str], display: Display) -> None:
        self._manifest, self._options, self._display = manifest, options, display
        self._key = JobKey(manifest["metadata"].get("namespace", "default"), manifest["metadata"]["name"])
        self._wake = asyncio.Event()
        self._interrupts = 0
        self._cluster = LocalCluster(options.work_dir, self._key, environ=environ, on_change=self._wake.set)
        self._settings = OperatorSettings(storage=options.storage, progress_seconds=1.0, has_queues=False)

    async def run(self) -> FineTuneJob:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        self._cluster.put(self._manifest)
        try:
            while not (job := await self._reconcile_once()).status.phase.is_terminal:
                if self._interrupts > 1:
                    raise KilledError
        finally:
            await self._cluster.close()
        self._display.finish(job)
        return job

    async def _reconcile_once(self) -> FineTuneJob:
        """Reconcile once, then update the display until something changes or is due."""
        self._wake.clear()
        outcome = await reconcile(self._cluster, self._key, self._settings, utc_now(), local=True)
        assert outcome is not None, "a local job is never deleted while it is running"
        job = await self._job()
        due = asyncio.get_running_loop().time() + (outcome.requeue_after or 0.0)
        while not self._wake.is_set():
            await self._show(job)
            if asyncio.get_running_loop().time() >= due:
                break
            await asyncio.sleep(_TICK_SECONDS)
        return job

    async def _show(self, job: FineTuneJob) -> None:
        running = next((entry for entry in reversed(job.status.run.attempts) if entry.outcome is None), None)
        progress = await self._cluster.peek_progress(running.job_name) if running else None
        self._display.update(job, progress)
        if self._options.on_tick is not None:
            self._options.on_tick(job, progress, self._cluster)

    async def _job(self) -> FineTuneJob:
        manifest = await self._cluster.get(self._key)
        assert manifest is not None, "a local job is never deleted while it is running"
        return parse_job(manifest, local=True)

    def _interrupt(self) -> None:
        self._interrupts += 1
        if self._interrupts == 1:
            self._display.event("stopping: saving a checkpoint (press Ctrl-C again to stop without saving)")
            self._cluster.put({**self._manifest, "spec": {**self._manifest["spec"], "suspend": True}})
        self._wake.set()


@contextmanager
def _fork_server_of(options: RunOptions) -> Iterator[Path]:
    if options.fork_server is not None:
        yield options.fork_server
        return
    options.work_dir.mkdir(parents=True, exist_ok=True)
    with fork_server(options.environ, options.work_dir / "fork-server.log") as path:
        yield path


@contextmanager
def fork_server(environ: Mapping[str, str], log_file: Path) -> Iterator[Path]:
    """Start the fork server for all ranks of a run. Its imports run while the job is being prepared.

    The socket is in a temporary folder with a short name, because paths of Unix sockets are limited to 107 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder, log_file.open("wb") as log:
        path = Path(folder) / "fork.sock"
        # The server exits when its standard input is closed, so it ends with this process, also if this one is killed.
        command = [sys.executable, "-m", "finetune_trainer.supervisor.forkserver", "--socket", str(path), "--lifeline"]
        with subprocess.Popen(
            command, env=dict(environ), stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        ) as process:
            try:
                yield path
            finally:
                process.terminate()
