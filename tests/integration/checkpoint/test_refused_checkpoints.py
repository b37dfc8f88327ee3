"""Checkpoints that are not to be used: refused by name, with what differs."""

import json
from typing import Any

import pytest

from finetune_api.trainer_config import Prepared
from finetune_trainer.checkpoint.manifest import Manifest
from finetune_trainer.checkpoint.places import RunStorage
from finetune_trainer.store import ObjectStore
from train_configs import train_config

MANIFEST: dict[str, Any] = Manifest(
    step=4,
    attempt=1,
    run=1,
    time="2026-01-01T00:00:00Z",
    world_size=1,
    zero_stage=2,
    blob_bytes=64,
    parts=(),
    state="",
    dataset_digest="d",
    model_digest="m",
).model_dump(mode="json")


REFUSALS = [
    pytest.param(
        {"model_digest": "0123456789abcdef"},
        "belongs to another training: its base model has digest 0123456789ab, this run's has m",
        id="another base model",
    ),
    pytest.param({"dataset_digest": ""}, "its data set has digest none, this run's has d", id="another data set"),
    pytest.param(
        {"version": 2, "sparse": True},
        "was written by a newer version of finetune-operator: its format is 2, known is 1",
        id="a newer format, with fields that are not known",
    ),
    pytest.param({"version": "x"}, "was written by another version", id="a format of another name"),
    pytest.param({"step": "four"}, "is not a manifest of version 1", id="a field that makes no sense"),
]


@pytest.mark.parametrize(("change", "told"), REFUSALS)
def test_a_checkpoint_that_is_not_this_runs_is_refused_by_name(
    store: ObjectStore, bucket: str, change: dict[str, Any], told: str
) -> None:
    prepared: Prepared | None = train_config().prepared
    storage = RunStorage.of(store, f"s3://{bucket}/run", attempt=2, prepared=prepared)
    uri = storage.catalogue.uri_of("00000004-a0001")
    store.put(uri, json.dumps(MANIFEST | change).encode())
    found, warnings = storage.catalogue.newest_complete(exclude=())
    assert found is None
    assert len(warnings) == 1
    assert uri in warnings[0]
    assert told in warnings[0]


def test_what_is_no_json_is_no_manifest(store: ObjectStore, bucket: str) -> None:
    storage = RunStorage.of(store, f"s3://{bucket}/run", attempt=2)
    store.put(storage.catalogue.uri_of("00000004-a0001"), b"\x80\x04 a pickle, for all we know")
    found, warnings = storage.catalogue.newest_complete(exclude=())
    assert (found, len(warnings)) == (None, 1)
    assert "is not a manifest of version 1" in warnings[0]
