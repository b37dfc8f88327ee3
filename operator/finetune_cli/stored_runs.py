"""Where the checkpoints of a run are: of a job of the work folder by its name, of any other run by its address."""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.trainer_config import run_folder
from finetune_api.v1alpha1 import Checkpoint
from finetune_operator.manifests import Manifest

from .exit_status import FAILED, CommandError, MissingJobError
from .local_state import RUN_LOCK, LocalState
from .local_storage import shared_storage
from .locks import try_lock

if TYPE_CHECKING:  # boto3 comes with it: half a second that most commands need not spend
    from finetune_trainer.checkpoint.archive import Archive, Entry

_INSIDE_A_RUN = re.compile(r"/checkpoints(/(manifests|blobs)(/[^/]*)?)?/?$")


@dataclass(frozen=True)
class Address:
    """Where a run is."""

    uri: str
    endpoint: str | None
    """None: the embedded store of the work folder."""
    is_local: bool
    """Only `finetune run` in the work folder writes there."""
    checkpoint: Checkpoint
    """What its job says; of a bare address, what a job says by itself."""


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


def address_of(where: str, work_dir: Path, endpoint: str | None) -> Address:
    """What `JOB` or `s3://` means. Raises CommandError for a job that is not in the work folder, or has not begun."""
    if where.startswith("s3://"):
        uri = _INSIDE_A_RUN.sub("", where).rstrip("/")
        return Address(uri, endpoint, is_local=endpoint is None, checkpoint=Checkpoint())
    try:
        job = LocalState(work_dir).find(where)
    except MissingJobError as error:
        raise MissingJobError(
            f"{error}\na run elsewhere is named by its folder: s3://BUCKET/.../runs/r0001-..."
        ) from None
    if not job.status.run:
        raise CommandError(f"{where} has not begun a run yet")
    spec, uid = job.manifest["spec"], job.manifest["metadata"]["uid"]
    return Address(
        uri=run_folder(spec["output"]["uri"], job.status.run, uid),
        endpoint=endpoint or _own_endpoint(spec),
        is_local=True,
        checkpoint=Checkpoint.model_validate(spec.get("checkpoint") or {}),
    )


def _own_endpoint(spec: Manifest) -> str | None:
    endpoint: str | None = (spec.get("storage") or {}).get("endpoint")
    return endpoint


@contextmanager
def stored_run(where: str, work_dir: Path, endpoint: str | None, *, alone: bool = False) -> Iterator[StoredRun]:
    """The run's checkpoints, to look at. `alone`: while no run of the work folder can write to a local one.

    Raises CommandError for a run that is not there.
    """
    from finetune_trainer.checkpoint.archive import Archive
    from finetune_trainer.store import parse

    address = address_of(where, work_dir, endpoint)
    parse(address.uri)  # a wrong address is told before a server is started
    with ExitStack() as held:
        if alone and address.is_local:
            held.enter_context(_no_run(work_dir))
        storage = held.enter_context(shared_storage(work_dir, address.endpoint))
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
            f"a run is going on in {work_dir}, which removes old checkpoints itself; wait for it", FAILED
        )
    try:
        yield
    finally:
        os.close(lock)
