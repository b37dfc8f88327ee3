"""Exports a trained engine to folders in Hugging Face layout in object storage."""

import json
import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from finetune_api.trainer_config import Prepared, PreparedConfig
from finetune_api.v1alpha1 import ArtifactFormat

from ..errors import ExportUnusableError
from ..methods import METHODS, FineTuningMethod
from ..methods.base import Weights
from ..store.client import ObjectStore
from ..store.digests import folder_sha256, sha256_of
from ..tasks import TASKS
from .fetch import fetch_model
from .files import CARD_FILE, files_in
from .load import load_model
from .portable import add_older_names, base_name, copy_tokenizer, keep_generation_config
from .quantize import BaseQuantization
from .quantized_formats import QUANTIZED_FORMATS, write_quantized
from .reload import reload_adapter
from .stored_weights import check_stored
from .tokenizer import load_tokenizer
from .weights import unpartitioned

log = logging.getLogger("finetune")

_LAST_FILE = {
    ArtifactFormat.MERGED: "config.json",
    ArtifactFormat.ADAPTER: "adapter_config.json",
}
"""The file that is uploaded last: a folder without it is incomplete. Formats with quantized weights name their own."""


@dataclass(frozen=True)
class Exported:
    """Address and digest of the export."""

    uri: str
    """Folder of the merged model, or of the adapter if there is no merged model."""
    digest: str
    """Result of `folder_digest`."""


def export(
    model: nn.Module, *, config: PreparedConfig, base: Path, store: ObjectStore, scratch: Path
) -> Exported | None:
    """Gather the weights, write the folders on rank 0 and upload them. Collective; returns None on the other ranks.

    `model` is the trained module as the method's `apply` has returned it, at any ZeRO stage. Objects of an earlier
    export of the run are replaced; obsolete ones are deleted after the upload. Formats with quantized weights are
    deleted: the evaluate stage makes them from the new export.
    """
    formats, method = config.spec.output.formats, METHODS[config.spec.method.name]
    weights = gathered_weights(model, method)
    if dist.get_rank() != 0:
        return None
    exported: dict[ArtifactFormat, Exported] = {}
    # Every other format can be made later from an adapter, which is small, or from the complete model.
    kept = ArtifactFormat.ADAPTER if method.is_adapter else ArtifactFormat.MERGED
    for artifact in ArtifactFormat:
        if artifact.is_quantized:
            _delete(store, config.layout.artifact(artifact))
    for artifact in dict.fromkeys((*(one for one in formats if not one.is_quantized), kept)):
        folder = scratch / "export" / artifact.value.lower()
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(artifact, model, weights, folder, config=config, base=base)
        uri = config.layout.artifact(artifact)
        exported[artifact] = Exported(uri=uri, digest=folder_digest(folder))
        _replace(store, folder, uri, _last_files(config, artifact))
        shutil.rmtree(folder)
    return exported.get(ArtifactFormat.MERGED) or exported[kept]


def export_missing(config: PreparedConfig, store: ObjectStore, *, base: Path, scratch: Path) -> list[ArtifactFormat]:
    """Export the formats of the spec without quantized weights that storage does not have, from the adapter that the
    train stage left.

    Therefore a format that is added to the spec of a finished run needs no training. Returns the exported formats.
    Raises ExportUnusableError if there is no adapter to make a format from.
    """
    wanted = (artifact for artifact in config.spec.output.formats if not artifact.is_quantized)
    missing = [artifact for artifact in wanted if not is_exported(config, store, artifact)]
    for artifact in missing:
        folder = scratch / "export" / artifact.value.lower()
        _write_from_adapter(artifact, folder, config, store, base, scratch)
        _replace(store, folder, config.layout.artifact(artifact), _last_files(config, artifact))
        shutil.rmtree(folder)
    return missing


def complete_model(config: PreparedConfig, store: ObjectStore, *, base: Path, cache: Path, scratch: Path) -> Path:
    """The trained model as a local folder in Hugging Face layout: the format Merged if storage has it, otherwise the
    base model with the adapter.

    Raises ExportUnusableError if storage has neither.
    """
    if is_exported(config, store, ArtifactFormat.MERGED):
        return fetch_model(config.model_uri, store, cache).path
    folder = scratch / "export" / "complete"
    _write_from_adapter(ArtifactFormat.MERGED, folder, config, store, base, scratch)
    return folder


