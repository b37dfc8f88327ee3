"""Deletion of the files of earlier runs, `spec.output.keepRuns`."""

import logging
import re
from collections.abc import Callable

from finetune_api.run_layout import PromotionLayout, RunLayout
from finetune_api.trainer_config import TrainerConfig

from ..errors import TrainerError
from ..promotion.storage import PromotionStorage
from ..store.client import ObjectStore

log = logging.getLogger(__name__)


def delete_old_runs(
    config: TrainerConfig, store: ObjectStore, warn: Callable[[str], None] = log.warning
) -> tuple[int, ...]:
    """Delete all runs of this job but the current one, the newest others, `keepRuns` in total, and those whose model is
    promoted or would be promoted by a rollback.

    Returns the numbers of the runs that remain, in ascending order. A run whose deletion fails does not remain, because
    a part of its files may be missing; `warn` gets the reason, and the next evaluation deletes the rest. Datasets and
    copies of base models are shared by the runs of an output prefix and are kept. Runs of other jobs have another UID
    in their folder's name. Raises StorageProtocolError, and deletes nothing, if the record of the promoted model cannot
    be read.
    """
    keep = config.spec.output.keep_runs
    assert keep is not None, "the caller checks it"
    promoted = _promoted_folders(config, store)
    files = _files_of_runs(config, store)
    others = sorted((number for number in files if number != config.run), reverse=True)
    folders = {number: RunLayout.of(config.output_uri, number, config.job.uid).uri for number in others}
    deleted = [number for number in others[keep - 1 :] if folders[number] not in promoted]
    for number in reversed(deleted):  # the oldest first: an interruption leaves no gap
        # The record is last, because a folder without a record is not recognized as a run.
        record = RunLayout(folders[number]).record
        try:
            store.delete_many(sorted(files[number], key=lambda uri: (uri == record, uri)))
        except TrainerError as error:
            warn(f"files of run {number} could not be deleted (spec.output.keepRuns): {error}")
            continue
        log.info("deleted the files of run %d: spec.output.keepRuns is %d", number, keep)
    return tuple(sorted({config.run, *others} - set(deleted)))


def _promoted_folders(config: TrainerConfig, store: ObjectStore) -> set[str]:
    record = PromotionStorage(store, PromotionLayout.of(config.output_uri)).read().record
    return set() if record is None else {entry.folder for entry in (record, record.previous) if entry is not None}


def _files_of_runs(config: TrainerConfig, store: ObjectStore) -> dict[int, list[str]]:
    """Return run number -> addresses of all its objects."""
    prefix = f"{config.output_uri}/runs/"
    folder = re.compile(rf"r(\d+)-{re.escape(config.job.uid[:8])}/")
    files: dict[int, list[str]] = {}
    for info in store.list(prefix):
        if found := folder.match(info.uri.removeprefix(prefix)):
            files.setdefault(int(found[1]), []).append(info.uri)
    return files
