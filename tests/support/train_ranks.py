"""Ranks of the train stage for tests: the real stage, and an end at a chosen step.

The choice is in the environment: TEST_END=kill|stop|none, TEST_END_STEP, TEST_END_RANKS (comma-separated).
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


class EndsAt:
    """A StopFlag that asks for the stop, or kills its own process with SIGKILL, once a step is done and saved."""

    def __init__(self, report: Any, *, end: str, step: int, ranks: tuple[int, ...]) -> None:
        self._report, self._end, self._step = report, end, step
        self._mine = int(os.environ["RANK"]) in ranks

    @property
    def requested(self) -> bool:
        """Read by the training loop at the end of every step, before that step is reported."""
        reached = self._mine and self._report.progress.step >= self._step
        if reached and self._end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return reached and self._end == "stop"


def train_rank(config: Path) -> int:
    """Like `stages.run_rank`, but the configuration says what was prepared."""
    from finetune_trainer.stages import run_bound

    def bind(config: Any, runtime: Any, report: Any) -> Callable[[], Any]:
        from finetune_trainer.store.client import ObjectStore
        from finetune_trainer.train.stage import train

        ranks = tuple(int(rank) for rank in os.environ.get("TEST_END_RANKS", "0,1").split(","))
        stop = EndsAt(
            report, end=os.environ.get("TEST_END", "none"), step=int(os.environ.get("TEST_END_STEP", "0")), ranks=ranks
        )
        return lambda: train(config, ObjectStore.connect(config.storage), runtime, report, stop)  # type: ignore[arg-type]

    return run_bound(config, bind)


def make_models(folder: Path) -> int:
    """Two encoders and two decoders of a few ten thousand parameters, with dropout and without."""
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    from tiny_models import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "pad_token_id": 0}
    size |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    for name, dropout in (("", 0.0), ("-dropout", 0.1)):
        torch.manual_seed(1)
        bert = BertConfig(**size, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
        llama = LlamaConfig(**size, num_key_value_heads=2, attention_dropout=dropout, tie_word_embeddings=True)
        for kind, model in (("bert", BertModel(bert)), ("llama", LlamaForCausalLM(llama))):
            model.save_pretrained(folder / f"{kind}{name}")
            tokenizer.save_pretrained(folder / f"{kind}{name}")
    return 0
