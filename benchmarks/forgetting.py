"""What a language model forgets when it is tuned to a domain, with and without gradual unfreezing.

SmolLM2-135M-Instruct is trained on Italian, Spanish and Portuguese conversations of chatterbot-corpus (the domain). Its
loss is measured on a tenth of them that it is not trained on, and on the English documentation of Python (general
text), both before and after. All trainings have the same data, steps and schedule. The optimizer, the learning rates
and the phases are those of the trainer; the loop around them has one process, without DeepSpeed.

    python benchmarks/forgetting.py [--seeds 2] [--steps 40] [--results FILE]

Prints a row for each setting, with the mean over the seeds and the range, then a JSON object. With `--results`,
finished trainings are appended to the file and not repeated. A training takes some minutes on one core.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]
from typing import Any

import torch
from training_speed import package_folder

from finetune_api.v1alpha1 import Dtype, FullFineTune, Task, Training
from finetune_trainer.methods import METHODS
from finetune_trainer.model.load import load_model
from finetune_trainer.model.tokenizer import load_tokenizer
from finetune_trainer.tasks import TASKS
from finetune_trainer.train.engine import make_optimizer
from finetune_trainer.train.phases import Phases
from finetune_trainer.train.schedule import rate_factor

LENGTH, BATCH, MEASURED_ROWS = 64, 4, 32
"""Tokens of a row, rows of a step, and rows of each text whose loss is measured."""
LEARNING_RATE = 2e-4
LANGUAGES = ("italian", "spanish", "portuguese")


@dataclass(frozen=True)
class Setting:
    """A way of training."""

    name: str
    method: dict[str, Any] = field(default_factory=dict)
    """`spec.method.full`; `stepsPerPhase` is a share of the steps."""
    rate: float = LEARNING_RATE


Key = tuple[str, int, int]
"""Name of a setting, seed and steps."""

BASE = Setting("base model")


def _phases(share: float) -> dict[str, Any]:
    return {"gradualUnfreezing": {"stepsPerPhase": share, "layersPerPhase": 5, "startLayers": 5}}


SETTINGS = (
    Setting("all parameters"),
    Setting("all parameters, a quarter of the learning rate", rate=LEARNING_RATE / 4),
    Setting("layerLearningRateDecay 0.9", {"layerLearningRateDecay": 0.9}),
    Setting("gradualUnfreezing, last phase after 5/6 of the steps", _phases(1 / 6)),
    Setting("gradualUnfreezing, last phase after 5/12 of the steps", _phases(1 / 12)),
)


def rows(texts: list[str], tokenizer: Any) -> torch.Tensor:
    """Return tokens (rows, LENGTH) of the texts, one after the other."""
    tokens = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    return torch.tensor(tokens[: len(tokens) // LENGTH * LENGTH]).view(-1, LENGTH)


def domain_texts(languages: Sequence[str] = LANGUAGES) -> list[str]:
    """Return the conversations in an order that does not depend on the seed of a training."""
    from ruamel.yaml import YAML

    folder = package_folder("chatterbot_corpus", "pip install --no-deps chatterbot-corpus") / "data"
    texts = [
        "\n".join(map(str, turns))
        for language in languages
        for path in sorted((folder / language).glob("*.yml"))
        for turns in YAML(typ="safe", pure=True).load(path)["conversations"]
    ]
    random.Random(7).shuffle(texts)
    return texts


@torch.no_grad()
def measured(model: Any, tokens: torch.Tensor) -> float:
    """Return the mean loss of a token."""
    model.eval()
    losses = [float(_loss(model, batch)) for batch in tokens.split(BATCH)]
    model.train()
    return statistics.fmean(losses)


def _loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())


def train(folder: Path, setting: Setting, seed: int, steps: int, texts: dict[str, torch.Tensor]) -> dict[str, float]:
    """Train with a setting; returns the losses after it, and seconds of this process."""
    method = dict(setting.method)
    if "gradualUnfreezing" in method:
        phase = method["gradualUnfreezing"]
        method["gradualUnfreezing"] = phase | {"stepsPerPhase": max(1, round(phase["stepsPerPhase"] * steps))}
    block = FullFineTune.model_validate(method)
    training = Training.model_validate({"learningRate": setting.rate, "seed": seed})
    full, task = METHODS["full"], TASKS[Task.CAUSAL_LM]
    model = load_model(folder, task=Task.CAUSAL_LM, labels=(), dtype=Dtype.FLOAT32, seed=seed)
    model.config.use_cache = False
    full.apply(model, block, task, seed=seed)
    first_phases = full.first_phases(model, block)
    optimizer = make_optimizer(model, training, full.rate_factors(model, block), first_phases)
    phases = Phases(model, optimizer, first_phases, steps=full.phase_steps(block, 1)) if first_phases else None
    warmup = math.ceil(0.1 * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(training.learning_rate_schedule, step, warmup=warmup, total=steps)
    )
    draw = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(texts["train"]), generator=draw) for _ in range(10)])
    started = time.process_time()
    for step in range(steps):
        if phases is not None:
            phases.enter(step)
        _loss(model, texts["train"][order[step * BATCH : (step + 1) * BATCH]]).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    seconds = time.process_time() - started
    return losses(model, texts) | {"seconds": seconds}


def losses(model: Any, texts: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the loss of each text that is not trained on."""
    return {name: measured(model, tokens) for name, tokens in texts.items() if name != "train"}


