"""Ranks of the train stage for tests: the real stage, with an end at a given step.

The end is in the environment: TEST_END=kill|stop|stop-in-validation|stop-in-rate-test|none, TEST_END_STEP,
TEST_END_RANKS (comma-separated); TEST_SCALE_POWER is the exponent of the initial loss scale of Float16.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


class EndAtStep:
    """A StopFlag that requests the stop after a step, or kills its process with SIGKILL once a step is saved.

    Uploads run in the background, and a tiny training may end before the first one is committed. Therefore, from the
    step of the kill on, every step waits until the next save can start.
    """

    manager: Any = None
    """The CheckpointManager of the attempt; None until it is created."""

    def __init__(self, report: Any, *, end: str, step: int, ranks: tuple[int, ...]) -> None:
        self._report, self._end, self._step = report, end, step
        self._mine = int(os.environ["RANK"]) in ranks
        self._batches = 0
        """Number of batches of the validation after the given step that were started."""

    @property
    def requested(self) -> bool:
        """Read by every rank at the end of every step, before that step is reported."""
        done = self._report.progress.step
        if self._end == "kill" and done >= self._step:
            self.manager._saver.wait_until_idle()
            saved = self.manager.last
            if self._mine and saved is not None and saved.step >= self._step:
                os.kill(os.getpid(), signal.SIGKILL)
        if self._end == "stop-in-validation":
            self._batches += done == self._step and self._report.progress.activity.startswith("evaluating")
            return self._mine and self._batches > 1
        if self._end == "stop-in-rate-test":
            return self._mine and bool(self._report.progress.activity.startswith("testing"))
        return self._mine and self._end == "stop" and bool(done >= self._step)


def refuse_to_pickle(value: object, *_: object, **__: object) -> None:
    """Replacement for the first function that torch's object collectives call."""
    raise AssertionError(f"{type(value).__name__} is pickled for other ranks")


def set_initial_loss_scale(power: int) -> None:
    """2^power instead of DeepSpeed's default of 2^16, which models of this size do not overflow."""
    from finetune_trainer.train import engine

    made = engine.deepspeed_config

    def scaled(config: Any, **options: Any) -> dict[str, Any]:
        result = made(config, **options)
        return result | {"fp16": result["fp16"] | {"initial_scale_power": power}}

    vars(engine)["deepspeed_config"] = scaled


def train_rank(config: Path) -> int:
    """Like `rank_main.run_rank`, with the result of prepare in the configuration, and without pickles in
    collectives."""
    from torch.distributed import distributed_c10d

    from finetune_trainer.rank_main import run_bound

    vars(distributed_c10d)["_object_to_tensor"] = refuse_to_pickle
    if power := os.environ.get("TEST_SCALE_POWER"):
        set_initial_loss_scale(int(power))

    def bind(config: Any, runtime: Any, report: Any) -> Callable[[], Any]:
        from finetune_api.trainer_config import PreparedConfig
        from finetune_trainer.checkpoint.manager import CheckpointManager
        from finetune_trainer.store.client import ObjectStore
        from finetune_trainer.train import stage

        ranks = tuple(int(rank) for rank in os.environ.get("TEST_END_RANKS", "0,1").split(","))
        stop = EndAtStep(
            report, end=os.environ.get("TEST_END", "none"), step=int(os.environ.get("TEST_END_STEP", "0")), ranks=ranks
        )

        class KnownManager(CheckpointManager):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                stop.manager = self

        vars(stage)["CheckpointManager"] = KnownManager
        store = ObjectStore.connect(config.storage)
        prepared = PreparedConfig.of(config, config.prepared)
        return lambda: stage.train(prepared, store, runtime, report, stop)  # type: ignore[arg-type]

    return run_bound(config, bind)


def train_rank_without_discarded_models(config: Path) -> int:
    """Like `train_rank`; an AssertionError if values of a model are in memory after the range test."""
    import gc

    from transformers import PreTrainedModel

    from finetune_trainer.train import stage

    free = stage.free_memory

    def checked() -> None:
        free()
        models = [found for found in gc.get_objects() if isinstance(found, PreTrainedModel)]
        values = [getattr(value, "ds_tensor", value) for model in models for value in model.parameters()]
        left = sum(value.numel() for value in values)
        assert not left, f"{left} values of {[type(model).__name__ for model in models]} are still in memory"

    vars(stage)["free_memory"] = checked
    return train_rank(config)


def train_rank_with_probe(config: Path) -> int:
    """Like `train_rank` on a worker of its own, with the function TEST_PROBE in the process that measures
    micro-batches."""
    from finetune_trainer.train import probe

    os.environ["LOCAL_RANK"] = "0"
    vars(probe)["CHILD"] = os.environ["TEST_PROBE"]
    return train_rank(config)


