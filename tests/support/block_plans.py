"""Inputs of a worker process of the prepare stage, for small texts, and a program that starts workers and waits."""

import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiny_models
from finetune_api.v1alpha1 import BadRecordAction, Columns, DataFormat
from finetune_trainer.data.formats import Formatter
from finetune_trainer.data.pipeline import BlockPlan, Step, Tally, encode_examples, format_records
from finetune_trainer.data.readers import Block, blocks
from finetune_trainer.data.sources import SourceFile
from finetune_trainer.data.tokenize import FastTokenizer, encode_classified
from finetune_trainer.data.workers import process_blocks
from rows import classified, jsonl


@dataclasses.dataclass(frozen=True)
class Apply:
    """`format` and `encode` of a classifier. A class, because worker processes import what they call by name."""

    tokenizer: FastTokenizer

    def __call__(self, records: Iterator[Any], tally: Tally) -> Iterator[Any]:
        examples = format_records(Formatter(DataFormat.CLASSIFICATION, Columns()), records, tally)
        return encode_examples(encode_classified, self.tokenizer, 64, examples, tally)


def divide_by_zero(items: Iterator[Any], tally: Tally) -> Iterator[Any]:
    """A step that fails at its first item."""
    del tally
    for _ in items:
        yield 1 // 0


def plan_of(folder: Path, *more: Any) -> BlockPlan:
    """`more`: functions of further steps."""
    apply = Apply(FastTokenizer.of(tiny_models.tiny_tokenizer()))
    steps = [Step(f"step {number}", 1, {}, function) for number, function in enumerate([apply, *more])]
    return BlockPlan(
        tuple(steps),
        Formatter(DataFormat.CLASSIFICATION, Columns()).columns_of,
        BadRecordAction.FAIL,
        1,
        2,
        False,
        folder,
    )


def blocks_of(folder: Path, rows: int = 400) -> list[tuple[int, Block]]:
    """Return at least twenty blocks."""
    path = folder / "rows.jsonl"
    path.write_bytes(jsonl(classified(rows)))
    file = SourceFile("file:///rows.jsonl", path, "", path.stat().st_size)
    return [(0, block) for block in blocks(file, lambda names: names, file.size // 20)]


def main() -> None:
    """Start two workers, print their process ids, and wait for the end of standard input."""
    folder = Path(sys.argv[1])
    results = process_blocks(plan_of(folder), blocks_of(folder), 2)
    next(results)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
