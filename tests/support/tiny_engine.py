"""Real DeepSpeed engines on a tiny Llama, and what ranks do with them in the checkpoint tests.

Only the ranks import torch and the libraries that depend on it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.constants import Stage
from finetune_api.trainer_config import BatchPlan, JobRef, TrainerConfig, World
from finetune_api.v1alpha1 import Dtype, Offload, Spec
from finetune_trainer.runtime import RuntimeEnv
from finetune_trainer.store import ObjectStore, RetryPolicy
from finetune_trainer.train.ds_config import offloaded, precision

STEPS, SAVE_AT, GLOBAL_BATCH = 6, 3, 12


@dataclass(frozen=True)
class Case:
    stage: int
    method: str = "full"
    dropout: float = 0.0
    bf16: bool = False
    fp16: bool = False
    accumulation: int = 1
    offload: Offload = Offload.NONE

    @property
    def name(self) -> str:
        dtype = "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"
        return f"zero{self.stage}-{self.method}-{dtype}-drop{self.dropout:g}-acc{self.accumulation}-off{self.offload}"


def make_config(
    settings: Any, folder: str, *, attempt: int = 1, checkpoint: dict[str, Any] | None = None
) -> TrainerConfig:
    spec = Spec.model_validate(
        {
            "model": {"uri": "hf://tiny/llama"},
            "data": {"train": [{"uri": "s3://bucket/data.jsonl"}]},
            "method": {"full": {}},
            "training": {"learningRate": 1e-3},
            "output": {"uri": f"s3://{folder}"},
            "checkpoint": checkpoint or {},
        }
    )
    return TrainerConfig(
        job=JobRef(namespace="test", name="job", uid="1"),
        run=1,
        stage=Stage.TRAIN,
        attempt=attempt,
        spec=spec,
        storage=settings,
        world=World(nodes=1, processes_per_node=2),
        batch=BatchPlan(global_size=GLOBAL_BATCH, micro_size=GLOBAL_BATCH // 2, accumulation=1),
    )


def make_store(settings: Any) -> ObjectStore:
    return ObjectStore.connect(settings, retry=RetryPolicy(total_seconds=2.0, attempts_per_request=1))


def make_manager(settings: Any, folder: str, rank: int, size: int, **options: Any) -> Any:
    """A manager with its own uploader; with `store`, its uploads use that store.

    `checkpoint` is the block of the spec, `client` a subclass of InlineUploader.
    """
    from finetune_trainer.checkpoint.manager import CheckpointManager
    from finetune_trainer.checkpoint.stored.run_storage import RunStorage
    from inline_uploader import InlineUploader

    runtime = RuntimeEnv(rank, size, rank, size, scratch=Path("/tmp"), cache=Path("/tmp"))
    store = options.pop("store", None)
    config = make_config(
        settings, folder, attempt=options.pop("attempt", 1), checkpoint=options.pop("checkpoint", None)
    )
    client, kind = None, options.pop("client", InlineUploader)
    if store is not None:
        cache = options.get("cache")
        client = kind(RunStorage.of(store, config.run_uri, attempt=config.attempt, cache=cache))
    options |= {"blob_bytes": options.pop("blob_bytes", 64 << 10), "client": client}
    return CheckpointManager(store or make_store(settings), config, runtime, **options)


def make_model(case: Case) -> Any:
    import peft
    import torch
    import transformers

    from finetune_trainer.train.world import allow_float16_on_cpu

    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=case.dropout,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    model.register_buffer("steps_seen", torch.zeros(3, dtype=torch.float64))  # persistent: part of the state dict
    if case.bf16:
        model = model.bfloat16()
    if case.fp16:
        allow_float16_on_cpu()
        model = model.half()
    if case.method == "lora":
        lora = peft.LoraConfig(
            r=4, lora_dropout=case.dropout, target_modules=["q_proj", "v_proj"], modules_to_save=["norm"]
        )
        model = peft.get_peft_model(model, lora)
    if case.method == "frozen":
        model.model.layers[0].requires_grad_(False)
    return model


def make_engine(case: Case, size: int, *, disturb: bool) -> tuple[Any, Any]:
    """An engine and its scheduler. `disturb` changes trained values, so that only a restore can correct them."""
    import deepspeed
    import torch

    model = make_model(case)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if disturb:
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(1.0)
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": 0.5},
        {"params": [parameter for parameter in trained if parameter.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1.0 + 0.3 * step))
    micro = GLOBAL_BATCH // size // case.accumulation
    config = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": case.accumulation,
        "gradient_clipping": 1.0,
        **precision_of(case),
        "zero_optimization": {"stage": case.stage, "stage3_param_persistence_threshold": 100}
        | offloaded(case.offload, gpus=False),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine, scheduler


def precision_of(case: Case) -> dict[str, Any]:
    """As in training. The loss scale of Float16 starts too high and grows soon, so it changes often."""
    dtype = Dtype.BFLOAT16 if case.bf16 else Dtype.FLOAT16 if case.fp16 else Dtype.FLOAT32
    made = precision(dtype)
    if case.stage == 0:  # training supports it only in Float32
        made.pop("data_types", None)
    if case.fp16:
        made["fp16"] = {"enabled": True, "initial_scale_power": 22, "loss_scale_window": 1, "hysteresis": 2}
    return made


def train(case: Case, engine: Any, scheduler: Any, rank: int, size: int, steps: range) -> list[str]:
    """Mean loss of each global batch, as exact text."""
    import torch
    import torch.distributed as dist

    losses = []
    for step in steps:
        rows = torch.randint(0, 96, (GLOBAL_BATCH, 12), generator=torch.Generator().manual_seed(100 + step))
        mine = rows[rank * GLOBAL_BATCH // size : (rank + 1) * GLOBAL_BATCH // size]
        total = torch.zeros((), dtype=torch.float64)
        for batch in mine.chunk(case.accumulation):
            loss = engine(input_ids=batch, labels=batch).loss
            engine.backward(loss)
            engine.step()
            total += loss.detach().double() / case.accumulation / size
        scheduler.step()
        buffers = dict(engine.module.named_buffers())
        next(value for name, value in buffers.items() if name.endswith("steps_seen")).add_(1.0)
        dist.all_reduce(total)
        scale = f" scaled by {engine.optimizer.loss_scaler.cur_scale}" if case.fp16 else ""
        losses.append(f"{float(total).hex()}{scale}")
    return losses


def seed_ranks(rank: int) -> None:
    import random

    import numpy as np
    import torch

    random.seed(rank)
    np.random.seed(rank)
    torch.manual_seed(rank)


def uninterrupted(rank: int, size: int, cases: list[Case], settings: Any, folder: str) -> dict[str, Any]:
    """Train to the end, with one save in between that is uploaded during the following steps."""
    from finetune_trainer.checkpoint.async_saver import TrainingState

    results = {}
    for case in cases:
        engine, scheduler = make_engine(case, size, disturb=False)
        manager = make_manager(settings, f"{folder}/{case.name}", rank, size)
        manager.claim()
        seed_ranks(rank)
        losses = train(case, engine, scheduler, rank, size, range(SAVE_AT))
        state = TrainingState(step=SAVE_AT, engine=engine, small_state={"scheduler": scheduler.state_dict()})
        manager._saver.save(state, spread_seconds=0.5)
        losses += train(case, engine, scheduler, rank, size, range(SAVE_AT, STEPS))
        manager._saver.wait()
        results[case.name] = losses
        manager.close()
        engine.destroy()
    return results


def claim_and_restore(manager: Any, engine: Any, scheduler: Any) -> Any:
    """Claim the run and restore its newest checkpoint; returns the manifest."""
    from finetune_trainer.train.state import resume_schedule

    manager.claim()
    restored = manager.restore(engine)
    resume_schedule(scheduler, restored.small_state["scheduler"])
    manager.restore_rng(restored.manifest)
    return restored.manifest


def resumed(
    rank: int, size: int, pairs: list[tuple[Case, Case]], settings: Any, folder: str, first_attempt: int = 2
) -> dict[str, Any]:
    """In new processes and with other initial values: restore, and train the remaining steps."""
    results = {}
    for attempt, (source, case) in enumerate(pairs, start=first_attempt):
        engine, scheduler = make_engine(case, size, disturb=True)
        manager = make_manager(settings, f"{folder}/{source.name}", rank, size, attempt=attempt)
        claim_and_restore(manager, engine, scheduler)
        losses = train(case, engine, scheduler, rank, size, range(SAVE_AT, STEPS))
        counters = {"global_steps": engine.global_steps, "micro_steps": engine.micro_steps}
        seen = [value for name, value in engine.module.named_buffers() if name.endswith("steps_seen")]
        results[f"{source.name}->{case.name}"] = {"losses": losses, "seen": seen[0].tolist(), **counters}
        manager.close()
        engine.destroy()
    return results
