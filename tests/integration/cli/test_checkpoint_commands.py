"""`finetune checkpoints` as a process."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from command_line import CommandLine
from factories import make_job
from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_cli.local.state import RUN_LOCK
from finetune_cli.local.storage import store_folder
from finetune_cli.locks import try_lock
from finetune_trainer.checkpoint.stored.loading import Loader
from finetune_trainer.store import ObjectStore
from stored_runs import SHAPES, StoredRun, value_of


@pytest.fixture
def checkpoints(commands: CommandLine, tmp_path: Path):
    """Run the command; returns status, lines and errors. `fresh`: in a new interpreter."""

    def go(*arguments: str | Path, fresh: bool = False) -> tuple[int, list[str], str]:
        run = commands.fresh if fresh else commands.run
        done = run("checkpoints", *arguments, cwd=tmp_path)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout.splitlines(), done.stderr

    return go


@pytest.fixture
def run(store: ObjectStore, bucket: str) -> StoredRun:
    """A run with metrics as of a job with early stopping. Step 20 is the best."""
    made = StoredRun(store, f"s3://{bucket}/runs/r0001-1")
    made.claim(1)
    made.save(10, best=10, Loss=0.5, Accuracy=0.75)
    made.save(20, best=20, Loss=0.25, Accuracy=0.875)
    made.claim(2)
    made.save(30, best=20)
    made.save(40, best=20)
    return made


@pytest.fixture
def own(storage_settings: StorageSettings) -> tuple[str, str]:
    assert storage_settings.endpoint is not None
    return "--endpoint", storage_settings.endpoint


def test_a_run_is_listed_as_a_table_and_as_json(
    run: StoredRun, own: tuple[str, str], checkpoints, tmp_path: Path
) -> None:
    status, lines, _ = checkpoints("list", run.uri, *own, fresh=True)
    assert status == 0
    assert lines[0].split() == ["STEP", "ATTEMPT", "AGE", "SIZE", "WORLD", "ZERO", "BEST", "METRICS"]
    assert [line.split()[:2] for line in lines[1:]] == [["40", "2"], ["30", "2"], ["20", "1"], ["10", "1"]]
    assert "3.3 KiB  2      2     yes   loss 0.25, …" in lines[3]
    assert max(map(len, lines)) <= 80
    assert not (tmp_path / ".finetune").exists()

    last = f"{run.uri}/checkpoints/manifests/00000040-a0002.json"  # the value of status.lastCheckpoint
    status, lines, _ = checkpoints("list", last, *own, "-o", "json")
    listed: list[dict[str, Any]] = json.loads("\n".join(lines))
    assert (status, len(listed), listed[0]["uri"]) == (0, 4, last)
    best = listed[2]
    assert (best["step"], best["isBest"], best["metrics"]) == (20, True, {"Loss": 0.25, "Accuracy": 0.875})


def test_damaged_checkpoints_are_reported_with_exit_status_1(run: StoredRun, own: tuple[str, str], checkpoints) -> None:
    status, lines, _ = checkpoints("verify", run.uri, *own)
    assert (status, len(lines)) == (0, 4)
    assert lines[0].startswith("step 40 of attempt 2: intact, ")
    digest = Loader(run.storage.blobs, run.manifests[1]).part(1).blobs[-1]
    run.store.put(run.blob_uri(digest), b"other bytes")
    run.store.put(f"{run.uri}/checkpoints/manifests/00000010-a0001.json", b"{")
    status, lines, _ = checkpoints("verify", run.uri, *own)
    assert (status, len(lines)) == (1, 4)
    assert lines[2].startswith(f"step 20 of attempt 1: damaged: {run.blob_uri(digest)} is damaged")
    assert "is not a manifest of format 1" in lines[3]
    assert checkpoints("verify", run.uri, "--step", "40", *own)[0] == 0
    status, lines, _ = checkpoints("list", run.uri, *own)
    assert (status, lines[4].split()[-3:]) == (0, ["cannot", "be", "read"])
    assert lines[5].startswith("step 10 of attempt 1: ")


def test_pruning_a_run_by_address_requires_yes(
    run: StoredRun, own: tuple[str, str], checkpoints, tmp_path: Path
) -> None:
    status, _, err = checkpoints("prune", run.uri, "--keep-last", "1", *own)
    assert status == 2
    assert "add --yes to confirm that no attempt is running, or --dry-run" in err
    removed = ["00000010-a0001", "00000030-a0002"]
    status, lines, _ = checkpoints("prune", run.uri, "--keep-last", "1", "--dry-run", *own)
    assert (status, lines[:2], len(run.names())) == (0, [f"{name}: would be removed" for name in removed], 4)
    status, lines, _ = checkpoints("prune", run.uri, "--keep-last", "1", "--yes", *own, fresh=True)
    assert (status, lines[:2]) == (0, [f"{name}: removed" for name in removed])
    assert lines[2] == "2 of 4 checkpoints and 0 blobs, 0 B, removed", "blobs are younger than an hour"
    assert list(run.restorable()) == ["00000040-a0002", "00000020-a0001"]


def test_parameters_are_exported_as_safetensors(
    run: StoredRun, own: tuple[str, str], checkpoints, tmp_path: Path
) -> None:
    status, lines, _ = checkpoints("export", run.uri, "out", "--step", "20", *own, fresh=True)
    assert (status, lines) == (0, ["out/model.safetensors", "out/model.safetensors.index.json"])
    values = load_file(tmp_path / lines[0])
    assert set(values) == set(SHAPES)
    assert all(np.array_equal(value, value_of(name, 20)) for name, value in values.items())
    status, _, err = checkpoints("export", run.uri, "out", *own)
    assert (status, "out must be an empty folder" in err) == (2, True)


def test_a_missing_run_or_checkpoint_is_reported(
    run: StoredRun, own: tuple[str, str], checkpoints, tmp_path: Path
) -> None:
    empty = f"{run.uri.removesuffix('-1')}-2"
    run.store.put(f"{empty}/run.json", b"{}")
    for arguments, expected, words in [
        (["list", f"{run.uri}0"], 66, f"there is no run at {run.uri}0; write the folder of a run"),
        (["list", empty], 1, f"{empty} has no checkpoints yet"),
        (["verify", run.uri, "--step", "7"], 1, "has no checkpoint of step 7; existing steps: 10, 20, 30, 40"),
        (["export", run.uri, "out", "--step", "7"], 1, "has no checkpoint of step 7"),
        (["prune", run.uri, "--keep-last", "0"], 2, "'--keep-last': Input should be greater than or equal to 1"),
        (["list", "s3://"], 78, "write s3://bucket/key"),
        (["list", "topics"], 66, "to use another run, write its folder"),
    ]:
        status, out, err = checkpoints(*arguments, *own)
        assert (status, out) == (expected, []), arguments
        assert words in err


def test_a_local_run_is_found_by_name_and_not_pruned_while_it_is_active(checkpoints, tmp_path: Path) -> None:
    work_dir = tmp_path / ".finetune"
    job = make_job("topics", checkpoint={"keepLast": 1, "keepBest": 0}, output={"uri": "s3://demo/runs/topics"})
    job["metadata"]["uid"] = "1f3a9c42-0000"
    path = work_dir / "jobs/default/topics/objects/FineTuneJob.topics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**job, "status": {"run": {"number": 1}, "phase": "Succeeded"}}))
    with EmbeddedStore(store_folder(work_dir)) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env().items():
            patch.setenv(name, value)
        server.create_bucket("demo")
        store = ObjectStore.connect(StorageSettings(endpoint=server.endpoint, path_style=True))
        run = StoredRun(store, "s3://demo/runs/topics/runs/r0001-1f3a9c42")
        for step in (1, 2, 3):
            run.save(step)
        assert [line.split()[0] for line in checkpoints("list", "topics")[1]] == ["STEP", "3", "2", "1"]
        lock = try_lock(work_dir / RUN_LOCK)
        assert lock is not None
        status, _, err = checkpoints("prune", "topics")
        lock.release()
        assert (status, len(run.names())) == (1, 3)
        assert "a run is active in .finetune" in err
        status, lines, _ = checkpoints("prune", "topics")
        assert status == 0
        assert lines[-1].startswith("2 of 3 checkpoints and ")
        assert list(run.restorable()) == ["00000003-a0001"], "as its job says"
        assert run.blobs() == run.blobs_of(run.manifests[-1]), "nobody saves, so young blobs go too"
