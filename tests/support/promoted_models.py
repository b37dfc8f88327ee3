"""Runs with an exported model and its evaluation in a real store, without training."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from finetune_api.run_layout import PromotionLayout, RunLayout
from finetune_api.trainer_config import JobRef
from finetune_api.v1alpha1 import ArtifactFormat
from finetune_trainer.promotion.records import ModelFile, PromotedModel, PromotionEntry, PromotionRecord
from finetune_trainer.store import ObjectStore
from finetune_trainer.store.digests import folder_sha256

TIME = "2026-03-01T12:00:00Z"


def job_ref(uid: str = "1f3a9c42-0000") -> JobRef:
    return JobRef(namespace="team-a", name="topics", uid=uid)


@dataclass(frozen=True)
class StoredModel:
    """The exported model of one run."""

    output: str
    run: int
    contents: dict[str, bytes]
    """File name -> content."""

    @property
    def layout(self) -> RunLayout:
        return RunLayout.of(self.output, self.run, job_ref().uid)

    @property
    def uri(self) -> str:
        return self.layout.artifact(ArtifactFormat.MERGED)

    @property
    def files(self) -> tuple[ModelFile, ...]:
        return tuple(
            ModelFile(name=name, size=len(content), sha256=sha256(content).hexdigest())
            for name, content in sorted(self.contents.items())
            if name != "README.md"
        )

    @property
    def digest(self) -> str:
        return folder_sha256((file.name, file.sha256) for file in self.files)

    @property
    def entry(self) -> PromotionEntry:
        model = PromotedModel(uri=self.uri, digest=self.digest, task="SequenceClassification")
        return PromotionEntry(model=model, folder=self.layout.uri, job=job_ref(), run=self.run, time=TIME)

    def record(self, token: str, before: PromotionRecord | None = None) -> PromotionRecord:
        """The record of its promotion."""
        return PromotionRecord.after_promotion(before, self.entry, self.files, token)

    def evaluation(self, **fields: Any) -> dict[str, Any]:
        """The part of `evaluation.json` that promotions read."""
        model = {"uri": self.uri, "digest": self.digest}
        job = job_ref().model_dump()
        return {"job": job, "run": self.run, "task": "SequenceClassification", "model": model, **fields}


def stored_model(store: ObjectStore, output: str, run: int, *, shards: int = 1, size: int = 1000) -> StoredModel:
    """Store a folder in Hugging Face layout, whose bytes differ for each run."""
    if shards == 1:
        weights = {"model.safetensors": f"weights {run}".encode() * size}
    else:
        names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
        weights = {name: f"{name} {run}".encode() * size for name in names}
        index = ", ".join(f'"tensor {name}": "{name}"' for name in names)
        weights["model.safetensors.index.json"] = f'{{"weight_map": {{{index}}}}}'.encode()
    contents = {
        **weights,
        "config.json": f'{{"run": {run}}}'.encode(),
        "tokenizer.json": b"{}",
        "README.md": f"# run {run}".encode(),
    }
    made = StoredModel(output, run, contents)
    for name, content in contents.items():
        store.put(f"{made.uri}/{name}", content)
    return made


def promoted_files(store: ObjectStore, output: str) -> dict[str, bytes]:
    """Content of `promoted/` without the marker."""
    layout = PromotionLayout.of(output)
    prefix = layout.folder + "/"
    uris = [info.uri for info in store.list(prefix) if info.uri != layout.marker]
    return {uri.removeprefix(prefix): store.get(uri) for uri in uris}
