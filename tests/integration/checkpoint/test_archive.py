"""Operations on checkpoints: verify every byte, and export the parameters."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from finetune_trainer.checkpoint.archive import Archive, Keep
from finetune_trainer.checkpoint.stored.loading import Loader
from finetune_trainer.checkpoint.stored.safetensors_export import export_safetensors
from finetune_trainer.errors import BadConfigError, CorruptCheckpointError, FencedError
from finetune_trainer.store import ObjectStore
from stored_runs import SHAPES, StoredRun, value_of


@pytest.fixture
def run(store: ObjectStore, bucket: str) -> StoredRun:
    made = StoredRun(store, f"s3://{bucket}/runs/r0001-1", size=3)
    made.claim(1)
    for step in (10, 20, 30):
        made.save(step)
    return made


def test_every_kind_of_damage_is_found_and_reported(run: StoredRun) -> None:
    archive = Archive(run.store, run.uri)
    assert [checked.damages for checked in archive.check(archive.entries())] == [(), (), ()]
    newest = run.manifests[-1]
    part = Loader(run.storage.blobs, newest).part(1)
    digests = {"state": newest.state, "part": newest.parts[0].digest, "layout": part.layout, "data": part.blobs[-1]}
    for name, digest in digests.items():
        uri = run.blob_uri(digest)
        content = run.store.get(uri)
        broken = bytes([content[0] ^ 1]) + content[1:]
        run.store.put(uri, broken)
        found = {checked.entry.step: checked.damages for checked in archive.check(archive.entries())}
        assert len(found[30]) == 1, name
        assert digest in found[30][0], name
        is_shared = name == "layout"
        assert bool(found[20]) == is_shared, name
        run.store.delete(uri)
        (checked, *_) = archive.check(archive.entries())
        assert checked.damages == (f"{uri} is missing",), name
        run.store.put(uri, content)


def test_a_checkpoint_that_is_removed_during_its_verification_is_not_damaged(run: StoredRun) -> None:
    archive = Archive(run.store, run.uri)
    entries = archive.entries()
    archive.prune(Keep(last=1), is_idle=True)
    verdicts = [(checked.is_gone, checked.damages) for checked in archive.check(entries)]
    assert verdicts == [(False, ()), (True, ()), (True, ())]


def test_a_run_that_continues_is_not_pruned_by_users(run: StoredRun) -> None:
    archive = Archive(run.store, run.uri)
    run.claim(2)
    with pytest.raises(FencedError, match="attempt 2 has claimed the run"):
        archive.prune(Keep(last=1), is_idle=True)
    assert len(run.names()) == 3


def test_a_dry_run_reports_removals_without_removing_anything(run: StoredRun) -> None:
    archive, blobs = Archive(run.store, run.uri), run.blobs()
    reported = archive.prune(Keep(last=1), is_idle=True, dry_run=True)
    assert (len(run.names()), run.blobs()) == (3, blobs)
    assert archive.prune(Keep(last=1), is_idle=True) == reported
    assert (len(reported.checkpoints), reported.blobs) == (2, len(blobs) - len(run.blobs()))


@pytest.mark.parametrize(("shard_bytes", "files"), [(1 << 30, 1), (1, 3)], ids=["one file", "a file each"])
def test_parameters_are_assembled_from_all_ranks(run: StoredRun, tmp_path: Path, shard_bytes: int, files: int) -> None:
    written = export_safetensors(Loader(run.storage.blobs, run.manifests[1]), tmp_path / "out", shard_bytes=shard_bytes)
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    index = json.loads(written[-1].read_text())
    assert written[-1].name == "model.safetensors.index.json"
    assert (index["metadata"]["step"], index["metadata"]["total_size"]) == (20, 4 * (240 + 40 + 1))
    assert len(set(index["weight_map"].values())) == files
    for name, shape in SHAPES.items():
        value = load_file(tmp_path / "out" / index["weight_map"][name])[name]
        assert (value.shape, value.dtype) == (shape, np.float32)
        assert np.array_equal(value, value_of(name, 20))


def test_damaged_parameters_are_not_written(run: StoredRun, tmp_path: Path) -> None:
    part = Loader(run.storage.blobs, run.manifests[0]).part(2)
    run.store.put(run.blob_uri(part.blobs[0]), b"damaged")
    archive = Archive(run.store, run.uri)
    with pytest.raises(CorruptCheckpointError, match=part.blobs[0]):
        archive.export(archive.entries()[-1], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_with_missing_elements_is_reported(run: StoredRun, tmp_path: Path) -> None:
    halved = run.manifests[0].model_copy(update={"world_size": 2, "parts": run.manifests[0].parts[:2]})
    with pytest.raises(BadConfigError, match="does not have elements 160 to 240 of embedding"):
        export_safetensors(Loader(run.storage.blobs, halved), tmp_path)