def record_probe_steps(request: Path, *sizes: int) -> None:
    """As if these micro-batches had been measured, with little memory."""
    from finetune_trainer.micro_batch import MeasuredStep

    with (request.parent / "steps.jsonl").open("a") as output:
        for size in sizes:
            output.write(MeasuredStep(micro_batch_size=size, peak_bytes=size << 20, seconds=0.1).model_dump_json())
            output.write("\n")


def probe_that_is_killed(request: Path) -> int:
    """On the second worker, the kernel kills the process at micro-batch 4. On the first one, 4 is the largest."""
    is_second = request.parent.name.endswith("1")
    record_probe_steps(request, *((1, 2) if is_second else (1, 2, 4)))
    if is_second:
        os.kill(os.getpid(), signal.SIGKILL)
    return 80


def probe_that_grows(request: Path) -> int:
    """Micro-batch 2 takes all the memory it gets. It ends at 4 GiB, so that a missing watcher fails the test."""
    record_probe_steps(request, 1)
    taken = [b"x" * (32 << 20) for _ in range(128)]
    record_probe_steps(request, 2, 4, 8)
    return 0 * len(taken)


def probe_that_fails(request: Path) -> int:
    """A program error."""
    record_probe_steps(request, 1)
    raise LookupError("no such layer")


def train_rank_with_extensions(config: Path) -> int:
    """Like `train_rank`, with the method and the task of `extensions` instead of those in the configuration."""
    from extensions import BRIER, HeadOnly, MoreMethods, registered
    from finetune_trainer.train import stage

    train = stage.train

    def extended(config: Any, *args: Any) -> Any:
        spec = config.spec.model_copy(update={"method": MoreMethods(head_only=HeadOnly())})
        prepared = config.prepared.model_copy(update={"task": BRIER})
        with registered():
            return train(config.model_copy(update={"spec": spec, "prepared": prepared}), *args)

    vars(stage)["train"] = extended
    return train_rank(config)


def train_slow_rank(config: Path) -> int:
    """Like `train_rank`, with a timeout of collectives of TEST_GROUP_TIMEOUT seconds.

    Rank 1 takes TEST_SLOW seconds longer to fetch the model, and rank 0 for the export; or, with TEST_DIES, rank 0 is
    killed during the export.
    """
    from datetime import timedelta

    from finetune_trainer.train import stage, world

    rank, seconds = int(os.environ["RANK"]), float(os.environ["TEST_SLOW"])
    fetch, export = stage.prepared_model, stage.export

    def slow_fetch(*args: Any, **kwargs: Any) -> Any:
        if rank == 1:
            signal.sigtimedwait([], seconds)
        return fetch(*args, **kwargs)

    def slow_export(*args: Any, **kwargs: Any) -> Any:
        exported = export(*args, **kwargs)
        if rank == 0:
            signal.sigtimedwait([], seconds)
            if "TEST_DIES" in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)
        return exported

    vars(world)["GROUP_TIMEOUT"] = timedelta(seconds=float(os.environ["TEST_GROUP_TIMEOUT"]))
    vars(stage).update(prepared_model=slow_fetch, export=slow_export)
    return train_rank(config)


def train_rank_with_nan_weights(config: Path) -> int:
    """Like `train_rank`; the last parameter is NaN during validations."""
    return _validate_with(float("nan"), config)


def train_rank_with_huge_weights(config: Path) -> int:
    """Like `train_rank`; the last parameter is ten thousand times as large during validations."""
    return _validate_with(1e4, config)


def _validate_with(factor: float, config: Path) -> int:
    import torch

    from finetune_trainer.train.validation import Validator

    figures = Validator.figures

    def changed(self: Validator, model: torch.nn.Module, *arguments: Any) -> Any:
        with torch.no_grad():
            last = list(model.parameters())[-1]
            before = last.clone()
            last.mul_(factor)
            found = figures(self, model, *arguments)
            last.copy_(before)
        return found

    Validator.figures = changed  # type: ignore[method-assign]
    return train_rank(config)


