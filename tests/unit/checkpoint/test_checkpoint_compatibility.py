"""An incompatible checkpoint is rejected with the difference."""

import contextlib
import json
from typing import Any

import pytest

from finetune_trainer.checkpoint.format.compatibility import (
    IncompatibleCheckpointError,
    NewerFormatError,
    check_lineage,
    read_manifest,
)
from finetune_trainer.checkpoint.format.manifest import digest_of, serialize
from small_manifests import LINEAGE, MANIFEST, OTHER


def document(**fields: Any) -> bytes:
    return json.dumps(json.loads(MANIFEST.model_dump_json()) | fields).encode()


def test_a_manifest_of_this_run_is_read() -> None:
    assert read_manifest(document()) == MANIFEST
    check_lineage(MANIFEST, LINEAGE)
    check_lineage(MANIFEST.model_copy(update={"job": ""}), LINEAGE)


def test_a_stored_manifest_is_read_and_no_bit_of_it_can_change() -> None:
    content = serialize(MANIFEST)
    assert read_manifest(content) == MANIFEST
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        with contextlib.suppress(IncompatibleCheckpointError):
            assert read_manifest(bytes(changed)) == MANIFEST, "except for changes that do not affect the JSON value"


def test_a_manifest_of_the_previous_format_is_read() -> None:
    assert read_manifest(document(version=1)) == MANIFEST.model_copy(update={"version": 1})


def test_a_newer_version_is_distinguished_from_damage() -> None:
    newer: dict[str, Any] = {**json.loads(document(version=3)), "shards": []}
    with pytest.raises(NewerFormatError):
        read_manifest(json.dumps(newer | {"digest": digest_of(newer)}).encode())
    with pytest.raises(
        IncompatibleCheckpointError, match="is damaged: the SHA-256 of its fields does not match its digest"
    ):
        read_manifest(serialize(MANIFEST).replace(b'"version": 2', b'"version": 3'))


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        (
            document(version=3, shards=["a field that this version does not support"]),
            "was written by a newer finetune-operator (format 3, known 1 to 2)",
        ),
        (document(version=3), "was written by a newer finetune-operator (format 3, known 1 to 2)"),
        (document(version=0), "was written by an older finetune-operator (format 0, known 1 to 2)"),
        (document(surprise=1), "is not a manifest of format 1 to 2: "),
        (document(version="x"), "is not a manifest of format 1 to 2: "),
        (b"[]", "is not a manifest of format 1 to 2: "),
        (b"{", "is not a manifest of format 1 to 2: "),
        (b"\xff", "is not a manifest of format 1 to 2: "),
    ],
)
def test_another_format_is_reported(content: bytes, reported: str) -> None:
    with pytest.raises(IncompatibleCheckpointError) as refused:
        read_manifest(content)
    assert str(refused.value).startswith(reported)


@pytest.mark.parametrize(
    ("fields", "reported"),
    [
        (
            {"job": "default/other (uid 2)"},
            "was saved by another job, default/other (uid 2); this one is default/mine (uid 1)",
        ),
        (
            {"model_digest": OTHER},
            "was trained from another base model (digest c3c3c3c3c3c3, this run's is a1a1a1a1a1a1)",
        ),
        (
            {"dataset_digest": OTHER},
            "was trained on another dataset (digest c3c3c3c3c3c3, this run's is b2b2b2b2b2b2)",
        ),
        (
            {"dataset_digest": "", "model_digest": OTHER},
            "was trained from another base model (digest c3c3c3c3c3c3, this run's is a1a1a1a1a1a1) and on another "
            "dataset (digest unknown, this run's is b2b2b2b2b2b2)",
        ),
    ],
)
def test_the_base_model_and_data_of_the_checkpoint_are_reported(fields: dict[str, str], reported: str) -> None:
    with pytest.raises(IncompatibleCheckpointError) as refused:
        check_lineage(MANIFEST.model_copy(update=fields), LINEAGE)
    assert str(refused.value) == reported
