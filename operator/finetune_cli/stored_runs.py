"""Find the checkpoints of a run, by the name of a job (local or in a cluster) or by the address of the run."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.run_layout import RunLayout
from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import Checkpoint, CostStatus, PastRun, RunStatus, Status, Storage
from finetune_operator.manifests import Manifest
from finetune_operator.policy.world import storage_settings

from . import event_loop
from .cluster.lenient_job import is_settled, lenient_job
from .exit_status import FAILED, USAGE, CommandError, MissingJobError
from .job_sources import JobSources
from .local.state import RUN_LOCK
from .local.storage import endpoint_settings, external_storage, shared_storage
from .locks import try_lock

if TYPE_CHECKING:  # imports boto3, which takes half a second
    from finetune_trainer.checkpoint.archive import Archive, Entry
    from finetune_trainer.store import ObjectStore

_JOB_AND_RUN = re.compile(r"(?P<job>.+):(?P<run>[0-9]{1,9})")


@dataclass(frozen=True)
class Address:
    """Location of a run in object storage."""

    uri: str
    storage: StorageSettings | None
    """None for the embedded store of the work folder."""
    is_local: bool
    """True if only `finetune run` in the work folder writes there."""
    checkpoint: Checkpoint
    """Checkpoint settings of the job; the defaults for an address without a job."""
    busy_reason: str = ""
    """Why an attempt may be writing to the run. Empty if none is, or if a lock can prevent it."""
    cost: CostStatus | None = None
    """What the attempts of the run have occupied, from the status of its job. None: unknown."""


@dataclass(frozen=True)
class StoredRun:
    """An existing run."""

    name: str
    """Name or address as entered by the user."""
    archive: "Archive"
    address: Address

    def entries(self, step: int | None = None) -> "list[Entry]":
        """Return all checkpoints, or those of one step, in restore order. Raises CommandError if there are none."""
        entries = self.archive.entries()
        if not entries:
            raise CommandError(f"{self.name} has no checkpoints yet")
        found = [entry for entry in entries if step in (None, entry.step)]
        if not found:
            known = ", ".join(str(number) for number in sorted({entry.step for entry in entries}))
            raise CommandError(f"{self.name} has no checkpoint of step {step}; existing steps: {known}")
        return found


def address_of(where: str, sources: JobSources, endpoint: str | None) -> Address:
    """Resolve `JOB`, `JOB:RUN` or `s3://...`. `endpoint` is the value of `--endpoint`.

    Raises CommandError if the job does not exist or has not started the run.
    """
    override = None if endpoint is None else endpoint_settings(endpoint)
    if where.startswith("s3://"):
        return _address_of_uri(where, sources, override)
    numbered = _JOB_AND_RUN.fullmatch(where)
    name, run = (where, None) if numbered is None else (numbered["job"], int(numbered["run"]))
    try:
        local = sources.local(name)
    except MissingJobError as error:
        raise MissingJobError(
            f"{error}\nto use another run, write its folder: s3://BUCKET/.../runs/r0001-..."
        ) from None
    if local is None:
        return event_loop.run(_address_in_cluster(name, run, sources, override))
    manifest = local.job.manifest
    named = _storage_block(manifest).endpoint
    storage = override or (None if named is None else endpoint_settings(named))
    uri, cost = _run_of(name, run, manifest, local.job.status)
    return Address(uri, storage, is_local=True, checkpoint=_checkpoint_block(manifest), cost=cost)


def _address_of_uri(uri: str, sources: JobSources, override: StorageSettings | None) -> Address:
    if sources.access.is_requested:
        raise CommandError(f"{uri} must not be combined with options of a cluster; remove them", USAGE)
    run = RunLayout.containing(uri).uri
    busy_reason = "" if override is None else f"it is unknown whether an attempt is running in {run}"
    return Address(run, override, is_local=override is None, checkpoint=Checkpoint(), busy_reason=busy_reason)


async def _address_in_cluster(
    name: str, run: int | None, sources: JobSources, override: StorageSettings | None
) -> Address:
    async with sources.cluster(name) as jobs:
        manifest = await jobs.get(name)
        job = lenient_job(manifest)
        uri, cost = _run_of(name, run, manifest, job.status)
        reported = await jobs.storage(name)
    settings = reported or storage_settings(_storage_block(manifest), StorageSettings())
    if override is not None:  # the same storage through another endpoint, such as a forwarded port
        settings = settings.model_copy(update={"endpoint": override.endpoint, "path_style": True})
    busy_reason = "" if is_settled(job) else f"{name} is {job.status.phase}: an attempt may be running in {uri}"
    return Address(
        uri,
        settings,
        is_local=False,
        checkpoint=_checkpoint_block(manifest),
        busy_reason=busy_reason,
        cost=cost,
    )


def _run_of(name: str, run: int | None, manifest: Manifest, status: Status) -> tuple[str, CostStatus | None]:
    """Return the folder of a run, by default the current one, and its cost."""
    if not status.run.number:
        raise CommandError(f"{name} has not started a run yet")
    newest = max(status.newest_run, status.run.number)
    number = status.run.number if run is None else run
    if not 1 <= number <= newest:
        raise MissingJobError(f"{name} has no run {number}; its newest run is {newest}")
    runs: tuple[RunStatus | PastRun, ...] = (status.run, *status.history)
    entry = next((entry for entry in runs if entry.number == number), None)
    cost = None if entry is None else entry.cost
    if entry is not None and entry.artifact is not None:  # spec.output.uri may have been another one
        return entry.artifact.uri.rpartition("/")[0], cost
    return RunLayout.of(manifest["spec"]["output"]["uri"], number, manifest["metadata"]["uid"]).uri, cost


def _storage_block(manifest: Manifest) -> Storage:
    return Storage.model_validate(manifest["spec"].get("storage") or {})


def _checkpoint_block(manifest: Manifest) -> Checkpoint:
    return Checkpoint.model_validate(manifest["spec"].get("checkpoint") or {})


@contextmanager
def stored_run(
    where: str, sources: JobSources, endpoint: str | None, *, exclusive: bool = False
) -> Iterator[StoredRun]:
    """Open the checkpoints of a run. `exclusive` prevents runs in the work folder meanwhile, if the run is local.

    Raises CommandError if the run does not exist.
    """
    from finetune_trainer.checkpoint.archive import Archive

    address = address_of(where, sources, endpoint)
    with ExitStack() as held:
        if exclusive and address.is_local:
            held.enter_context(_hold_run_lock(sources.work_dir))
        archive = Archive(held.enter_context(opened_storage(address, sources)), address.uri)
        if not archive.is_there:
            raise MissingJobError(
                f"there is no run at {address.uri}; write the folder of a run: s3://BUCKET/.../runs/r0001-..."
            )
        yield StoredRun(where, archive, address)


@contextmanager
def opened_storage(address: Address, sources: JobSources) -> Iterator["ObjectStore"]:
    """Open the storage of an address. Raises an error for a wrong address before a server is started."""
    from finetune_trainer.store import parse

    parse(address.uri)
    if address.storage is not None:
        yield external_storage(address.storage).connect()
        return
    with shared_storage(sources.work_dir, None) as storage:
        yield storage.connect()


@contextmanager
def _hold_run_lock(work_dir: Path) -> Iterator[None]:
    lock = try_lock(work_dir / RUN_LOCK)
    if lock is None:
        raise CommandError(
            f"a run is active in {work_dir}, which prunes its own checkpoints; wait until it has ended", FAILED
        )
    try:
        yield
    finally:
        lock.release()
