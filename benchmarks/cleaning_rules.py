"""Benchmark the rules of `spec.data.cleaning` that see one record at a time: CPU time of one process per record.

    python benchmarks/cleaning_rules.py [--records 5000] [--words 20 200]

Texts are those of data_preparation.py: sentences of chatterbot-corpus, randomly joined (with a fixed seed) to texts of
20 to 200 words. Each rule processes them alone; reading, tokenizing and writing are not measured. Models of libraries
are loaded before. Prints a table and, as the last line, a JSON object.
"""

import argparse
import json
import random
import time
from typing import Any

from data_preparation import sentences

from finetune_api.v1alpha1 import BadRecordAction, DataFormat, Spec
from finetune_trainer.data.formats import Example, Formatter
from finetune_trainer.data.pipeline import Phase, Tally, optional
from finetune_trainer.data.problems import BadRecords, Place
from finetune_trainer.data.readers import Record

RULES: dict[str, dict[str, Any]] = {
    "unicode": {"unicode": True},
    "whitespace": {"whitespace": True},
    "redact": {"redact": ["Email", "Phone", "IpAddress"]},
    "minChars": {"minChars": 8},
    "languages": {"languages": ["en"]},
    "quality": {"quality": {}},
}


def texts_of(records: int, fewest: int, most: int) -> list[str]:
    """Return texts of sentences, which are on lines of their own."""
    draw, lines, texts = random.Random(1), sentences(), []
    for _ in range(records):
        found: list[str] = []
        wanted = draw.randint(fewest, most)
        while sum(len(line.split()) for line in found) < wanted:
            found.append(draw.choice(lines))
        texts.append("\n".join(found))
    return texts


def measure(cleaning: dict[str, Any], texts: list[str]) -> tuple[float, int]:
    """Return the CPU seconds of a rule for these texts, and how many it drops."""
    spec = Spec.model_validate(
        {
            "model": {"uri": "s3://bucket/model"},
            "data": {"train": [{"uri": "s3://bucket/a.jsonl"}], "format": DataFormat.TEXT, "cleaning": cleaning},
            "training": {"learningRate": 1e-3},
            "output": {"uri": "s3://bucket/out"},
        }
    )
    formatter = Formatter(DataFormat.TEXT, spec.data.columns)
    (step,) = (step for phase in (Phase.TEXTS, Phase.EXAMPLES) for step in optional(spec, phase, formatter))
    is_on_texts = bool(optional(spec, Phase.TEXTS, formatter))
    make: Any = (
        (lambda text, place: Record({"text": text}, place))
        if is_on_texts
        else (lambda text, place: Example(text=text, place=place))
    )
    items = [make(text, Place("a", number)) for number, text in enumerate(texts, start=1)]
    tally = Tally(BadRecords(BadRecordAction.FAIL))
    for _ in step.apply(iter(items[:10]), Tally(tally.bad)):
        pass
    started = time.process_time()
    for _ in step.apply(iter(items), tally):
        pass
    return time.process_time() - started, tally.dropped


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--records", type=int, default=5_000)
    parser.add_argument("--words", type=int, nargs=2, default=[20, 200], metavar=("FEWEST", "MOST"))
    arguments = parser.parse_args()
    texts = texts_of(arguments.records, *arguments.words)
    found = {}
    print(f"{len(texts):,} texts of {sum(map(len, texts)) / len(texts):.0f} characters on average")
    print(f"{'rule':>12} {'records/s':>12} {'ms per 1,000':>14} {'dropped':>8}")
    for rule, cleaning in RULES.items():
        seconds, dropped = measure(cleaning, texts)
        found[rule] = {"recordsPerSecond": round(len(texts) / seconds), "dropped": dropped}
        print(f"{rule:>12} {len(texts) / seconds:>12,.0f} {1e6 * seconds / len(texts):>14.1f} {dropped:>8,}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
