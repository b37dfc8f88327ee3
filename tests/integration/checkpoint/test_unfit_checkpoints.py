"""Checkpoints of something else among those of a run."""

import json

from finetune_trainer.checkpoint.stored.places import RunStorage
from finetune_trainer.store import ObjectStore
from small_manifests import LINEAGE, MANIFEST, OTHER
from stored_checkpoints import run_uri


def test_each_that_does_not_fit_is_passed_over_by_name_with_what_differs(store: ObjectStore, bucket: str) -> None:
    changes = {
        "00000012-a0001": {"model_digest": OTHER},
        "00000013-a0001": {"dataset_digest": OTHER},
        "00000011-a0001": {"job": "default/other (uid 2)"},
        "00000014-a0001": {"version": 2, "shards": []},
    }
    prefix = f"{run_uri(bucket)}/checkpoints/manifests"
    for name, change in changes.items():
        store.put(f"{prefix}/{name}.json", json.dumps(json.loads(MANIFEST.model_dump_json()) | change).encode())
    storage = RunStorage.of(store, run_uri(bucket), attempt=2, lineage=LINEAGE)
    found, warnings = storage.catalogue.newest_complete(exclude=())
    assert found is None
    assert warnings == [
        f"checkpoint {name} cannot be used: {prefix}/{name}.json was {told}"
        for name, told in (
            ("00000014-a0001", "written by a newer finetune-operator (format 2, known 1): upgrade"),
            ("00000013-a0001", "trained on another data set (digest c3c3c3c3c3c3, this run's is b2b2b2b2b2b2)"),
            ("00000012-a0001", "trained from another base model (digest c3c3c3c3c3c3, this run's is a1a1a1a1a1a1)"),
            ("00000011-a0001", "saved by another job, default/other (uid 2); this one is default/mine (uid 1)"),
        )
    ]
