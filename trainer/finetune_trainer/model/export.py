"""From a trained engine to folders in Hugging Face layout, in object storage."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import ArtifactFormat

from ..errors import ModelUnusableError
from ..store.client import ObjectStore
from ..tasks import TASKS
from .adapters import with_adapter
from .files import files_in
from .load import load_model
from .portable import add_older_names, base_name, copy_tokenizer, keep_generation_config
from .tokenizer import load_tokenizer
from .weights import unpartitioned

log = logging.getLogger("finetune")

Weights = dict[str, torch.Tensor]

CARD_FILE = "README.md"
_KEPT_WHOLE = ".modules_to_save."
"""Part of the names of what PEFT trains itself, without an adapter."""


@dataclass(frozen=True)
class Exported:
    """What the export leaves in object storage."""

    uri: str
    """Folder of the merged model, or of the adapter if it is the only format."""
    digest: str
    """As `folder_digest` computes it."""


def export(
    model: nn.Module, *, config: TrainerConfig, base: Path, store: ObjectStore, scratch: Path
) -> Exported | None:
    """Gather the weights, write the folders on rank 0 and upload them. Collective; None on the other ranks.

    `model` is the module that was trained, with or without adapters, at any ZeRO stage. Objects of an earlier export
    of the run are replaced, and those that no longer belong are deleted once the new ones are there.
    """
    formats = config.spec.output.formats
    weights = gathered_weights(model, trainable_only=isinstance(model, PeftModel))
    if dist.get_rank() != 0:
        return None
    exported: dict[ArtifactFormat, Exported] = {}
    for artifact in formats:
        folder = scratch / "export" / artifact.value.lower()
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(artifact, model, weights, folder, config=config, base=base)
        uri = config.layout.artifact(artifact)
        exported[artifact] = Exported(uri=uri, digest=folder_digest(folder))
        _replace(store, folder, uri)
        shutil.rmtree(folder)
    return exported.get(ArtifactFormat.MERGED) or exported[formats[0]]


def write_folder(
    artifact: ArtifactFormat, model: nn.Module, weights: Weights, folder: Path, *, config: TrainerConfig, base: Path
) -> None:
    """Make a folder that holds the trained model in one format. Needs no other rank, and leaves `weights` as they are.

    `weights` are what `gathered_weights` gives: of a PEFT model the trained parameters, else all.
    """
    folder.mkdir(parents=True)
    if artifact is ArtifactFormat.ADAPTER:
        _write_adapter(model, weights, folder, config, base=base)
    elif isinstance(model, PeftModel):
        merged = _merged(model, weights, config, base)
        _write_model(merged, _own_weights(merged), folder, base=base)
    else:
        assert isinstance(model, PreTrainedModel)
        _write_model(model, dict(weights), folder, base=base)
    needs_pad_token = config.prepared is not None and TASKS[config.prepared.task].needs_pad_token
    copy_tokenizer(base, folder, pad_token=load_tokenizer(base).pad_token if needs_pad_token else None)
    (folder / CARD_FILE).write_text(_card(config, artifact))


def gathered_weights(model: nn.Module, *, trainable_only: bool) -> Weights:
    """Parameters and persistent buffers by name, each once (tied names are left out). Full on rank 0, else empty.

    Collective under ZeRO-3, where one parameter at a time is put together. With `trainable_only` the buffers are those
    of modules that an adapter brings whole.
    """
    weights: Weights = {}
    main = dist.get_rank() == 0
    for name, parameter in model.named_parameters():
        if trainable_only and not parameter.requires_grad:
            continue
        with _whole(parameter):
            if main:
                weights[name] = parameter.detach().to("cpu", copy=True).contiguous()
    if main:
        persistent = model.state_dict(keep_vars=True)
        for name, value in model.named_buffers():
            if name in persistent and (not trainable_only or _KEPT_WHOLE in name):
                weights[name] = value.detach().cpu()
    return weights


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and content digests of all files but the card, which the evaluate stage replaces.

    For a whole model the same number as `fetch_model` finds, so whoever downloads it can compare.
    """
    whole = hashlib.sha256()
    for name in sorted(files_in(folder) - {CARD_FILE}):
        with (folder / name).open("rb") as file:
            whole.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


