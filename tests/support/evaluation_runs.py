"""Runs that are ready to be evaluated: data prepared by the real stage, a model trained by a plain loop."""

import json
from pathlib import Path
from typing import Any

import torch

from factories import merged
from finetune_api.constants import Stage
from finetune_api.run_layout import base_model_folder
from finetune_api.trainer_config import BatchPlan, JobRef, PreparedConfig, StorageSettings, TrainerConfig, World
from finetune_api.v1alpha1 import ArtifactFormat, Spec
from finetune_trainer.data.collate import Collator
from finetune_trainer.data.prepare import prepare
from finetune_trainer.data.shards import TokenDataset
from finetune_trainer.methods import METHODS
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.load import load_model
from finetune_trainer.model.tokenizer import load_tokenizer
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.reference import Reference, choose_sample, write_reference
from finetune_trainer.runtime import RuntimeEnv
from finetune_trainer.store import ObjectStore
from finetune_trainer.tasks import TASKS

SUBJECTS = ("the fox", "the dog", "my friend", "a book", "this film", "your house", "the city", "our team")
GOOD = ("good", "great", "lovely", "fine", "bright", "kind")
BAD = ("bad", "awful", "ugly", "poor", "dull", "cruel")


def reviews() -> list[dict[str, Any]]:
    """Sentences whose adjective determines the label."""
    return [
        {"text": f"{subject} is {'very ' * more}{word}", "label": label}
        for label, words in (("good", GOOD), ("bad", BAD))
        for subject in SUBJECTS
        for word in words
        for more in (0, 1)
    ]


def questions() -> list[dict[str, Any]]:
    """Conversations with one correct answer each."""
    return [
        {"messages": [{"role": "user", "content": f"is {subject} {word}?"}, {"role": "assistant", "content": answer}]}
        for answer, words in (("yes", GOOD), ("no", BAD))
        for subject in SUBJECTS
        for word in words
    ]


def runtime_in(folder: Path) -> RuntimeEnv:
    folder.mkdir(parents=True, exist_ok=True)
    return RuntimeEnv(rank=0, world_size=1, local_rank=0, local_world_size=1, scratch=folder, cache=folder / "cache")


def prepared_config(
    store: ObjectStore,
    settings: StorageSettings,
    folder: Path,
    *,
    bucket: str,
    base: Path,
    records: list[dict[str, Any]],
    **spec: Any,
) -> PreparedConfig:
    """Upload base model and records, run the prepare stage, and return the evaluate stage's configuration."""
    store.upload_folder(base, f"s3://{bucket}/base")
    lines = "\n".join(json.dumps(record) for record in records)
    store.put(f"s3://{bucket}/data/train.jsonl", lines.encode())
    document = {
        "model": {"uri": f"s3://{bucket}/base"},
        "data": {"train": [{"uri": f"s3://{bucket}/data/train.jsonl"}], "test": {"fraction": 0.25}, "maxLength": 64},
        "training": {"epochs": 1, "learningRate": 1e-3},
        "output": {"uri": f"s3://{bucket}/out"},
    }
    config = TrainerConfig(
        job=JobRef(namespace="default", name="reviews", uid="u"),
        run=1,
        stage=Stage.EVALUATE,
        spec=Spec.model_validate(merged(document, spec)),
        storage=settings,
        world=World(),
        batch=BatchPlan(global_size=16, micro_size=16, accumulation=1),
    )
    runtime = runtime_in(folder / "prepare")
    prepared = prepare(config, store, runtime, ProgressReporter(None, stage=Stage.PREPARE))
    return PreparedConfig.of(config, prepared)


def trained_model(
    config: PreparedConfig, store: ObjectStore, folder: Path, *, epochs: int, adapter: bool = False
) -> Any:
    """The model after a plain single-process loop over the prepared training split."""
    prepared = config.prepared
    base = folder / "base"
    uri = config.spec.model.uri
    if prepared.vocabulary is not None:
        uri = base_model_folder(config.output_uri, prepared.model_digest)
    store.download_folder(uri, base)
    model: Any = load_model(
        base, task=prepared.task, labels=prepared.labels, dtype=prepared.dtype, seed=config.spec.training.seed
    )
    if adapter:
        method: Any = METHODS[config.spec.method.name]
        model = method.adapted(model, config.spec.method.block, TASKS[prepared.task])
    tokenizer = load_tokenizer(base)
    rows = TokenDataset.open(store, prepared.dataset_uri, "train", folder / "cache")
    collate = Collator(tokenizer.pad_token_id, prepared.task)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch)).tolist()
        for start in range(0, len(order), 16):
            loss = model(**collate([rows[index] for index in order[start : start + 16]])).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def export_whole(model: Any, config: TrainerConfig, store: ObjectStore, folder: Path) -> None:
    """Write what the train stage stores with format Merged."""
    _export(ArtifactFormat.MERGED, config.model_uri, model, config, store, folder)


def export_adapter(model: Any, config: TrainerConfig, store: ObjectStore, folder: Path) -> None:
    """Write what the train stage stores with format Adapter."""
    _export(ArtifactFormat.ADAPTER, f"{config.run_uri}/adapter", model, config, store, folder)


def _export(
    artifact: ArtifactFormat, uri: str, model: Any, config: TrainerConfig, store: ObjectStore, folder: Path
) -> None:
    target = folder / f"export-{artifact.value}"
    adapted = hasattr(model, "peft_config")
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad or not adapted}
    write_folder(artifact, model, weights, target, config=config, base=folder / "base")
    store.upload_folder(target, uri)
    write_reference(config, store, reference_of(model, config, store, folder))


def reference_of(model: Any, config: TrainerConfig, store: ObjectStore, folder: Path) -> Reference:
    """Return the losses that the train stage measures, computed with the model's own loss."""
    prepared = config.prepared
    assert prepared is not None
    sample = choose_sample(
        prepared, lambda split: TokenDataset.open(store, prepared.dataset_uri, split, folder / "cache")
    )
    collate = Collator(0, prepared.task)
    with torch.no_grad():
        losses = [float(model(**collate([sample.data[row]])).loss) for row in sample.rows]
    return Reference(split=sample.split, rows=sample.rows, losses=tuple(losses))
