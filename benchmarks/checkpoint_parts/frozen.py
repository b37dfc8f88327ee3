"""Measure the size of checkpoints when half of the layers are frozen, compared with full checkpoints."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.trainer_config import PreparedConfig
from finetune_trainer.checkpoint.manager import CheckpointManager, TrainingState
from finetune_trainer.collectives import rank_zero
from finetune_trainer.runtime import RuntimeEnv
from finetune_trainer.store import ObjectStore
from finetune_trainer.train.ds_config import deepspeed_config
from finetune_trainer.train.world import end_process_group, start_process_group

from .training_job import MAX_LENGTH, with_output

_STEPS = 2
"""Steps before each save, so that parameters and moments have changed."""


def stored_bytes(config: dict[str, Any], model: str) -> dict[str, int]:
    """Return the new bytes of the first full checkpoint, and of the first two with half of the layers frozen."""
    resolved, runtime = PreparedConfig.model_validate(config), RuntimeEnv.from_environ(os.environ)
    start_process_group(resolved, runtime)
    store = ObjectStore.connect(resolved.storage)
    found: dict[str, int] = {}
    for name, frozen, saves in (("full", False, 1), ("half", True, 2)):
        run = with_output(resolved, f"frozen-{name}")
        engine, manager = _engine(run, Path(model), frozen=frozen), CheckpointManager(store, run, runtime)
        manager.claim()
        before = 0
        for number in range(saves):
            _train(engine, range(number * _STEPS, (number + 1) * _STEPS), runtime, run.batch.micro_size)
            manager.save(TrainingState(step=(number + 1) * _STEPS, engine=engine, small_state={}))
            total = rank_zero(partial(_stored_bytes, store, run.run_uri), int)
            found[f"{name}{number + 1}"], before = total - before, total
        manager.close()
        engine.destroy()
    end_process_group()
    return found


def _stored_bytes(store: ObjectStore, run_uri: str) -> int:
    return sum(info.size for info in store.list(f"{run_uri}/checkpoints/"))


def _engine(config: PreparedConfig, model: Path, *, frozen: bool) -> Any:
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(model)
    layers = module.model.layers
    for layer in layers[: len(layers) // 2] if frozen else ():
        layer.requires_grad_(False)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=deepspeed_config(config))
    return engine


def _train(engine: Any, steps: range, runtime: RuntimeEnv, rows: int) -> None:
    import torch

    vocabulary = engine.module.config.vocab_size
    for step in steps:
        random = torch.Generator().manual_seed(step * runtime.world_size + runtime.rank)
        tokens = torch.randint(0, vocabulary, (rows, MAX_LENGTH), generator=random)
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
