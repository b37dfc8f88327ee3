"""Error rates of `training.overfitting` with its defaults: small classifiers with and without enough data.

Rows are bags of words with a topic, a tenth of them with a wrong label, so a model that fits the training rows exactly
is worse on others. Each training has a mean embedding and one hidden layer, and is evaluated as in a job. Prints for
each kind of training how many of the seeds are detected, and the evaluation at which Stop would have ended it.

    python benchmarks/overfitting.py [--seeds 10] [--curves]
"""

import argparse
from dataclasses import dataclass

import torch
from torch import nn

from finetune_api.v1alpha1 import Overfitting
from finetune_trainer.train.overfitting import OverfittingWatch

CLASSES, VOCABULARY, LENGTH = 4, 400, 12
TOPICAL, WRONG = 0.35, 0.1
"""Shares of words that belong to the topic, and of wrong labels."""
BATCH, LEARNING_RATE = 16, 3e-3


@dataclass(frozen=True)
class Kind:
    """A kind of training."""

    name: str
    rows: int
    validation_rows: int
    epochs: int
    every_steps: int
    """Steps between two evaluations."""
    overfits: bool


KINDS = (
    Kind("64 rows, 60 epochs", 64, 64, 60, 8, overfits=True),
    Kind("64 rows, 60 epochs, 16 validation rows", 64, 16, 60, 8, overfits=True),
    Kind("512 rows, 30 epochs", 512, 64, 30, 32, overfits=True),
    Kind("64 rows, 6 epochs", 64, 64, 6, 4, overfits=False),
    Kind("8192 rows, 2 epochs", 8192, 400, 2, 64, overfits=False),
    Kind("8192 rows, 2 epochs, 16 validation rows", 8192, 16, 2, 64, overfits=False),
)


def rows(count: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return words (count, LENGTH) and labels (count,)."""
    topics = torch.randint(CLASSES, (count, 1), generator=draw)
    width = VOCABULARY // CLASSES
    topical = topics * width + torch.randint(width, (count, LENGTH), generator=draw)
    words = torch.randint(VOCABULARY, (count, LENGTH), generator=draw)
    words = torch.where(torch.rand(count, LENGTH, generator=draw) < TOPICAL, topical, words)
    others = torch.randint(CLASSES, (count,), generator=draw)
    return words, torch.where(torch.rand(count, generator=draw) < WRONG, others, topics[:, 0])


def curve(kind: Kind, seed: int) -> list[tuple[int, float, float]]:
    """Train, and return step, validation loss and mean training loss since the previous evaluation."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    words, labels = rows(kind.rows, draw)
    other_words, other_labels = rows(kind.validation_rows, draw)
    model = nn.Sequential(nn.EmbeddingBag(VOCABULARY, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    found, since, step = [], [], 0
    for _ in range(kind.epochs):
        for batch in torch.randperm(kind.rows, generator=draw).split(BATCH):
            loss = nn.functional.cross_entropy(model(words[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            since.append(float(loss.detach()))
            step += 1
            if step % kind.every_steps == 0:
                with torch.no_grad():
                    validation = float(nn.functional.cross_entropy(model(other_words), other_labels))
                found.append((step, validation, sum(since) / len(since)))
                since = []
    return found


def detected_at(losses: list[tuple[int, float, float]], rule: Overfitting) -> tuple[int, OverfittingWatch] | None:
    """Return the number of the evaluation, from 1, at which overfitting is found, and the state there."""
    watch = OverfittingWatch()
    for number, (step, validation, training) in enumerate(losses, start=1):
        watch = watch.after(validation, training, step, rule)
        if watch.found:
            return number, watch
    return None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--curves", action="store_true", help="print the losses of the first seed of each kind")
    arguments = parser.parse_args()
    rule = Overfitting()
    for kind in KINDS:
        curves = [curve(kind, seed) for seed in range(arguments.seeds)]
        if arguments.curves:
            print([(round(validation, 3), round(training, 3)) for _, validation, training in curves[0]])
        found = [detected_at(losses, rule) for losses in curves]
        places = [f"{one[0]}/{len(losses)}" for one, losses in zip(found, curves, strict=True) if one is not None]
        right = len(places) if kind.overfits else len(curves) - len(places)
        print(
            f"{kind.name}: {'overfits' if kind.overfits else 'healthy'}, detected in {len(places)} of {len(curves)}, "
            f"errors {1 - right / len(curves):.0%}; at evaluation {', '.join(places) or '-'}"
        )


if __name__ == "__main__":
    main()
