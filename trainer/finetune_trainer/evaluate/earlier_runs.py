"""Compares a run with the earlier ones of its job, for the report."""

import logging

from finetune_api.run_layout import RunLayout
from finetune_api.trainer_config import TrainerConfig

from ..errors import ObjectMissingError, TrainerError
from ..store import ObjectStore
from .run_comparison import RunComparison, StoredDocuments, compare_runs, read_run

log = logging.getLogger("finetune")

_MOST_RUNS = 5
_MOST_NUMBERS = 20
"""Numbers below that of the run under which an earlier one is looked for: the files of some may have been deleted."""
_MOST_BYTES = 16 << 20
"""Of one document: the log of 100,000 steps. Several are in memory at a time."""


def compare_with_earlier_runs(config: TrainerConfig, store: ObjectStore) -> RunComparison | None:
    """Compare a run whose evaluation is stored with the newest earlier ones that still have a record.

    None: there is no earlier one, or none that can be read. One that cannot be read is named in log and notes.
    """
    found: list[StoredDocuments] = []
    notes: list[str] = []
    for number in range(config.run, max(0, config.run - _MOST_NUMBERS - 1), -1):
        if len(found) + len(notes) > _MOST_RUNS:
            break
        uri = RunLayout.of(config.output_uri, number, config.job.uid).uri
        try:
            most = None if number == config.run else _MOST_BYTES
            found.append(read_run(store, uri, name=f"run {number}", most_bytes=most))
        except ObjectMissingError:
            continue
        except TrainerError as error:
            notes.append(f"Run {number} is left out: {error}")
            log.warning("the report does not compare run %d: %s", number, error)
    is_first = bool(found) and found[0].record.run == config.run
    return compare_runs(found, with_cost=False, more_notes=notes) if is_first and len(found) > 1 else None
