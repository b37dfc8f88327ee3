"""The side that the speed is compared with: transformers' Trainer with PEFT, as a user would write it."""

from pathlib import Path
from typing import Any

from .cases import Case
from .ranks import drawn_model, synchronize


def train(case: dict[str, Any], folder: str, scratch: str, gpu: bool) -> dict[str, Any]:
    """Train a case and return the ends of its steps in seconds, and the peak memory.

    The weights are those that our side draws. With LoRA they are in the type of the case and the adapters in 32 bit;
    otherwise the weights are in 32 bit, which our side also keeps for the optimizer, and computed with autocast.
    """
    import time

    import numpy as np
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    from finetune_trainer.train.meter import peak_memory_bytes

    chosen = Case.from_json(case)
    is_lora = "lora" in chosen.method
    model = drawn_model(Path(folder), torch.bfloat16, 42, "cuda" if gpu else "cpu")
    model.config.use_cache = False
    model = adapted(model, chosen) if is_lora else model.float()
    tokens = np.random.default_rng(7).integers(0, chosen.sizes["vocab_size"], size=(64, chosen.length))
    rows = [{"input_ids": row, "attention_mask": np.ones_like(row), "labels": row} for row in tokens]
    marks: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize()
            marks.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=scratch,
        use_cpu=not gpu,
        bf16=chosen.dtype == "BFloat16",
        per_device_train_batch_size=chosen.micro,
        gradient_accumulation_steps=chosen.accumulation,
        activation_checkpointing=chosen.checkpointing,
        learning_rate=chosen.rate,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_steps=chosen.steps,
        optim="adamw_torch_fused",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=default_data_collator, callbacks=[Clock()]
    )
    trainer.train()
    return {"marks": marks, "peakBytes": peak_memory_bytes()}


def adapted(model: Any, case: Case) -> Any:
    """Return the model with adapters on all linear layers, with the scale that is our default."""
    from peft import LoraConfig, get_peft_model

    rank = case.method["lora"]["rank"]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)