def main() -> None:
    """Print the table and the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/support"))
    from real_models import smollm2

    folder = smollm2()
    tokenizer = load_tokenizer(folder)
    domain = rows(domain_texts(), tokenizer)
    general = rows([topics[name] for name in sorted(topics)], tokenizer)
    held_out = len(domain) // 10
    texts = {
        "domain": domain[:held_out][:MEASURED_ROWS],
        "general": general[:: len(general) // MEASURED_ROWS][:MEASURED_ROWS],
        "train": domain[held_out:],
    }
    print(f"{len(texts['train'])} rows of the domain, {arguments.steps} steps of {BATCH}", flush=True)
    done = read_results(arguments.results)
    for key in [(setting, seed) for seed in range(arguments.seeds) for setting in (BASE, *SETTINGS)]:
        setting, seed = key
        name = (setting.name, seed, arguments.steps)
        if name not in done and (setting is not BASE or seed == 0):
            done[name] = train(folder, setting, seed, arguments.steps if setting is not BASE else 0, texts)
            print(f"seed {seed}, {setting.name}: {done[name]}", flush=True)
            append_result(arguments.results, name, done[name])
    table: dict[str, dict[str, float]] = {}
    for setting in (BASE, *SETTINGS):
        seeds = range(1 if setting is BASE else arguments.seeds)
        found = [done[setting.name, seed, arguments.steps] for seed in seeds]
        table[setting.name] = {name: statistics.fmean(figures[name] for figures in found) for name in found[0]}
        domain, general = ([figures[name] for figures in found] for name in ("domain", "general"))
        print(
            f"{setting.name}: domain {statistics.fmean(domain):.3f} ({min(domain):.3f} to {max(domain):.3f}), general "
            f"{statistics.fmean(general):.3f} ({min(general):.3f} to {max(general):.3f}), "
            f"{table[setting.name]['seconds']:.0f} s"
        )
    print(json.dumps({"steps": arguments.steps, "seeds": arguments.seeds, "settings": table}))


def read_results(path: Path | None) -> dict[Key, dict[str, float]]:
    """Return the figures of finished trainings."""
    if path is None or not path.exists():
        return {}
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return {(entry["name"], entry["seed"], entry["steps"]): entry["figures"] for entry in entries}


def append_result(path: Path | None, key: Key, figures: dict[str, float]) -> None:
    """Store the figures of a training."""
    if path is not None:
        name, seed, steps = key
        with path.open("a") as file:
            file.write(json.dumps({"name": name, "seed": seed, "steps": steps, "figures": figures}) + "\n")


if __name__ == "__main__":
    main()
