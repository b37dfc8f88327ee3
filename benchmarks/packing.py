"""Benchmark `training.batching: Packed`, compared with the padded random order and with groups of similar length.

The three sides train the same language model on the same texts with all other settings equal, one after another in
one run, with the order reversed in every second round. Each optimizer step has about the same number of tokens: 16
examples, or the number of packs that holds them. The second of two epochs is measured, without the validation. Tokens
are counted without padding. After the last step, when all sides have seen the same tokens, the loss of held-out texts
is compared. With --trl, TRL's SFTTrainer with packing trains on the same rows, without DeepSpeed, with as many packs
per step.

    python benchmarks/packing.py [--rounds 3] [--rows 320] [--capacity 256] [--trl]

Texts are sentences of chatterbot-corpus, joined to documents with log-normal lengths (median 24 words, at most 256
tokens), as in training_speed.py: the text is real, its lengths are synthetic. The model is a Llama of 2.7 million
random parameters. On a CPU, attention computes the whole square of a pack, so packs are short (256 tokens). Prints a
table and, as the last line, a JSON object.
"""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packing_trl import train_with_trl
from small_trainings import NEVER, bench_storage, prepared, training_config
from training_speed import documents, timed

from finetune_api.trainer_config import BatchPlan, StorageSettings, TrainerConfig
from finetune_api.v1alpha1 import Batching

EXAMPLES = 16
"""Examples per optimizer step."""
VOCABULARY = 2048
RATE = 1e-3
"""Learning rate."""
TRL = "TRL"
SAME_SIZE = "PackedSameBatchSize"
"""Packs with the `globalBatchSize` of the examples: as many packs per step as the other sides have examples."""
SIDES: tuple[str, ...] = (Batching.PACKED, Batching.LENGTH_GROUPED, Batching.PADDED)


@dataclass(frozen=True)
class Found:
    """Results of one training."""

    tokens_per_second: float
    tokens_per_cpu_second: float
    held_out_loss: float
    efficiency: float | None
    """Share of the places in packs that hold a token. None: no packs."""


