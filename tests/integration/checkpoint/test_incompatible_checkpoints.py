"""Incompatible checkpoints in the folder of a run."""

import json
from typing import Any

import pytest

from finetune_trainer.checkpoint.format.manifest import VERSION
from finetune_trainer.checkpoint.format.retention import Keep
from finetune_trainer.checkpoint.stored.pruning import Pruning
from finetune_trainer.checkpoint.stored.run_storage import RunStorage
from finetune_trainer.errors import BadConfigError
from finetune_trainer.store import ObjectStore
from small_manifests import LINEAGE, MANIFEST, OTHER
from stored_checkpoints import run_uri


def changed(change: dict[str, Any]) -> bytes:
    return json.dumps(json.loads(MANIFEST.model_dump_json()) | change).encode()


def test_each_incompatible_checkpoint_is_skipped_with_its_name_and_the_difference(
    store: ObjectStore, bucket: str
) -> None:
    changes = {
        "00000012-a0001": {"model_digest": OTHER},
        "00000013-a0001": {"dataset_digest": OTHER},
        "00000011-a0001": {"job": "default/other (uid 2)"},
    }
    prefix = f"{run_uri(bucket)}/checkpoints/manifests"
    for name, change in changes.items():
        store.put(f"{prefix}/{name}.json", changed(change))
    storage = RunStorage.of(store, run_uri(bucket), attempt=2, lineage=LINEAGE)
    found, warnings = storage.catalog.newest_complete(exclude=())
    assert found is None
    assert warnings == [
        f"checkpoint {name} cannot be used: {prefix}/{name}.json was {reported}"
        for name, reported in (
            ("00000013-a0001", "trained on another dataset (digest c3c3c3c3c3c3, this run's is b2b2b2b2b2b2)"),
            ("00000012-a0001", "trained from another base model (digest c3c3c3c3c3c3, this run's is a1a1a1a1a1a1)"),
            ("00000011-a0001", "saved by another job, default/other (uid 2); this one is default/mine (uid 1)"),
        )
    ]


def test_a_checkpoint_of_a_newer_version_is_neither_skipped_nor_removed(store: ObjectStore, bucket: str) -> None:
    """An image that was rolled back would resume from an older checkpoint and repeat work."""
    prefix = f"{run_uri(bucket)}/checkpoints/manifests"
    store.put(f"{prefix}/00000012-a0001.json", changed({}))
    store.put(f"{prefix}/00000014-a0002.json", changed({"version": VERSION + 1, "shards": []}))
    storage = RunStorage.of(store, run_uri(bucket), attempt=3, lineage=LINEAGE)
    found = f"format {VERSION + 1}, known 1 to {VERSION}"
    reported = f"{prefix}/00000014-a0002.json was written by a newer finetune-operator ({found})"
    with pytest.raises(BadConfigError) as refused:
        storage.catalog.newest_complete(exclude=())
    assert str(refused.value) == f"checkpoint 00000014-a0002: {reported}"
    assert "spec.workers.image" in refused.value.advice

    pruning = Pruning(storage, Keep(last=1, best=0, every=None), grace=None)
    for _ in pruning.steps():
        pass
    assert pruning.pruned.blocked_by == reported
    assert "00000014-a0002" in storage.catalog.listing().names
