"""The two models that are compared, loaded by the same code. Needs torch when one is opened."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.trainer_config import Prepared, TrainerConfig
from finetune_api.v1alpha1 import ArtifactFormat, Task

from ..errors import ModelUnusableError
from ..model.fetch import fetch_model
from ..runtime import RuntimeEnv
from ..store.client import ObjectStore
from .records import Address


@dataclass(frozen=True)
class Candidate:
    """A model on this machine that is not loaded yet."""

    address: Address
    folder: Path
    """Weights and tokenizer, in Hugging Face layout."""
    adapter: Path | None = None
    """An adapter to put on top of them."""


def base_candidate(config: TrainerConfig, store: ObjectStore, cache: Path) -> Candidate:
    """The base model as it is now; `address.digest` tells whether it is the one that was prepared."""
    fetched = fetch_model(config.spec.model.uri, store, cache, offline_ok=True)
    return Candidate(Address(uri=config.spec.model.uri, digest=fetched.digest), fetched.path)


def tuned_candidate(config: TrainerConfig, prepared: Prepared, store: ObjectStore, runtime: RuntimeEnv) -> Candidate:
    """What the train stage exported: the whole model, or the adapter on the base model where only that was wanted.

    Raises ModelUnusableError where the base model of an adapter is no longer the one that was trained on.
    """
    if ArtifactFormat.MERGED in formats(config):
        fetched = fetch_model(config.model_uri, store, runtime.cache)
        return Candidate(Address(uri=config.model_uri, digest=fetched.digest), fetched.path)
    base = base_candidate(config, store, runtime.cache)
    if base.address.digest != prepared.model_digest:
        raise ModelUnusableError(
            f"{base.address.uri} has changed since the adapter was trained: its digest was "
            f"{prepared.model_digest[:12]} and is {base.address.digest[:12]}",
            advice="bring the old base model back, or change spec.runId to train on the new one",
        )
    from ..model.export import folder_digest

    uri, folder = adapter_uri(config), runtime.scratch / "evaluate" / "adapter"
    store.download_folder(uri, folder)
    (folder / "README.md").unlink(missing_ok=True)  # this stage replaces it: it is no part of the model
    return Candidate(Address(uri=uri, digest=folder_digest(folder)), base.folder, adapter=folder)


def open_model(candidate: Candidate, config: TrainerConfig, prepared: Prepared) -> Any:
    """The module on the stage's device, in evaluation mode; a new head is drawn from the run's seed."""
    from ..model.load import load_model

    model: Any = load_model(
        candidate.folder,
        task=prepared.task,
        labels=prepared.labels,
        dtype=prepared.dtype,
        seed=config.spec.training.seed,
    )
    if candidate.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(candidate.adapter))
    return model.to("cuda" if config.world.gpus else "cpu").eval()


def formats(config: TrainerConfig) -> tuple[ArtifactFormat, ...]:
    """What was exported."""
    return config.spec.output.formats or (ArtifactFormat.MERGED,)


def adapter_uri(config: TrainerConfig) -> str:
    """Folder of the exported adapter."""
    return f"{config.run_uri}/adapter"


def brings_head(candidate: Candidate, task: Task) -> bool:
    """Whether the model's configuration names an architecture that has a head for the task."""
    architectures = json.loads((candidate.folder / "config.json").read_text()).get("architectures") or ()
    return task is Task.CAUSAL_LM or any("ForSequenceClassification" in str(name) for name in architectures)
