"""Loads the base model and the exported folders. Imports torch when a model is opened."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.trainer_config import Prepared, PreparedConfig, TrainerConfig
from finetune_api.v1alpha1 import ArtifactFormat

from ..methods import METHODS
from ..model.fetch import ModelFile, fetch_model, original_model, prepared_model
from ..model.files import CARD_FILE
from ..runtime import RuntimeEnv
from ..store.client import ObjectStore
from ..store.digests import sha256_of
from ..tasks import TASKS
from .records import Address

if TYPE_CHECKING:  # imports torch
    from ..model.quantized_formats import QuantizedExport


@dataclass(frozen=True)
class Candidate:
    """A model on local disk that is not loaded yet."""

    address: Address
    folder: Path
    """Weights and tokenizer, in Hugging Face layout."""
    adapter: Path | None = None
    """An exported adapter that is applied to them, if any."""
    exported: bool = False
    """Written by the train stage: the folder must load by itself, with all weights."""
    is_own: bool = True
    """False: neither base model nor trained model of this run, so that it is not compared with the latter and is not
    asked the prompts."""
    has_new_tokens: bool = True
    """False: the base model without the tokens of `spec.model.vocabulary`."""
    files: tuple[ModelFile, ...] = ()
    """Files of an exported complete model."""
    change: Callable[[Any], None] | None = None
    """Changes the loaded model."""
    quantized: "QuantizedExport | None" = None
    """An export with quantized weights."""
    source: Path | None = None
    """The trained model that it was made from, in Hugging Face layout, with its tokenizer."""

    @property
    def tokenizer(self) -> Path:
        """Folder with the tokenizer."""
        return self.source or self.adapter or self.folder


def base_candidate(config: PreparedConfig, store: ObjectStore, runtime: RuntimeEnv) -> Candidate:
    """The base model as it is at `spec.model.uri`."""
    model = original_model(config, store, runtime)
    return Candidate(Address(uri=config.spec.model.uri, digest=model.digest), model.path, has_new_tokens=False)


def exported_candidates(config: PreparedConfig, store: ObjectStore, runtime: RuntimeEnv) -> tuple[Candidate, ...]:
    """The exports of the train stage, one candidate per format; the first one is evaluated. If all formats of the spec
    have quantized weights, the one that they are made from."""
    formats = {artifact for artifact in config.spec.output.formats if not artifact.is_quantized}
    if not formats:
        is_adapter = METHODS[config.spec.method.name].is_adapter
        formats = {ArtifactFormat.ADAPTER if is_adapter else ArtifactFormat.MERGED}
    found = []
    if ArtifactFormat.MERGED in formats:
        found.append(complete_candidate(config.model_uri, store, runtime))
    if ArtifactFormat.ADAPTER in formats:
        found.append(_adapter_candidate(config, store, runtime))
    return tuple(found)


def quantized_candidates(
    config: PreparedConfig, store: ObjectStore, runtime: RuntimeEnv, source: Path
) -> Iterator[Candidate]:
    """The exports with quantized weights, downloaded from storage. `source` is the folder that they were made from."""
    from ..model.quantized_formats import quantized_exports

    downloaded: dict[str, Path] = {}
    for export in quantized_exports(config.spec):
        artifact = export.artifact
        if artifact not in downloaded:
            downloaded[artifact] = runtime.scratch / "evaluate" / artifact.lower()
            store.download_folder(config.layout.artifact(artifact), downloaded[artifact])
            (downloaded[artifact] / CARD_FILE).unlink(missing_ok=True)
        folder, uri = downloaded[artifact], export.uri(config)
        address = Address(uri=uri, digest=_digest(export.path(folder)))
        yield Candidate(address, folder, exported=True, quantized=export, source=source)


def _digest(path: Path) -> str:
    from ..model.export import folder_digest

    return folder_digest(path) if path.is_dir() else sha256_of(path)


def complete_candidate(uri: str, store: ObjectStore, runtime: RuntimeEnv, *, is_own: bool = True) -> Candidate:
    """The exported complete model of this run, or of another one of the same output."""
    fetched = fetch_model(uri, store, runtime.cache)
    address = Address(uri=uri, digest=fetched.digest)
    return Candidate(address, fetched.path, exported=True, is_own=is_own, files=fetched.listing.files)


def _adapter_candidate(config: PreparedConfig, store: ObjectStore, runtime: RuntimeEnv) -> Candidate:
    base = prepared_model(config, store, runtime)
    from ..model.export import folder_digest

    uri, folder = config.layout.artifact(ArtifactFormat.ADAPTER), runtime.scratch / "evaluate" / "adapter"
    store.download_folder(uri, folder)
    (folder / "README.md").unlink(missing_ok=True)  # not part of the model: this stage replaces it
    return Candidate(Address(uri=uri, digest=folder_digest(folder)), base.path, adapter=folder, exported=True)


def open_model(candidate: Candidate, config: TrainerConfig, prepared: Prepared) -> Any:
    """Load the model on the stage's device, in evaluation mode.

    A new head of the base model is initialized with the run's seed. The base model is quantized if it was in training.
    Raises ExportUnusableError if an exported folder
    does not load by itself with all of its weights.
    """
    from ..model.load import load_model
    from ..model.quantize import BaseQuantization
    from ..model.reload import reload_adapter, reload_model

    device, kind = "cuda" if config.world.gpus else "cpu", config.spec.model.quantization
    if candidate.quantized is not None:
        return candidate.quantized.reload(candidate.folder, candidate.address.uri, prepared, device)
    if candidate.exported and candidate.adapter is None:
        model = reload_model(candidate.folder, candidate.address.uri, prepared)
    else:
        # Initialized differently from the head in training: the adapter must contain what the base model lacks.
        seed = config.spec.training.seed + (candidate.adapter is not None)
        model = load_model(
            candidate.folder,
            task=prepared.task,
            labels=prepared.labels,
            dtype=prepared.dtype,
            seed=seed,
            quantization=BaseQuantization.of(kind, device),
        )
        if candidate.adapter is not None:
            model = reload_adapter(
                model, candidate.adapter, candidate.address.uri, prepared, METHODS[config.spec.method.name]
            )
    if candidate.change is not None:
        candidate.change(model)
    return model.to(device).eval()


def random_head_reason(candidate: Candidate, prepared: Prepared) -> str:
    """Return why the output layer of the model is randomly initialized, or an empty string if it is not."""
    if not TASKS[prepared.task].may_draw_head:
        return ""
    from ..model.weights import plan_weights

    plan = plan_weights(candidate.folder, candidate.address.uri, prepared.task, prepared.labels)
    if plan.has_head:
        return ""
    return "has other labels than the data" if plan.labels.note else "has no classification head"