def save_model(folder: Path, texts: list[str], rows: int | None = None) -> None:
    """Write a Llama with random weights, and a byte-level tokenizer that is trained on the texts.

    The embedding has `rows` rows, by default one for each token.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prepared_config(
    label: str,
    training: dict[str, Any],
    seed: int,
    options: argparse.Namespace,
    settings: StorageSettings,
    folder: Path,
    *,
    method: str = "full",
    is_same_size: bool = False,
) -> TrainerConfig:
    """Run the prepare stage for a training that is called `label`. A step of packs has as many tokens as one of
    examples, unless `is_same_size`."""
    spec = {
        "model": {"uri": f"file://{folder / 'model'}"},
        "data": {
            "train": [{"uri": "s3://bench/train.jsonl"}],
            "validation": {"sources": [{"uri": "s3://bench/held-out.jsonl"}]},
            "test": {"fraction": 0.0},
            "format": "Text",
            "maxLength": options.capacity,
        },
        "method": {method: {}},
        "training": {
            "epochs": 2,
            "learningRate": RATE,
            "learningRateSchedule": "Constant",
            "seed": seed,
            "gradientCheckpointing": False,
            **training,
        },
        "evaluation": {"everySteps": NEVER},
        "checkpoint": {"everySteps": NEVER},
        "output": {"uri": f"s3://bench/{label}-{seed}"},
    }
    config = prepared(training_config(spec, settings, batch=EXAMPLES), folder / f"{label}-{seed}")
    found = config.prepared
    assert found is not None
    batch = config.batch
    if found.packs is not None and not is_same_size:
        size = max(1, round(EXAMPLES * found.packs / found.counts.train))
        batch = BatchPlan(global_size=size, micro_size=size, accumulation=1)
    return config.model_copy(update={"batch": batch})


def efficiency(config: TrainerConfig, store: Any) -> float | None:
    """Return the share of the places in packs that hold a token."""
    from finetune_trainer.data.info import read_dataset_info

    prepared, capacity = config.prepared, config.spec.data.max_length
    if prepared is None or prepared.packs is None:
        return None
    lengths = read_dataset_info(store, prepared.dataset_uri).lengths["train"]
    return sum(length * count for length, count in lengths.items()) / (prepared.packs * capacity)


def held_out_loss(config: TrainerConfig, store: Any) -> float:
    """Return the loss of the only validation of a training, at its end."""
    log = store.get_json(f"{config.run_uri}/training.json")["log"]
    (loss,) = (entry["eval_loss"] for entry in log if "eval_loss" in entry)
    return float(loss)


def upload_texts(store: Any, folder: Path, options: argparse.Namespace, vocabulary: int | None = None) -> None:
    """Save the model of `vocabulary` rows, and upload `options.rows` texts to train on and a quarter as many others."""
    texts = [row["text"] for row in documents("mixed", options.rows + options.rows // 4)]
    save_model(folder / "model", texts, rows=vocabulary)
    for name, part in (("train", texts[: options.rows]), ("held-out", texts[options.rows :])):
        store.put(f"s3://bench/{name}.jsonl", "\n".join(json.dumps({"text": text}) for text in part).encode())


def measure(side: str, seed: int, options: argparse.Namespace, settings: StorageSettings, folder: Path) -> Found:
    """Run one training."""
    from finetune_trainer.store.client import ObjectStore

    batching = Batching.PACKED if side in (TRL, SAME_SIZE) else side
    config = prepared_config(
        side, {"batching": batching}, seed, options, settings, folder, is_same_size=side == SAME_SIZE
    )
    if side == TRL:
        return measure_trl(config, seed, folder)
    speed = timed("ours", config, folder / f"ranks-{side}-{seed}")
    store = ObjectStore.connect(settings)
    loss = held_out_loss(config, store)
    print(f"  round {seed}, {side}: {speed.tokens_per_second:.0f} tokens/s, held-out loss {loss:.4f}", flush=True)
    return Found(speed.tokens_per_second, speed.tokens_per_cpu_second, loss, efficiency(config, store))


def measure_trl(config: TrainerConfig, seed: int, folder: Path) -> Found:
    """Run one training of TRL on the rows of the prepared run. Its second epoch is measured, too."""
    found = train_with_trl(config.model_dump(mode="json"), config.batch.global_size, folder / f"trl-{seed}")
    marks = found["marks"]
    start, end = marks[len(marks) // 2 - 1], marks[-1]
    wall, cpu, tokens = (last - first for first, last in zip(start, end, strict=True))
    print(f"  round {seed}, TRL: {tokens / wall:.0f} tokens/s, held-out loss {found['loss']:.4f}", flush=True)
    return Found(tokens / wall, tokens / cpu, found["loss"], None)


def report(found: dict[str, list[Found]], options: argparse.Namespace) -> None:
    """Print the table and the JSON object."""

    def paired(side: str, figure: str) -> float:
        pairs = zip(found[Batching.PACKED], found[side], strict=True)
        return statistics.median(getattr(one, figure) / getattr(other, figure) for one, other in pairs)

    print(f"\n{'batching':<14} {'tokens/s':>9} {'per CPU s':>10} {'held-out loss':>14} {'packed / side':>14}")
    for side, entries in found.items():
        rate, cpu_rate, loss = (
            statistics.median(getattr(entry, figure) for entry in entries)
            for figure in ("tokens_per_second", "tokens_per_cpu_second", "held_out_loss")
        )
        print(f"{side:<14} {rate:>9.0f} {cpu_rate:>10.0f} {loss:>14.4f} {paired(side, 'tokens_per_second'):>14.2f}")
    summary: dict[str, Any] = {
        "benchmark": "packing",
        "rows": options.rows,
        "rounds": options.rounds,
        "packTokens": options.capacity,
        "packedRatio": round(paired(Batching.PADDED, "tokens_per_second"), 3),
        "packedToGroupedRatio": round(paired(Batching.LENGTH_GROUPED, "tokens_per_second"), 3),
        "packedLossRatio": round(paired(Batching.PADDED, "held_out_loss"), 4),
        "packEfficiency": round(found[Batching.PACKED][0].efficiency or 0.0, 4),
        "byCpuTime": {
            "packedRatio": round(paired(Batching.PADDED, "tokens_per_cpu_second"), 3),
            "packedToGroupedRatio": round(paired(Batching.LENGTH_GROUPED, "tokens_per_cpu_second"), 3),
        },
    }
    if SAME_SIZE in found:
        summary["packedSameBatchSizeLossRatio"] = round(1 / paired(SAME_SIZE, "held_out_loss"), 4)
    if TRL in found:
        summary["packedToTrlRatio"] = round(paired(TRL, "tokens_per_second"), 3)
        summary["packedToTrlLossRatio"] = round(paired(TRL, "held_out_loss"), 4)
        summary["byCpuTime"]["packedToTrlRatio"] = round(paired(TRL, "tokens_per_cpu_second"), 3)
    print(json.dumps(summary))


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3, help="trainings per side, each with another seed")
    parser.add_argument("--rows", type=int, default=320, help="texts to train on")
    parser.add_argument("--capacity", type=int, default=256, help="tokens per pack, and per example at most")
    parser.add_argument("--trl", action="store_true", help="also train with TRL, which is installed into a cache")
    parser.add_argument(
        "--same-batch-size", action="store_true", help="also train with 16 packs per step, in fewer steps"
    )
    options = parser.parse_args()
    sides = (*SIDES, *([SAME_SIZE] if options.same_batch_size else []), *([TRL] if options.trl else []))
    with bench_storage() as (folder, settings, store):
        upload_texts(store, folder, options)
        found: dict[str, list[Found]] = {side: [] for side in sides}
        for seed in range(1, options.rounds + 1):
            for side in sides if seed % 2 else sides[::-1]:
                found[side].append(measure(side, seed, options, settings, folder))
    report(found, options)


if __name__ == "__main__":
    main()
