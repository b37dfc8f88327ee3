"""The training job of the benchmark: a reduced SmolLM2 on conversations, prepared by the prepare stage."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.constants import Stage
from finetune_api.trainer_config import BatchPlan, JobRef, StorageSettings, TrainerConfig, World
from finetune_api.v1alpha1 import Spec

BUCKET = "bench"
WORLD = 2
LAYERS = 4
"""42.5 M parameters, of which 28.3 M are the embedding, which is tied to the head."""
FROZEN_LAYERS, FROZEN_VOCABULARY = 12, 2048
"""43.7 M parameters, of which 42.5 M are in layers, so that half of the layers are about half of the parameters."""
MAX_LENGTH, ROWS, WORDS = 64, 512, 200
_MANY_STEPS = 1_000_000
"""The benchmark stops the training before this step. The save interval must not depend on the end of the training."""


@dataclass(frozen=True)
class Size:
    """Size of the run."""

    quick: bool
    max_lost_work: str
    global_batch: int


def prepare_rank(folder: str, settings: dict[str, Any], size: dict[str, Any]) -> dict[str, Any]:
    """Create the models in `folder/models`, and return the prepared configuration of the training as JSON."""
    models, chosen = Path(folder) / "models", Size(**size)
    models.mkdir()
    _make_models(models, chosen)
    return _prepared(models, StorageSettings.model_validate(settings), chosen).model_dump(mode="json")


def _make_models(folder: Path, size: Size) -> None:
    """Create `folder/base` for the training, and `folder/frozen` for that with frozen layers."""
    import torch
    from transformers import AutoModelForCausalLM

    from real_models import smollm2
    from tiny_models import save_tiny_llama

    if size.quick:
        save_tiny_llama(folder / "base")
        shutil.copytree(folder / "base", folder / "frozen")
        return
    whole = smollm2()
    for name, layers in (("base", LAYERS), ("frozen", FROZEN_LAYERS)):
        model = AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=layers, dtype=torch.float32)
        if name == "frozen":
            model.resize_token_embeddings(FROZEN_VOCABULARY)
        model.save_pretrained(folder / name)
    for path in (*whole.glob("tokenizer*"), *whole.glob("chat_template*")):
        shutil.copy(path, folder / "base")


def _prepared(models: Path, settings: StorageSettings, size: Size) -> TrainerConfig:
    """Upload the rows and run the prepare stage. All settings that are not in the spec have their defaults."""
    from finetune_trainer.data.prepare import prepare
    from finetune_trainer.progress import ProgressReporter
    from finetune_trainer.runtime import RuntimeEnv
    from finetune_trainer.store.client import ObjectStore

    store = ObjectStore.connect(settings)
    store.put(f"s3://{BUCKET}/rows.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in _texts()).encode())
    config = TrainerConfig(
        job=JobRef(namespace="bench", name="bench", uid="bench"),
        run=1,
        stage=Stage.TRAIN,
        attempt=1,
        spec=Spec.model_validate(_spec(models, size)),
        storage=settings,
        world=World(nodes=WORLD),
        batch=BatchPlan(global_size=size.global_batch, micro_size=size.global_batch // WORLD, accumulation=1),
    )
    runtime = RuntimeEnv.from_environ(os.environ)
    prepared = prepare(config, store, runtime, ProgressReporter(None, stage=Stage.PREPARE))
    return config.model_copy(update={"prepared": prepared})


def with_output(config: TrainerConfig, name: str, **spec: Any) -> TrainerConfig:
    """Return the same training as a separate run, with blocks of the spec replaced."""
    whole = config.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    changed = whole | spec | {"output": {"uri": f"s3://{BUCKET}/{name}"}}
    return config.model_copy(update={"spec": Spec.model_validate(changed)})


def _spec(models: Path, size: Size) -> dict[str, Any]:
    return {
        "model": {"uri": f"file://{models / 'base'}"},
        "data": {
            "train": [{"uri": f"s3://{BUCKET}/rows.jsonl"}],
            "validation": {"fraction": 0.0},
            "test": {"fraction": 0.0},
            "maxLength": MAX_LENGTH,
        },
        "method": {"full": {}},
        "training": {
            "maxSteps": _MANY_STEPS,
            "learningRate": 1e-5,
            "learningRateSchedule": "Constant",
            "globalBatchSize": size.global_batch,
            "gradientCheckpointing": False,
        },
        "deepspeed": {"zeroStage": 2},
        "checkpoint": {"maxLostWork": size.max_lost_work},
        "workers": {"nodes": WORLD},
        "output": {"uri": f"s3://{BUCKET}/out"},
    }


def _texts() -> list[str]:
    """Return English texts of about equal length, the same in every run."""
    import numpy as np
    from training_speed import corpus

    words = [word for topic, spoken in sorted(corpus().items()) for word in spoken]
    starts = np.random.default_rng(11).integers(0, len(words) - WORDS, size=ROWS)
    return [" ".join(words[start : start + WORDS]) for start in starts]