def export_quantized(config: PreparedConfig, store: ObjectStore, *, source: Path, scratch: Path) -> None:
    """Export the formats of the spec with quantized weights that storage does not have. `source` is the result of
    `complete_model`."""
    for artifact in config.spec.output.formats:
        if not artifact.is_quantized or is_exported(config, store, artifact):
            continue
        folder = scratch / "export" / artifact.value.lower()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_quantized(artifact, source, folder, config, scratch=scratch / "export")
        (folder / CARD_FILE).write_text(_card(config, artifact))
        uri, last = config.layout.artifact(artifact), _last_files(config, artifact)
        if _is_complete(store, uri, last):  # of another kind, which must not look complete with files of this one
            _delete(store, uri)
        _replace(store, folder, uri, last)
        shutil.rmtree(folder)


def is_exported(config: PreparedConfig, store: ObjectStore, artifact: ArtifactFormat) -> bool:
    """Whether storage has the complete folder of a format, that is, the files that are uploaded last, as the spec
    requests it."""
    folder = config.layout.artifact(artifact)
    if not _is_complete(store, folder, _last_files(config, artifact)):
        return False
    return not artifact.is_quantized or QUANTIZED_FORMATS[artifact].is_current(config.spec, folder, store)


def _is_complete(store: ObjectStore, folder: str, last: tuple[str, ...]) -> bool:
    return all(store.exists(f"{folder}/{name}") for name in last)


def _last_files(config: PreparedConfig, artifact: ArtifactFormat) -> tuple[str, ...]:
    if artifact.is_quantized:
        return QUANTIZED_FORMATS[artifact].last_files(config.spec)
    return (_LAST_FILE[artifact],)


