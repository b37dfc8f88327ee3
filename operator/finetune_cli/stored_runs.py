"""Where the checkpoints of a run are: of a job by its name, here or in a cluster, of any other run by its address."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.run_layout import RunLayout
from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import Checkpoint, Storage
from finetune_api.v1alpha1.status import in_current_shape
from finetune_operator.manifests import Manifest
from finetune_operator.policy.world import storage_settings

from . import event_loop
from .cluster.lenient_job import is_settled, lenient_job
from .exit_status import FAILED, USAGE, CommandError, MissingJobError
from .local.state import RUN_LOCK
from .local.storage import external_storage, own_settings, shared_storage
from .locks import try_lock
from .places import Places

if TYPE_CHECKING:  # boto3 comes with it: half a second that most commands need not spend
    from finetune_trainer.checkpoint.archive import Archive, Entry


@dataclass(frozen=True)
class Address:
    """Where a run is."""

    uri: str
    storage: StorageSettings | None
    """None: the embedded store of the work folder."""
    is_local: bool
    """Only `finetune run` in the work folder writes there."""
    checkpoint: Checkpoint
    """What its job says; of a bare address, what a job says by itself."""
    busy_reason: str = ""
    """Why an attempt may be at work there; empty: none is, or it can be kept from it."""


@dataclass(frozen=True)
class StoredRun:
    """A run that is there."""

    name: str
    """As the user has called it."""
    archive: "Archive"
    address: Address

    def entries(self, step: int | None = None) -> "list[Entry]":
        """Its checkpoints, or those of one step, the one to restore first in front. Raises CommandError without any."""
        entries = self.archive.entries()
        if not entries:
            raise CommandError(f"{self.name} has no checkpoints yet")
        found = [entry for entry in entries if step in (None, entry.step)]
        if not found:
            known = ", ".join(str(number) for number in sorted({entry.step for entry in entries}))
            raise CommandError(f"{self.name} has no checkpoint of step {step}; there are: {known}")
        return found


def address_of(where: str, places: Places, endpoint: str | None) -> Address:
    """What `JOB` or `s3://` means. `endpoint` is the user's `--endpoint`.

    Raises CommandError for a job that is nowhere, or has not begun.
    """
    own = None if endpoint is None else own_settings(endpoint)
    if where.startswith("s3://"):
        return _address_of_uri(where, places, own)
    try:
        local = places.local(where)
    except MissingJobError as error:
        raise MissingJobError(
            f"{error}\na run elsewhere is named by its folder: s3://BUCKET/.../runs/r0001-..."
        ) from None
    if local is None:
        return event_loop.run(_address_in_cluster(where, places, own))
    manifest = local.job.manifest
    named = _storage_block(manifest).endpoint
    storage = own or (None if named is None else own_settings(named))
    return Address(_run_of(where, manifest), storage, is_local=True, checkpoint=_checkpoint_block(manifest))


def _address_of_uri(uri: str, places: Places, own: StorageSettings | None) -> Address:
    if places.access.is_asked_for:
        raise CommandError(f"{uri} must not be combined with options of a cluster; remove them", USAGE)
    run = RunLayout.containing(uri).uri
    busy_reason = "" if own is None else f"it is unknown whether an attempt is running in {run}"
    return Address(run, own, is_local=own is None, checkpoint=Checkpoint(), busy_reason=busy_reason)


async def _address_in_cluster(name: str, places: Places, own: StorageSettings | None) -> Address:
    async with places.cluster(name) as jobs:
        manifest = await jobs.get(name)
        uri, job = _run_of(name, manifest), lenient_job(manifest)
        reported = await jobs.storage(name)
    settings = reported or storage_settings(_storage_block(manifest), StorageSettings())
    if own is not None:  # the same storage on another way, such as a forwarded port
        settings = settings.model_copy(update={"endpoint": own.endpoint, "path_style": True})
    busy_reason = "" if is_settled(job) else f"{name} is {job.status.phase}: an attempt may be running in {uri}"
    return Address(uri, settings, is_local=False, checkpoint=_checkpoint_block(manifest), busy_reason=busy_reason)


def _run_of(name: str, manifest: Manifest) -> str:
    run = (in_current_shape(manifest.get("status") or {}).get("run") or {}).get("number")
    if not run:
        raise CommandError(f"{name} has not started a run yet")
    return RunLayout.of(manifest["spec"]["output"]["uri"], run, manifest["metadata"]["uid"]).uri


def _storage_block(manifest: Manifest) -> Storage:
    return Storage.model_validate(manifest["spec"].get("storage") or {})


def _checkpoint_block(manifest: Manifest) -> Checkpoint:
    return Checkpoint.model_validate(manifest["spec"].get("checkpoint") or {})


@contextmanager
def stored_run(where: str, places: Places, endpoint: str | None, *, alone: bool = False) -> Iterator[StoredRun]:
    """The run's checkpoints, to look at. `alone`: while no run of the work folder can write to a local one.

    Raises CommandError for a run that is not there.
    """
    from finetune_trainer.checkpoint.archive import Archive
    from finetune_trainer.store import parse

    address = address_of(where, places, endpoint)
    parse(address.uri)  # report a wrong address before a server is started
    with ExitStack() as held:
        if alone and address.is_local:
            held.enter_context(_no_run(places.work_dir))
        if address.storage is None:
            storage = held.enter_context(shared_storage(places.work_dir, None))
        else:
            storage = external_storage(address.storage)
        archive = Archive(storage.connect(), address.uri)
        if not archive.is_there:
            raise MissingJobError(
                f"there is no run at {address.uri}; write a run's folder, s3://BUCKET/.../runs/r0001-..."
            )
        yield StoredRun(where, archive, address)


@contextmanager
def _no_run(work_dir: Path) -> Iterator[None]:
    lock = try_lock(work_dir / RUN_LOCK)
    if lock is None:
        raise CommandError(
            f"a run is active in {work_dir}, which prunes its checkpoints itself; wait until it has ended", FAILED
        )
    try:
        yield
    finally:
        lock.release()
