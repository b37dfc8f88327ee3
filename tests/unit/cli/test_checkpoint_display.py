"""Display of checkpoints, and resolution of runs by job name or address."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from factories import make_job
from finetune_cli.cluster.jobs import ClusterAccess
from finetune_cli.display.checkpoints import table, verification_line
from finetune_cli.exit_status import CommandError, MissingJobError
from finetune_cli.job_sources import DEFAULT_WORK_DIR, JobSources
from finetune_cli.stored_runs import address_of
from finetune_trainer.checkpoint.archive import Entry, VerificationResult
from finetune_trainer.checkpoint.format.manifest import Manifest, manifest_name

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
RUN = "s3://bucket/out/runs/r0001-1f3a9c42"


def entry(step: int, *, damage: str = "", **fields: Any) -> Entry:
    name = manifest_name(step, 1)
    base: dict[str, Any] = {"step": step, "attempt": 1, "run": 1, "time": "2026-01-01T11:58:00Z", "world_size": 2}
    base |= {"zero_stage": 3, "blob_bytes": 64, "parts": (), "state": "s", "bytes": 3 << 20}
    manifest = None if damage else Manifest.model_validate({**base, **fields})
    return Entry(name, f"{RUN}/checkpoints/manifests/{name}.json", step, 1, manifest, damage)


def test_the_table_has_one_line_per_checkpoint_and_fits_its_width() -> None:
    entries = [
        entry(123456, metrics={"Loss": 0.125, "Accuracy": 0.5, "MacroF1": 0.25, "Perplexity": 1.25}),
        entry(20, is_best=True, metrics={"Loss": 0.5, "Own": 2}),
        entry(10, damage="it is cut short"),
    ]
    lines = table(entries, now=NOW, width=80)
    assert lines[0] == "STEP    ATTEMPT  AGE         SIZE     WORLD  ZERO  BEST  METRICS"
    assert lines[1] == "123456  1        2 min 00 s  3.0 MiB  2      3           loss 0.125, …"
    assert lines[2].endswith("3     yes   loss 0.5, Own 2")
    assert lines[3].split() == ["10", "1", "-", "-", "-", "-", "cannot", "be", "read"]
    assert lines[4] == "step 10 of attempt 1: it is cut short"
    assert max(map(len, lines)) <= 80


def test_each_verified_checkpoint_is_one_line() -> None:
    assert verification_line(VerificationResult(entry(5), blobs=4)) == "step 5 of attempt 1: intact, 4 blobs, 3.0 MiB"
    damaged = VerificationResult(entry(5), damages=("s3://b/x is missing", "s3://b/y is missing"))
    assert verification_line(damaged) == "step 5 of attempt 1: damaged: s3://b/x is missing (and 1 more)"
    gone = VerificationResult(entry(5), is_gone=True)
    assert verification_line(gone) == "step 5 of attempt 1: was removed during the check"


def here(work_dir: Path) -> JobSources:
    """A work folder that is not the default one, so that no cluster is searched."""
    return JobSources(work_dir, ClusterAccess())


@pytest.mark.parametrize(
    "where",
    [
        RUN,
        f"{RUN}/",
        f"{RUN}/checkpoints",
        f"{RUN}/checkpoints/manifests/",
        f"{RUN}/checkpoints/manifests/00000004-a0001.json",
    ],
)
def test_a_run_is_found_by_its_folder_or_by_an_address_in_it(where: str, tmp_path: Path) -> None:
    assert address_of(where, here(tmp_path), None).uri == RUN


def put(work_dir: Path, **change: Any) -> None:
    job = make_job("topics", storage={"endpoint": "https://s3.example.com"}, output={"uri": "s3://bucket/out"})
    job["metadata"]["uid"] = "1f3a9c42-aaaa"
    path = work_dir / "jobs/default/topics/objects/FineTuneJob.topics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**job, **change}))


def test_a_local_job_resolves_to_its_newest_run_and_its_storage(tmp_path: Path) -> None:
    put(tmp_path, status={"run": {"number": 1}})
    found = address_of("topics", here(tmp_path), None)
    assert found.storage is not None
    assert (found.uri, found.storage.endpoint, found.is_local) == (RUN, "https://s3.example.com", True)
    other = address_of("topics", here(tmp_path), "https://other.example.com").storage
    assert other is not None
    assert other.endpoint == "https://other.example.com"


def test_a_missing_job_or_a_job_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingJobError, match=r"contains no runs; .*\n.*write its folder"):
        address_of("topics", here(tmp_path), None)
    put(tmp_path)
    with pytest.raises(CommandError, match="topics has not started a run yet"):
        address_of("topics", here(tmp_path), None)


def test_the_address_of_a_run_excludes_options_of_a_cluster() -> None:
    with pytest.raises(CommandError, match="must not be combined with options of a cluster; remove them"):
        address_of(RUN, JobSources(DEFAULT_WORK_DIR, ClusterAccess(namespace="team")), None)