def make_models(folder: Path) -> int:
    """Two encoders and four decoders of a few ten thousand parameters, with and without dropout, two classifiers, and
    an encoder with a head for masked language modeling. `pairs` is a decoder with a chat template.

    `bert` has a head for three other labels, `bert-lite` one for the labels of the data in another order.
    """
    import torch
    from transformers import (
        AlbertConfig,
        AlbertForSequenceClassification,
        BertConfig,
        BertForMaskedLM,
        BertForSequenceClassification,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    from tiny_models import CHATML, masked_tokenizer, tiny_tokenizer

    tokenizer, chat = tiny_tokenizer(), tiny_tokenizer()
    chat.chat_template = CHATML
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "pad_token_id": 0}
    size |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    overflowing = LlamaForCausalLM(LlamaConfig(**size, num_key_value_heads=2, tie_word_embeddings=False))
    for name, norm, head in (("llama-overflow", 1e30, 1e30), ("llama-steep", 1e12, 1e25)):
        # Logits above the largest 32-bit float; or logits below it and gradients, 1 / rms(x) times as large, above it.
        with torch.no_grad():
            overflowing.model.norm.weight.fill_(norm)
            overflowing.lm_head.weight.fill_(0.0).view(-1)[::7] = head
        overflowing.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, dropout in (("", 0.0), ("-dropout", 0.1)):
        torch.manual_seed(1)
        bert = BertConfig(**size, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
        llama = LlamaConfig(**size, num_key_value_heads=2, attention_dropout=dropout, tie_word_embeddings=True)
        for kind, model in (("bert", BertModel(bert)), ("llama", LlamaForCausalLM(llama))):
            model.save_pretrained(folder / f"{kind}{name}")
            tokenizer.save_pretrained(folder / f"{kind}{name}")
        LlamaForCausalLM(llama).save_pretrained(folder / f"pairs{name}")
        chat.save_pretrained(folder / f"pairs{name}")
    BertForSequenceClassification.from_pretrained(folder / "bert", num_labels=3).save_pretrained(folder / "bert")
    lite = AlbertConfig(**size, embedding_size=16, id2label={0: "food", 1: "animal"})
    AlbertForSequenceClassification(lite).save_pretrained(folder / "bert-lite")
    tokenizer.save_pretrained(folder / "bert-lite")
    masked = masked_tokenizer()
    still = {"vocab_size": len(masked), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertForMaskedLM(BertConfig(**size | still)).save_pretrained(folder / "masked")
    masked.save_pretrained(folder / "masked")
    return 0


def make_wide_model(folder: Path) -> int:
    """An encoder whose activations are larger than its state, even with few rows."""
    from transformers import BertConfig, BertForSequenceClassification

    from tiny_models import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    size = {"vocab_size": len(tokenizer), "hidden_size": 8, "intermediate_size": 65_536, "pad_token_id": 0}
    size |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    BertForSequenceClassification(BertConfig(**size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return 0


def load_exported(folder: Path) -> int:
    """Load `folder/model` and `folder/adapter` as a user would.

    The results and their validation losses are written to `folder/loaded.json`.
    """
    import json

    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    from finetune_api.trainer_config import PreparedConfig
    from finetune_trainer.data.collate import Collator
    from finetune_trainer.data.shards import TokenDataset
    from finetune_trainer.store.client import ObjectStore
    from finetune_trainer.tasks import TASKS

    config = PreparedConfig.model_validate_json((folder / "config.json").read_text())
    prepared = config.prepared
    classifies = bool(prepared.labels)
    task = TASKS[prepared.task]
    model_class = task.model_class
    has_model = (folder / "model").exists()
    tokenizer = AutoTokenizer.from_pretrained(folder / ("model" if has_model else "adapter"))
    stored = TokenDataset.open(
        ObjectStore.connect(config.storage), prepared.dataset_uri, "validation", folder / "cache"
    )
    rows = task.held_out_rows(stored)
    collate = Collator(tokenizer.pad_token_id, prepared.task)

    def loss(model: Any, *indices: int) -> float:
        batch = collate([rows[index] for index in indices])
        with torch.no_grad():
            logits = model.eval()(**{name: batch[name] for name in task.model_inputs}).logits
        if task.has_token_logits:  # PEFT also returns those of virtual tokens
            logits = logits[:, -batch["input_ids"].shape[1] :]
        return float(task.loss(logits, batch)) / task.targets(batch)

    everything = range(len(rows))
    result: dict[str, Any] = {}
    if has_model:
        model, found = model_class.from_pretrained(folder / "model", output_loading_info=True)
        result |= {
            "missing": sorted(found["missing_keys"]),
            "unexpected": sorted(found["unexpected_keys"]),
            "loss": loss(model, *everything),
            "row_losses": [loss(model, index) for index in everything],
            "dtype": str(model.dtype),
            "labels": [model.config.id2label[index] for index in range(len(prepared.labels))],
            "use_cache": getattr(model.config, "use_cache", None),
            "layers": model.config.num_hidden_layers,
        }
    if (folder / "adapter" / "adapter_config.json").exists():
        # The encoder has a head of another size, which the adapter replaces.
        names = dict(enumerate(prepared.labels))
        options = {"num_labels": len(names), "id2label": names, "ignore_mismatched_sizes": True} if classifies else {}
        base = model_class.from_pretrained(config.spec.model.uri.removeprefix("file://"), **options)
        result["base_loss"] = loss(base, *everything)
        result["adapter_loss"] = loss(PeftModel.from_pretrained(base, str(folder / "adapter")), *everything)
    (folder / "loaded.json").write_text(json.dumps(result))
    return 0