@contextmanager
def _whole(parameter: nn.Parameter) -> Iterator[None]:
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield


def _merged(model: PeftModel, weights: Weights, config: TrainerConfig, base: Path) -> PreTrainedModel:
    """A fresh base model with the adapter folded into its matrices."""
    prepared, lora = config.prepared, config.spec.method.lora
    assert prepared is not None
    assert lora is not None, "only LoRA makes a PEFT model"
    with unpartitioned():
        fresh = load_model(
            base, task=prepared.task, labels=prepared.labels, dtype=prepared.dtype, seed=config.spec.training.seed
        )
        adapted = with_adapter(fresh, lora, prepared.task)
    trained = adapter_weights(model, weights)
    expected = adapter_weights(adapted)
    if trained.keys() != expected.keys():
        differing = sorted(trained.keys() ^ expected.keys())
        raise ModelUnusableError(
            f"{config.spec.model.uri} gives an adapter with other weights at the export than in training: "
            f"{len(differing)} names differ, first {', '.join(differing[:3])}",
            advice="keep the base model's files as they are while a run uses them",
        )
    set_peft_model_state_dict(adapted, trained)
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def _own_weights(model: PreTrainedModel) -> Weights:
    """Parameters and persistent buffers of an unpartitioned model, tied names once."""
    persistent = model.state_dict(keep_vars=True)
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: value.detach().cpu().contiguous() for name, value in named.items() if name in persistent}


def adapter_weights(model: PeftModel, weights: Weights | None = None) -> dict[str, Any]:
    """The adapter's part of `weights`, else of the model's own, under the names of PEFT's files."""
    return dict(get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False))


def _write_model(model: PreTrainedModel, weights: Weights, folder: Path, *, base: Path) -> None:
    _restore_cache(model, base)
    model.save_pretrained(folder, state_dict=weights)
    keep_generation_config(base, folder)
    add_older_names(folder, base)


def _restore_cache(model: PreTrainedModel, base: Path) -> None:
    """Training switched it off; generation wants what the base model had."""
    original = AutoConfig.from_pretrained(base)
    if hasattr(original, "use_cache"):
        model.config.use_cache = original.use_cache


def _write_adapter(model: nn.Module, weights: Weights, folder: Path, config: TrainerConfig, *, base: Path) -> None:
    assert isinstance(model, PeftModel), "rules.py lets Adapter through only with method.lora"
    configuration = model.active_peft_config
    name, revision = base_name(config.spec.model.uri)
    # The commit that was trained on, whatever the branch or tag in the address means later.
    commit = config.prepared.model_revision if config.prepared else ""
    configuration.base_model_name_or_path, configuration.revision = name, commit or revision
    # PEFT would ask the hub whether the embeddings of the base model have another size.
    model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    if config.prepared is not None and TASKS[config.prepared.task].has_labels:
        # The base model's configuration has other labels, or none; whoever loads the adapter would name the wrong ones.
        adapted: Any = model.get_base_model()
        _restore_cache(adapted, base)
        adapted.config.save_pretrained(folder)
        add_older_names(folder, base)


def _card(config: TrainerConfig, artifact: ArtifactFormat) -> str:
    """A model card until the evaluate stage writes one with figures."""
    name = base_name(config.spec.model.uri)[0]
    library = "peft" if artifact is ArtifactFormat.ADAPTER else "transformers"
    return (
        f"---\nbase_model: {json.dumps(name, ensure_ascii=False)}\nlibrary_name: {library}\n---\n\n"
        f"# {config.job.name}\n\nFine-tuned from `{config.spec.model.uri}` by run {config.run_name}, with "
        f"transformers {version('transformers')} and PEFT {version('peft')}.\n"
    )


def _replace(store: ObjectStore, folder: Path, uri: str) -> None:
    written = set(store.upload_folder(folder, uri))
    for stale in [info.uri for info in store.list(f"{uri}/") if info.uri not in written]:
        store.delete(stale)
    log.info("exported %d files to %s", len(written), uri)
