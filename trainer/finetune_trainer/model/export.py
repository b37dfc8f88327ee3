"""From a trained engine to a model folder in Hugging Face layout, in object storage."""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.integrations import deepspeed as hf_deepspeed

from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import ArtifactFormat

from ..store.client import ObjectStore
from .adapters import with_adapter
from .load import load_model
from .tokenizer import load_tokenizer

log = logging.getLogger("finetune")

MODEL_FOLDER, ADAPTER_FOLDER = "model", "adapter"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class Exported:
    """What the export leaves in object storage."""

    uri: str
    """`{run_uri}/model`, or `{run_uri}/adapter` where only the adapter was asked for."""
    digest: str
    """As `folder_digest` computes it."""


def export(
    model: nn.Module, *, config: TrainerConfig, base: Path, store: ObjectStore, scratch: Path
) -> Exported | None:
    """Gather the weights, write the folders on rank 0 and upload them. Collective; None on the other ranks.

    `model` is the module that was trained, with or without adapters, at any ZeRO stage. Objects of an earlier export
    of the run are replaced, and those that no longer belong are deleted once the new ones are there.
    """
    formats = config.spec.output.formats or (ArtifactFormat.MERGED,)
    weights = gathered_weights(model, trainable_only=isinstance(model, PeftModel))
    if dist.get_rank() != 0:
        return None
    exported: dict[ArtifactFormat, Exported] = {}
    for form in formats:
        folder = scratch / "export" / form.value.lower()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if form is ArtifactFormat.ADAPTER:
            _write_adapter(model, weights, folder, base_uri=config.spec.model.uri)
        else:
            _write_model(_merged(model, weights, config, base), weights, folder, base=base)
            (folder / CARD_FILE).write_text(_card(config))
        load_tokenizer(base).save_pretrained(folder)
        name = ADAPTER_FOLDER if form is ArtifactFormat.ADAPTER else MODEL_FOLDER
        exported[form] = Exported(uri=f"{config.run_uri}/{name}", digest=folder_digest(folder))
        _replace(store, folder, exported[form].uri)
        shutil.rmtree(folder)
    return exported.get(ArtifactFormat.MERGED) or exported[formats[0]]


def gathered_weights(model: nn.Module, *, trainable_only: bool) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name, each once (tied names are left out). Full on rank 0, else empty.

    Collective under ZeRO-3, where one parameter at a time is put together.
    """
    weights: dict[str, torch.Tensor] = {}
    main = dist.get_rank() == 0
    for name, parameter in model.named_parameters():
        if trainable_only and not parameter.requires_grad:
            continue
        with _whole(parameter):
            if main:
                weights[name] = parameter.detach().to("cpu", copy=True).contiguous()
    if main and not trainable_only:
        persistent = model.state_dict(keep_vars=True)
        weights |= {name: value.detach().cpu() for name, value in model.named_buffers() if name in persistent}
    return weights


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and content digests of all files but the card, which the evaluate stage replaces.

    For a whole model the same number as `fetch_model` finds, so whoever downloads it can compare.
    """
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name == CARD_FILE:
            continue
        with path.open("rb") as file:
            whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


@contextmanager
def _whole(parameter: nn.Parameter) -> Iterator[None]:
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield


@contextmanager
def _without_zero3() -> Iterator[None]:
    """Models built inside are ordinary ones: transformers would partition them on rank 0 alone."""
    before = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = before


def _merged(model: nn.Module, weights: dict[str, torch.Tensor], config: TrainerConfig, base: Path) -> PreTrainedModel:
    """The module itself, or a fresh base with the adapters folded into its matrices (rank 0 only)."""
    if not isinstance(model, PeftModel):
        assert isinstance(model, PreTrainedModel)
        return model
    prepared, lora = config.prepared, config.spec.method.lora
    assert prepared is not None
    assert lora is not None, "only LoRA makes a PEFT model"
    with _without_zero3():
        fresh = load_model(
            base, task=prepared.task, labels=prepared.labels, dtype=prepared.dtype, seed=config.spec.training.seed
        )
        adapted = with_adapter(fresh, lora, prepared.task)
    set_peft_model_state_dict(adapted, _adapter_weights(model, weights))
    merged: PreTrainedModel = adapted.merge_and_unload()
    weights.clear()
    weights |= gathered_local(merged)
    return merged


def gathered_local(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers of an unpartitioned model, tied names once."""
    persistent = model.state_dict(keep_vars=True)
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: value.detach().cpu().contiguous() for name, value in named.items() if name in persistent}


def _adapter_weights(model: PeftModel, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Under the names of PEFT's files."""
    return dict(get_peft_model_state_dict(model, state_dict=weights))


def _write_model(model: PreTrainedModel, weights: dict[str, torch.Tensor], folder: Path, *, base: Path) -> None:
    original = AutoConfig.from_pretrained(base)
    # Training switched it off; generation wants what the base model had.
    if hasattr(original, "use_cache"):
        model.config.use_cache = original.use_cache
    model.save_pretrained(folder, state_dict=weights)


def _write_adapter(model: nn.Module, weights: dict[str, torch.Tensor], folder: Path, *, base_uri: str) -> None:
    assert isinstance(model, PeftModel), "rules.py lets Adapter through only with method.lora"
    configuration = model.active_peft_config
    configuration.base_model_name_or_path = base_uri
    model.save_pretrained(str(folder), state_dict=weights)


def _card(config: TrainerConfig) -> str:
    """A model card until the evaluate stage writes one with figures."""
    spec = config.spec
    return (
        f"---\nbase_model: {spec.model.uri}\nlibrary_name: transformers\n---\n\n"
        f"# {config.job.name}\n\nFine-tuned from `{spec.model.uri}` by run {config.run_name}.\n"
    )


def _replace(store: ObjectStore, folder: Path, uri: str) -> None:
    written = set(store.upload_folder(folder, uri))
    for stale in [info.uri for info in store.list(f"{uri}/") if info.uri not in written]:
        store.delete(stale)
    log.info("exported %d files to %s", len(written), uri)
