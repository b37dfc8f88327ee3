"""Converts a resolved TrainerConfig to transformers' TrainingArguments."""

import os
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import Dtype

from ..errors import BadConfigError
from .ds_config import deepspeed_config
from .plan import TrainingPlan
from .world import GROUP_TIMEOUT


def training_arguments(config: TrainerConfig, plan: TrainingPlan, scratch: Path) -> TrainingArguments:
    """Return the arguments of the Trainer.

    They must exist before the model is built and as long as it is trained: ZeRO-3 finds its configuration through a
    weak reference to them. Raises BadConfigError if transformers' world size differs from the environment's; every rank
    would otherwise train on the same rows as rank 0.
    """
    prepared = config.prepared
    assert prepared is not None, "the train stage needs the result of the prepare stage"
    training = config.spec.training
    arguments = TrainingArguments(
        output_dir=str(scratch / "trainer"),
        deepspeed=deepspeed_config(config),
        use_cpu=not config.world.gpus,
        bf16=prepared.dtype is Dtype.BFLOAT16,
        fp16=prepared.dtype is Dtype.FLOAT16,
        seed=training.seed,
        # Length.
        max_steps=plan.total_steps,
        per_device_train_batch_size=config.batch.micro_size,
        gradient_accumulation_steps=config.batch.accumulation,
        average_tokens_across_devices=True,
        # AdamW. The fused kernel reads parameters and moments once instead of eight times.
        optim="adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.999,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        # Reentrant checkpointing requires inputs with gradients, but the output of a frozen embedding has none.
        activation_checkpointing=training.gradient_checkpointing and prepared.supports_gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        # The tokens are in memory-mapped shards, which worker processes would only copy.
        dataloader_num_workers=0,
        dataloader_pin_memory=config.world.gpus,
        remove_unused_columns=False,
        ddp_timeout=int(GROUP_TIMEOUT.total_seconds()),
        **_silences(plan),
    )
    expected = int(os.environ["WORLD_SIZE"])
    if arguments.world_size != expected:
        raise BadConfigError(
            f"transformers sees {arguments.world_size} training processes, but WORLD_SIZE is {expected}",
            advice="check RANK, LOCAL_RANK and WORLD_SIZE of the worker",
        )
    return arguments


def _silences(plan: TrainingPlan) -> dict[str, Any]:
    """Return arguments that disable the Trainer's evaluation, saving and reports, which StepControl does."""
    return {
        "logging_strategy": "steps",
        "logging_steps": plan.log_every,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
