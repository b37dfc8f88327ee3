"""`runs/<run>/run.json`: the record of a run, written by its prepare stage and read by the later stages.

The record is in storage and not in the configuration of the later stages, so that their configuration depends on the
job alone: `finetune render` prints exactly what the operator creates, and no result is lost while the operator is down.
"""

import json
from importlib import metadata
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from finetune_api.redaction import without_secrets
from finetune_api.trainer_config import Exchanged, JobRef, Message, Prepared, TrainerConfig
from finetune_api.v1alpha1 import Spec

from .errors import StorageProtocolError
from .failures import first_fault
from .learning_rate import ChosenRate
from .micro_batch import MeasuredMicroBatch
from .store.client import ObjectStore

Record = TypeVar("Record", bound=BaseModel)

_MAX_BYTES = 8 << 20

_RECORDED_LIBRARIES = ("finetune-operator", "torch", "transformers", "deepspeed", "peft", "accelerate")


class RunRecord(Message):
    """Everything that determines the result of a run."""

    job: JobRef
    run: int
    spec: Spec
    prepared: Prepared
    versions: dict[str, str]
    """Distribution -> version, of the libraries that affect numerical results."""
    learning_rate: float | None = None
    """Rate that the train stage has chosen. Absent: the spec has one, or the training has not begun."""


class PreparedRun(Exchanged):
    """The part of the record that later stages read. The rest may have been written by an adjacent version."""

    prepared: Prepared


def record_run(store: ObjectStore, config: TrainerConfig, prepared: Prepared) -> None:
    """Write the record, without values of environment variables. Replaces an earlier record of the same run."""
    spec = without_secrets(config.spec)
    record = RunRecord(job=config.job, run=config.run, spec=spec, prepared=prepared, versions=versions())
    content = record.model_dump_json(indent=1, exclude_defaults=True).encode()
    store.put(config.layout.record, content, content_type="application/json")


def read_record(store: ObjectStore, config: TrainerConfig) -> PreparedRun:
    """Read the record of the configured run. Raises ObjectMissingError if the prepare stage has not succeeded."""
    return PreparedRun.model_validate_json(store.get(config.layout.record))


def read_chosen_rate(store: ObjectStore, config: TrainerConfig) -> ChosenRate | None:
    """Read the learning rate that an attempt of the run has chosen; None if there is none.

    Raises StorageProtocolError if the object is not such a record.
    """
    advice = "use the trainer image that wrote it, or change spec.runNonce to start a new run"
    return _read(store, config.layout.learning_rate, ChosenRate, "a chosen learning rate", advice)


def read_micro_batch(store: ObjectStore, uri: str) -> MeasuredMicroBatch | None:
    """Read the micro-batch that an attempt of the run has measured; None if there is none.

    Raises StorageProtocolError if the object is not such a record.
    """
    advice = "use the trainer image that wrote it, or set spec.training.microBatchSize"
    return _read(store, uri, MeasuredMicroBatch, "a measured micro-batch", advice)


def _read(store: ObjectStore, uri: str, kind: type[Record], what: str, advice: str) -> Record | None:
    found = store.get_version(uri, most_bytes=_MAX_BYTES)
    try:
        return None if found is None else kind.model_validate_json(found.content)
    except ValidationError as error:
        raise StorageProtocolError(f"{uri} is not {what}: {first_fault(error)}", advice=advice) from None


def record_chosen_rate(store: ObjectStore, config: TrainerConfig, chosen: ChosenRate) -> None:
    """Add the learning rate to the record of the run, unless it is there."""
    found = store.get_version(config.layout.record, most_bytes=_MAX_BYTES)
    if found is None:
        return
    document = json.loads(found.content)
    if document.get("learning_rate") != chosen.learning_rate:
        content = json.dumps(document | {"learning_rate": chosen.learning_rate}, indent=1, ensure_ascii=False)
        store.put(config.layout.record, content.encode(), content_type="application/json")


def versions() -> dict[str, str]:
    """Return the versions of the libraries that affect numerical results."""
    found = {name: _version(name) for name in _RECORDED_LIBRARIES}
    return {name: version for name, version in found.items() if version}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""  # run from a source tree that is not installed
