"""Registers a promoted model in the model registry of an MLflow server, and moves the alias to it.

A version of the registered model has the address of the model in the output as its source. Every step can be repeated.
"""

import threading
from typing import Any

from ..tracking.base import described
from ..tracking.mlflow import client_of, is_installed
from .records import PromotionEntry, RegistryAddress

LIMIT_SECONDS = 30.0
"""How long a promotion waits for the server."""
DIGEST_TAG = "finetune.digest"


def register(registry: RegistryAddress, entry: PromotionEntry, *, seconds: float = LIMIT_SECONDS) -> str:
    """Register the model of an entry unless it is registered, and move the alias to its version.

    Returns a warning, or an empty string. Raises nothing: the promotion is complete without it.
    """
    if not is_installed():
        return _warning(registry, "mlflow-skinny is not installed; install finetune-operator[tracking]")
    errors: list[str] = ["the server did not answer in time"]
    abandoned = threading.Event()

    def attempt() -> None:
        try:
            _register(registry, entry, abandoned)
            errors.clear()
        except Exception as error:  # noqa: BLE001  a server or its client may raise anything
            errors[:] = [described(error)]

    # A thread, because the client retries for longer than a promotion should wait.
    thread = threading.Thread(target=attempt, name="model-registry", daemon=True)
    thread.start()
    thread.join(seconds)
    abandoned.set()
    return _warning(registry, errors[0]) if errors else ""


def _warning(registry: RegistryAddress, reason: str) -> str:
    return (
        f"the model was not registered as {registry.model}@{registry.alias} on {registry.tracking_uri}: {reason}; "
        "the next evaluation or `finetune promote` of the run repeats it"
    )


def _register(registry: RegistryAddress, entry: PromotionEntry, abandoned: threading.Event) -> None:
    client = client_of(registry.tracking_uri)
    _ensure_model(client, registry.model)
    version = _version(client, registry.model, entry)
    if abandoned.is_set():
        return  # a later promotion may have moved the alias
    client.set_registered_model_alias(registry.model, registry.alias, version)


def _ensure_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version(client: Any, name: str, entry: PromotionEntry) -> str:
    """Return the version with this source and digest; creates it if there is none."""
    # Names of the API have no quotes; in another one, a quote makes the filter invalid.
    known = client.search_model_versions(f"name='{name}'", max_results=1000)
    for version in known:
        if version.source == entry.model.uri and version.tags.get(DIGEST_TAG) == entry.model.digest:
            return str(version.version)
    tags = {
        DIGEST_TAG: entry.model.digest,
        "finetune.job": f"{entry.job.namespace}/{entry.job.name}",
        "finetune.run": str(entry.run),
        "finetune.run_uri": entry.folder,
    }
    made = client.create_model_version(name, source=entry.model.uri, tags=tags, await_creation_for=0)
    return str(made.version)