def _write_from_adapter(
    artifact: ArtifactFormat, folder: Path, config: PreparedConfig, store: ObjectStore, base: Path, scratch: Path
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    adapted = _from_adapter(artifact, config, store, base, scratch / "export" / "source")
    merged, own = METHODS[config.spec.method.name].merge(adapted)
    _save_merged(merged, own, folder, base)
    _complete(folder, artifact, config, base)


def _from_adapter(
    artifact: ArtifactFormat, config: PreparedConfig, store: ObjectStore, base: Path, folder: Path
) -> Any:
    """The base model with the run's adapter."""
    prepared, method = config.prepared, METHODS[config.spec.method.name]
    uri = config.layout.artifact(ArtifactFormat.ADAPTER)
    if (
        artifact is ArtifactFormat.ADAPTER
        or not method.is_adapter
        or not is_exported(config, store, ArtifactFormat.ADAPTER)
    ):
        raise ExportUnusableError(
            f"{config.layout.artifact(artifact)} is not in storage, and the run has no adapter to make it from",
            advice=f"change spec.runNonce to train and export again, or remove {artifact} from spec.output.formats",
        )
    shutil.rmtree(folder, ignore_errors=True)
    store.download_folder(uri, folder)
    # Not the head that training started with: the adapter must contain what the base model lacks.
    fresh = _base_to_merge(config, base, seed=config.spec.training.seed + 1)
    return reload_adapter(fresh, folder, uri, prepared, method)


def write_folder(
    artifact: ArtifactFormat, model: nn.Module, weights: Weights, folder: Path, *, config: PreparedConfig, base: Path
) -> None:
    """Write a folder with the trained model in one format without quantized weights. Not collective.

    `weights` is the result of `gathered_weights` and is not changed.
    """
    assert not artifact.is_quantized, "made from the complete model"
    folder.mkdir(parents=True)
    if artifact is ArtifactFormat.ADAPTER:
        _write_adapter(model, weights, folder, config, config.prepared, base)
    else:
        _write_merged(model, weights, folder, config, config.prepared, base)
    _complete(folder, artifact, config, base)


def _complete(folder: Path, artifact: ArtifactFormat, config: PreparedConfig, base: Path) -> None:
    """Add the files that do not depend on the weights."""
    task = TASKS[config.prepared.task]
    copy_tokenizer(base, folder, pad_token=load_tokenizer(base).pad_token if task.needs_pad_token else None)
    (folder / CARD_FILE).write_text(_card(config, artifact))


def gathered_weights(model: nn.Module, method: FineTuningMethod[Any]) -> Weights:
    """Return parameters and persistent buffers by name, each tied one once, on rank 0, and an empty dict elsewhere.

    Collective under ZeRO-3, where one parameter at a time is gathered. For an adapter, only trained parameters.
    """
    weights: Weights = {}
    main = dist.get_rank() == 0
    for name, parameter in model.named_parameters():
        if method.is_adapter and not parameter.requires_grad:
            continue
        with _unpartitioned(parameter):
            if main:
                weights[name] = parameter.detach().to("cpu", copy=True).contiguous()
    if main:
        persistent = model.state_dict(keep_vars=True)
        for name, value in model.named_buffers():
            if name in persistent and method.has_buffer(name):
                weights[name] = value.detach().cpu()
    return weights


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 over the names and content digests of all files except for the model card.

    The evaluate stage replaces the card. For a full model, the digest equals that of `fetch_model`, so that it can be
    verified after a download.
    """
    return folder_sha256((name, sha256_of(folder / name)) for name in files_in(folder) - {CARD_FILE})


@contextmanager
def _unpartitioned(parameter: nn.Parameter) -> Iterator[None]:
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield


def _write_merged(
    model: nn.Module, weights: Weights, folder: Path, config: PreparedConfig, prepared: Prepared, base: Path
) -> None:
    def load_base() -> PreTrainedModel:
        return _base_to_merge(config, base, seed=config.spec.training.seed)

    spec = config.spec.method
    with unpartitioned():
        merged, own = METHODS[spec.name].merged(model, weights, spec.block, TASKS[prepared.task], load_base)
    _save_merged(merged, own, folder, base)


def _base_to_merge(config: PreparedConfig, base: Path, *, seed: int) -> PreTrainedModel:
    """The base model on the CPU. If it was quantized in training, with the quantized values: an adapter has learned to
    correct these, and not the original ones."""
    prepared, kind = config.prepared, config.spec.model.quantization
    device = "cuda" if config.world.gpus else "cpu"
    return load_model(
        base,
        task=prepared.task,
        labels=prepared.labels,
        dtype=prepared.dtype,
        seed=seed,
        quantization=BaseQuantization.of(kind, device, dequantized=True),
    )


def _save_merged(merged: PreTrainedModel, own: Weights, folder: Path, base: Path) -> None:
    _restore_cache(merged, base)
    merged.save_pretrained(folder, state_dict=dict(own))  # a copy, because transformers removes what it has written
    check_stored(folder, own)
    keep_generation_config(base, folder)
    add_older_names(folder, base)


def _write_adapter(
    model: nn.Module, weights: Weights, folder: Path, config: PreparedConfig, prepared: Prepared, base: Path
) -> None:
    method = METHODS[config.spec.method.name]
    name, revision = base_name(config.spec.model.uri)
    # The commit that was trained on: a branch or tag in the address may point to another one later.
    written = method.save_adapter(model, weights, folder, base=name, revision=prepared.model_revision or revision)
    check_stored(folder, written)
    if TASKS[prepared.task].has_labels:
        # The base model's configuration has other labels or none, and users of the adapter would get wrong names.
        adapted = method.unwrapped(model)
        _restore_cache(adapted, base)
        adapted.config.save_pretrained(folder)
        add_older_names(folder, base)


def _restore_cache(model: PreTrainedModel, base: Path) -> None:
    """Restore the setting of the base model for generation; training has disabled the cache."""
    original = AutoConfig.from_pretrained(base)
    if hasattr(original, "use_cache"):
        model.config.use_cache = original.use_cache


def _card(config: PreparedConfig, artifact: ArtifactFormat) -> str:
    """Return a preliminary model card, which the evaluate stage replaces by one with metrics."""
    name = base_name(config.spec.model.uri)[0]
    library = "peft" if artifact is ArtifactFormat.ADAPTER else "transformers"
    return (
        f"---\nbase_model: {json.dumps(name, ensure_ascii=False)}\nlibrary_name: {library}\n---\n\n"
        f"# {config.job.name}\n\nFine-tuned from `{config.spec.model.uri}` by run {config.run_name}, with "
        f"transformers {version('transformers')} and PEFT {version('peft')}.\n"
    )


def _replace(store: ObjectStore, folder: Path, uri: str, last: tuple[str, ...]) -> None:
    """Upload a folder, the files `last` at the end, and delete what an earlier export has left there."""
    others = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in last]
    jobs = [(path, f"{uri}/{path.relative_to(folder).as_posix()}") for path in others]
    store.upload_files(jobs)
    for name in last:
        store.upload(folder / name, f"{uri}/{name}")
    written = {*(f"{uri}/{name}" for name in last), *(address for _, address in jobs)}
    _delete(store, uri, kept=written)
    log.info("exported %d files to %s", len(written), uri)


def _delete(store: ObjectStore, uri: str, kept: Collection[str] = ()) -> None:
    for stale in [info.uri for info in store.list(f"{uri}/") if info.uri not in kept]:
        store.delete(stale)
