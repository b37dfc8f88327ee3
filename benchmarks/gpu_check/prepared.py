"""Makes models, rows and configurations of the cases, in a rank.

The prepare stage needs pyarrow, whose wheel alone is as large as the bundle may be. Its rows are therefore part of the
bundle, and what else it computes for a run is computed here with the same functions.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.constants import Stage
from finetune_api.rules import zero_stage
from finetune_api.trainer_config import (
    BatchPlan,
    JobRef,
    Prepared,
    PreparedConfig,
    SplitCounts,
    StorageSettings,
    TrainerConfig,
    World,
)
from finetune_api.v1alpha1 import ArtifactFormat, Batching, DataFormat, Spec, Task
from finetune_trainer.data.info import DATASET_FILE, DatasetInfo
from finetune_trainer.data.shards import ShardWriter
from finetune_trainer.methods import METHODS
from finetune_trainer.model.cpu_estimate import process_bytes
from finetune_trainer.model.estimate import TrainingShape
from finetune_trainer.model.fetch import fetch_model
from finetune_trainer.model.gpu_estimate import gpu_memory
from finetune_trainer.model.inspect import ModelFacts, inspect_model
from finetune_trainer.store.client import ObjectStore
from finetune_trainer.tasks import TASKS
from finetune_trainer.tasks.chunked_loss import LOSS_CHUNK_BYTES

from .cases import Case

BUCKET = "gpu-check"
ROWS = 64
"""Of random tokens."""


def prepare(cases: list[dict[str, Any]], assets: str, folder: str, endpoint: str, gpu: bool) -> list[dict[str, Any]]:
    """Make what the cases need. Returns for each its `config`, and its estimate of memory and its sizes."""
    maker = _Maker(Path(assets), Path(folder), StorageSettings(endpoint=endpoint, path_style=True), gpu)
    return [maker.make(Case.from_json(case)) for case in cases]


class _Maker:
    def __init__(self, assets: Path, folder: Path, settings: StorageSettings, gpu: bool) -> None:
        self._assets, self._folder, self._settings, self._gpu = assets, folder, settings, gpu
        self._store = ObjectStore.connect(settings)

    def make(self, case: Case) -> dict[str, Any]:
        model = self._model(case)
        facts = inspect_model(model, str(model))
        config = trainer_config(case, model, self._settings, gpu=self._gpu)
        prepared = self._random_rows(case) if case.data == "random" else self._bundled_rows(case)
        shape = training_shape(config, facts, prepared.task, case.length)
        stage = zero_stage(config.spec, case.zero, shape.dtype)
        on_gpu = gpu_memory(shape, stage)
        estimate = on_gpu.total if self._gpu else process_bytes(shape, stage)
        digest = fetch_model(config.spec.model.uri, self._store, self._folder).digest if case.has_weights else "drawn"
        prepared = prepared.model_copy(
            update={
                "model_digest": digest,
                "parameters": facts.parameters,
                "trained_parameters": shape.trained,
                "zero_stage": stage,
                "dtype": shape.dtype,
                "memory_estimate_bytes": estimate,
            }
        )
        return {
            "config": PreparedConfig.of(config, prepared).model_dump(mode="json"),
            "estimateBytes": estimate,
            "allocatedBytes": on_gpu.allocated,
            "contextBytes": on_gpu.context,
            "parameters": facts.parameters,
            "matrices": sum(a * b for _, (a, b) in facts.linear) + facts.vocabulary * facts.hidden_size,
            "adapters": shape.added,
        }

    # Rows

    def _bundled_rows(self, case: Case) -> Prepared:
        source, uri = self._assets / "data" / case.data, f"s3://{BUCKET}/datasets/{case.data}"
        self._store.upload_folder(source, uri)
        found = Prepared.model_validate_json((self._assets / f"{case.data}.json").read_text())
        return found.model_copy(update={"dataset_uri": uri, "batching": Batching.PADDED})

    def _random_rows(self, case: Case) -> Prepared:
        vocabulary = case.sizes["vocab_size"]
        name = f"random-{case.length}-{vocabulary}"
        uri = f"s3://{BUCKET}/datasets/{name}"
        writer = ShardWriter(self._store, uri, "train", vocabulary=vocabulary)
        tokens = np.random.default_rng(7).integers(0, vocabulary, size=ROWS * case.length)
        lengths = np.full(ROWS, case.length, dtype=np.int64)
        writer.add(lengths, tokens, loss=np.ones(len(tokens), dtype=np.bool_))
        writer.flush()
        info = DatasetInfo(
            version=4,
            digest=name,
            format=DataFormat.TEXT,
            task=Task.CAUSAL_LM,
            seed=42,
            max_length=case.length,
            tokenizer_digest="",
            largest_token=writer.largest_token,
            counts=SplitCounts(train=ROWS),
            lengths={"train": dict(writer.lengths)},
            sources=(),
            shards={"train": tuple(writer.shards)},
        )
        self._store.put(f"{uri}/{DATASET_FILE}", info.content())
        return Prepared(
            dataset_uri=uri,
            dataset_digest=name,
            model_digest="",
            format=info.format,
            task=info.task,
            dtype=case.dtype,
            batching=Batching.PADDED,
            zero_stage=case.zero,
            counts=info.counts,
        )

    # Models

    def _model(self, case: Case) -> Path:
        kind = "bert" if case.is_encoder else "llama"
        text = json.dumps([kind, case.has_weights, case.sizes], sort_keys=True)
        folder = self._folder / "models" / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        if folder.exists():
            return folder
        folder.mkdir(parents=True)
        for path in (self._assets / "tokenizer").iterdir():
            shutil.copy(path, folder / path.name)
        make_model(folder, case)
        return folder


def trainer_config(case: Case, model: Path, settings: StorageSettings, *, gpu: bool) -> TrainerConfig:
    """Return the configuration of a case, without the result of the prepare stage."""
    size = case.micro * case.accumulation
    spec: dict[str, Any] = {
        "model": {"uri": f"file://{model}", "dtype": case.dtype},
        "data": {
            "train": [{"uri": f"s3://{BUCKET}/rows.jsonl"}],
            "maxLength": case.length,
        },
        "method": case.method,
        "training": {
            "maxSteps": case.steps,
            "learningRate": case.rate,
            "batching": Batching.PADDED.value,
            "learningRateSchedule": "Constant",
            "globalBatchSize": size,
            "microBatchSize": case.micro,
            "gradientCheckpointing": case.checkpointing,
            "chunkedLoss": case.chunked,
        },
        "deepspeed": {"zeroStage": case.zero, "offload": case.offload},
        "checkpoint": {"everySteps": case.save_every},
        "workers": {"nodes": 1, "gpusPerNode": int(gpu)},
        "output": {"uri": f"s3://{BUCKET}/{case.name}", "formats": list(case.formats)},
    }
    return TrainerConfig(
        job=JobRef(namespace="gpu-check", name=case.name, uid="1"),
        run=1,
        stage=Stage.TRAIN,
        attempt=1,
        spec=Spec.model_validate(spec),
        storage=settings,
        world=World(gpus=gpu),
        batch=BatchPlan(global_size=size, micro_size=case.micro, accumulation=case.accumulation),
    )


def make_model(folder: Path, case: Case) -> None:
    """Write config.json and random weights, or with `has_weights` False a file that has only the header."""
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, set_seed

    special = {"pad_token_id": 0, "max_position_embeddings": max(512, case.length)}
    if case.is_encoder:
        sizes = {name: value for name, value in case.sizes.items() if name != "num_key_value_heads"}
        config, kind = BertConfig(**sizes, **special), BertModel
    else:
        config = LlamaConfig(**case.sizes, **special, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
        kind = LlamaForCausalLM
    set_seed(7)
    if case.has_weights:
        kind(config).save_pretrained(folder)
        return
    config.architectures = [kind.__name__]
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in kind(config).named_parameters()}
    write_header(folder / "model.safetensors", shapes)


def write_header(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of BF16 tensors whose values take no space on disk."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def training_shape(config: TrainerConfig, facts: ModelFacts, task: Task, length: int) -> TrainingShape:
    """Return what the prepare stage estimates the memory of, for a model without quantization and new tokens."""
    spec = config.spec
    method = METHODS[spec.method.name]
    trained, added = method.parameters(facts, spec.method.block)
    return TrainingShape(
        facts=facts,
        has_token_logits=TASKS[task].has_token_logits,
        dtype=spec.model.dtype,
        method=spec.method.name,
        trained=trained,
        added=added,
        optimizer=spec.training.optimizer.name,
        activations=method.activations(facts, spec.method.block),
        logits_limit=LOSS_CHUNK_BYTES if spec.training.chunked_loss else None,
        is_merged=ArtifactFormat.MERGED in spec.output.formats,
        nodes=config.world.nodes,
        processes_per_node=config.world.processes_per_node,
        micro_batch=config.batch.micro_size,
        global_batch=config.batch.global_size,
        length=length,
        gradient_checkpointing=spec.training.gradient_checkpointing and facts.gradient_checkpointing,
        on_gpus=config.world.gpus,
        offload=spec.deepspeed.offload_or_none,
    )
