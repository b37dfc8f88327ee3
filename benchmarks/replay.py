"""What a language model forgets when it is tuned to a domain, with and without replay of general text.

Model, texts and loop are those of forgetting.py: SmolLM2-135M-Instruct is trained on Italian, Spanish and Portuguese
conversations (the domain). With replay, it is also trained on rows of the English documentation of Python, which
`finetune_trainer.data.source_weights` draws for a weight. All trainings have the same rows of the domain, so those with
replay have more steps. The loss is measured on conversations and documentation that are not trained on, and on English
conversations, of which no training has any.

    python benchmarks/replay.py [--seeds 1] [--steps 30] [--results FILE]

Prints a row for each setting, with the mean over the seeds and the range, then a JSON object. With `--results`,
finished trainings are appended to the file and not repeated. A training takes some minutes on one core.
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]

import numpy as np
import torch
from forgetting import (
    BATCH,
    LEARNING_RATE,
    MEASURED_ROWS,
    Setting,
    append_result,
    domain_texts,
    read_results,
    rows,
    train,
)

from finetune_trainer.data.source_weights import Repeats
from finetune_trainer.model.tokenizer import load_tokenizer

MEASURED = ("domain", "general", "other")


@dataclass(frozen=True)
class Mix:
    """A training: its setting, and the weight of general text, of which there are as many rows as of the domain."""

    setting: Setting
    weight: float = 0.0
    is_trained: bool = True


MIXES = (
    Mix(Setting("base model"), is_trained=False),
    Mix(Setting("no replay")),
    Mix(Setting("replay, weight 0.25"), weight=0.25),
    Mix(Setting("replay, weight 0.5"), weight=0.5),
    Mix(Setting("no replay, a quarter of the learning rate", rate=LEARNING_RATE / 4)),
)


def mixed(domain: torch.Tensor, general: torch.Tensor, weight: float, seed: int) -> torch.Tensor:
    """Return the rows of an epoch, (rows, tokens): all of the domain, and the sample of general text for a weight."""
    if not weight:
        return domain
    draw = torch.Generator().manual_seed(seed)
    general = general[torch.randperm(len(general), generator=draw)]
    sources = np.repeat([0, 1], [len(domain), len(general)])
    repeats = Repeats([1.0, weight], np.array([len(domain), len(general)]))
    times = repeats.take(sources, np.ones(len(sources), dtype=np.bool_))
    return torch.cat([domain, general]).repeat_interleave(torch.from_numpy(times.astype(np.int64)), dim=0)


def main() -> None:
    """Print the table and the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30, help="steps without replay")
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/support"))
    from real_models import smollm2

    folder = smollm2()
    tokenizer = load_tokenizer(folder)
    domain, general = rows(domain_texts(), tokenizer), rows([topics[name] for name in sorted(topics)], tokenizer)
    other = rows(domain_texts(["english"]), tokenizer)
    held_out = len(domain) // 10
    is_measured = torch.zeros(len(general), dtype=torch.bool)
    is_measured[:: len(general) // MEASURED_ROWS] = True
    measured = {"domain": domain[:held_out], "general": general[is_measured], "other": other}
    texts = {name: tokens[:MEASURED_ROWS] for name, tokens in measured.items()}
    count = arguments.steps * BATCH
    pool = general[~is_measured]
    trained_domain, trained_general = domain[held_out:][:count], pool[:: max(1, len(pool) // count)][:count]
    done = read_results(arguments.results)
    for seed in range(arguments.seeds):
        for mix in MIXES:
            key = (mix.setting.name, seed, arguments.steps)
            if key in done or (seed and not mix.is_trained):
                continue
            tokens = mixed(trained_domain, trained_general, mix.weight, seed)
            steps = len(tokens) // BATCH if mix.is_trained else 0
            found = train(folder, mix.setting, seed, steps, texts | {"train": tokens}) | {"steps": steps}
            done[key] = found
            print(f"seed {seed}, {mix.setting.name}: {found}", flush=True)
            append_result(arguments.results, key, found)
    table: dict[str, dict[str, float]] = {}
    for mix in MIXES:
        name = mix.setting.name
        seeds = range(arguments.seeds if mix.is_trained else 1)
        figures = [done[name, seed, arguments.steps] for seed in seeds]
        table[name] = {value: statistics.fmean(each[value] for each in figures) for value in figures[0]}
        shown = (
            f"{text} {table[name][text]:.3f} ({min(each[text] for each in figures):.3f} to "
            f"{max(each[text] for each in figures):.3f})"
            for text in MEASURED
        )
        print(f"{name}: {', '.join(shown)}, {table[name]['steps']:.0f} steps, {table[name]['seconds']:.0f} s")
    print(json.dumps({"steps": arguments.steps, "seeds": arguments.seeds, "settings": table}))


if __name__ == "__main__":
    main()
