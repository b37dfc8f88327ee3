"""The steps of `finetune run`: lock the work folder, start storage, run the engine, download the report."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_api.constants import Phase
from finetune_api.progress import Progress
from finetune_api.v1alpha1 import FineTuneJob
from finetune_operator.clusters.local import LocalCluster
from finetune_operator.manifests import Manifest

from ..display import Display
from ..exit_status import CommandError
from ..job_file import JobFile
from ..locks import try_lock
from .engine import OnTick, RunOptions, run_locally
from .state import RUN_LOCK
from .storage import LocalStorage, owned_storage


@dataclass(frozen=True)
class RunResult:
    """The result of a run."""

    job: FineTuneJob
    report: Path | None
    """Copy of the report in the work folder; None if there is no report."""


def run_job(
    file: JobFile,
    *,
    work_dir: Path,
    endpoint: str | None,
    display: Display,
    prepare: Callable[[LocalStorage], None] = lambda _: None,
    on_tick: OnTick | None = None,
    on_success: Callable[[FineTuneJob, LocalStorage], None] = lambda *_: None,
) -> RunResult:
    """Run a job file until the job has ended or is suspended.

    `endpoint` takes precedence over that of the job; without either, an embedded server is started. `prepare` is called
    before the job starts and `on_success` after it has succeeded, both while storage is available. Raises one of
    `exit_status.USER_ERRORS`.
    """
    job = file.check(local=True, for_run=True)
    endpoint = endpoint or job.spec.storage.endpoint
    manifest = _with_endpoint(file.manifest, endpoint)
    with _exclusive_run(work_dir), owned_storage(work_dir, endpoint) as storage:
        storage.ensure_bucket(job.spec.output.uri)
        prepare(storage)
        options = RunOptions(
            work_dir=work_dir.resolve(),
            storage=storage.settings,
            environ=storage.environ,
            on_tick=_checked(storage, on_tick),
        )
        finished = run_locally(manifest, options, display)
        if finished.status.phase is Phase.SUCCEEDED:
            on_success(finished, storage)
        return RunResult(finished, _fetch_report(finished, storage, work_dir))


def _with_endpoint(manifest: Manifest, endpoint: str | None) -> Manifest:
    if endpoint is None:
        return manifest
    manifest = copy.deepcopy(manifest)
    manifest["spec"].setdefault("storage", {})["endpoint"] = endpoint
    return manifest


def _checked(storage: LocalStorage, on_tick: OnTick | None) -> OnTick:
    """Check the store at every tick: if it has exited, the run fails immediately, because retries cannot help."""

    def tick(job: FineTuneJob, progress: Progress | None, cluster: LocalCluster) -> None:
        storage.check()
        if on_tick is not None:
            on_tick(job, progress, cluster)

    return tick


@contextmanager
def _exclusive_run(work_dir: Path) -> Iterator[None]:
    """Hold the lock of the work folder, because two runs would overwrite each other's objects."""
    lock = try_lock(work_dir / RUN_LOCK)
    if lock is None:
        raise CommandError(f"another `finetune run` is using {work_dir}; wait for it, or set another --work-dir")
    try:
        yield
    finally:
        lock.release()


def _fetch_report(job: FineTuneJob, storage: LocalStorage, work_dir: Path) -> Path | None:
    artifact = job.status.run.artifact
    if job.status.phase is not Phase.SUCCEEDED or artifact is None or not artifact.report:
        return None
    path = work_dir / "jobs" / job.metadata.namespace / job.metadata.name / f"report-r{job.status.run.number:04d}.html"
    storage.connect().download(artifact.report, path)
    return path
