"""`runs/<run>/run.json`: the record of a run, written by its prepare stage and read by the later stages.

The record is in storage and not in the configuration of the later stages, so that their configuration depends on the
job alone: `finetune render` prints exactly what the operator creates, and no result is lost while the operator is down.
"""

from importlib import metadata

from finetune_api.redaction import without_secrets
from finetune_api.trainer_config import Exchanged, JobRef, Message, Prepared, TrainerConfig
from finetune_api.v1alpha1 import Spec

from .store.client import ObjectStore

_RECORDED_LIBRARIES = ("finetune-operator", "torch", "transformers", "deepspeed", "peft", "accelerate")


class RunRecord(Message):
    """Everything that determines the result of a run."""

    job: JobRef
    run: int
    spec: Spec
    prepared: Prepared
    versions: dict[str, str]
    """Distribution -> version, of the libraries that affect numerical results."""


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


def versions() -> dict[str, str]:
    """Return the versions of the libraries that affect numerical results."""
    found = {name: _version(name) for name in _RECORDED_LIBRARIES}
    return {name: version for name, version in found.items() if version}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""  # run from a source tree that is not installed
