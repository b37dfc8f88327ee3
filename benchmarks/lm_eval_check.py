"""Checks that lm-evaluation-harness reports the same loss and perplexity as a run's report.

    make check-lm-eval [ARGS='--only "tiny"']

Each job is trained and evaluated by `finetune run`, on the CPU, and its test split is written by `finetune lm-eval`.
The command that it prints is run in an environment of its own with the exported model, and then with the base model.
Compared with `evaluation.json`:

tuned     The exported model: loss and perplexity.
base      The base model: loss. It is the control, which must differ from the tuned model.

Differences are relative, and at most TOLERANCE or HALF_TOLERANCE. Prints a table, and as the last line a JSON object.
The exit status is 1 if a figure differs, or if a control does not.
"""

import argparse
import json
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]
from typing import Any

from ruamel.yaml import YAML

from environments import environment
from finetune_cli.local import demo_assets
from finetune_trainer.logs import quiet_libraries
from process_support import ROOT
from real_models import smollm2
from tiny_models import LLAMA3, save_tiny_llama

TOLERANCE, HALF_TOLERANCE = 1e-5, 5e-3
"""In Float32 and in BFloat16. The two compute other batches, with other rounding."""
SETTINGS = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
TEST_SHARE = 0.2


@dataclass
class Case:
    """A job, its data, and the options of `finetune lm-eval`."""

    name: str
    model: Path
    records: list[dict[str, Any]]
    spec: dict[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    left_out: bool = False
    """Rows are left out, so that the results must differ from the report. A control."""

    def job(self, work: Path) -> Path:
        """The file of the job; its data is next to it."""
        folder = work / self.key
        folder.mkdir()
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in self.records))
        spec = {
            "model": {"uri": f"file://{self.model}", "dtype": "Float32"},
            "data": {"train": [{"uri": f"file://{data}"}], "test": {"fraction": TEST_SHARE}, "maxLength": 128},
            "training": {"maxSteps": 10, "learningRate": 1e-3, "globalBatchSize": 8},
            "output": {"uri": f"s3://runs/{self.key}", "formats": ["Merged"]},
        }
        for block, values in self.spec.items():
            spec[block] = {**spec.get(block, {}), **values}
        path = folder / "job.yaml"
        document = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob"}
        path.write_text(json.dumps({**document, "metadata": {"name": self.key}, "spec": spec}))
        return path

    @property
    def key(self) -> str:
        """Name of the job."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower())


def exchanges(count: int) -> list[list[str]]:
    """Conversations of the corpus, in a random order."""
    found = []
    for path in sorted(demo_assets.corpus_folder().glob("*.yml")):
        found += YAML(typ="safe", pure=True).load(path)["conversations"]
    found = [[str(turn) for turn in turns] for turns in found if len(turns) > 1]
    random.Random(1).shuffle(found)
    return found[:count]


def chats(count: int) -> list[dict[str, Any]]:
    """Conversations of four messages."""
    turns = exchanges(2 * count)
    roles = ("user", "assistant") * 2
    return [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, [*one[:2], *two[:2]], strict=True)]}
        for one, two in zip(turns[:count], turns[count:], strict=True)
    ]


def instructions(count: int) -> list[dict[str, Any]]:
    return [{"prompt": turns[0], "completion": turns[1]} for turns in exchanges(count)]


def documents(count: int, *, characters: int) -> list[dict[str, Any]]:
    """The beginnings of pages of the documentation of Python."""
    return [{"text": topics[name][:characters]} for name in sorted(topics)[:count]]


def cases(work: Path) -> Iterator[Case]:
    plain = save_tiny_llama(work / "tiny")
    chat = save_tiny_llama(work / "tiny-chat", LLAMA3)
    lora, whole = {"method": {"lora": {"rank": 8}}}, {"training": {"maxSteps": 30, "globalBatchSize": 16}}
    yield Case("tiny, Instruction, without a template", plain, instructions(200), whole)
    yield Case("tiny, Chat, template of Llama 3", chat, chats(100), whole | {"data": {"maxLength": 256}})
    short = documents(60, characters=150)
    yield Case("tiny, Text, whole texts", plain, short, whole | {"data": {"maxLength": 200, "format": "Text"}})
    long = documents(20, characters=1500)
    yield Case("tiny, Text, divided", plain, long, whole | {"data": {"format": "Text"}}, left_out=True)
    model = smollm2()
    yield Case("SmolLM2-135M, Chat", model, chats(50), lora)
    yield Case("SmolLM2-135M, Text", model, documents(50, characters=300), lora | {"data": {"format": "Text"}})
    half = lora | {"model": {"dtype": "BFloat16"}}
    yield Case("SmolLM2-135M, Instruction, BFloat16", model, instructions(100), half, tolerance=HALF_TOLERANCE)


def finetune(*arguments: object, work: Path) -> str:
    """Run a command with the work folder; returns its standard output. Exits if it fails."""
    command = [sys.executable, "-m", "finetune_cli", *map(str, arguments), "--work-dir", str(work / "finetune")]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def lm_eval(printed: str, model: Path, python: Path, target: Path) -> tuple[dict[str, Any], str]:
    """Run the command that `finetune lm-eval` has printed; returns the figures and the version."""
    command = shlex.split(printed.replace("\\\n", "").replace("pretrained=MODEL", f"pretrained={model}"))
    command = [str(python), "-m", "lm_eval", *command[1:], "--device", "cpu", "--output_path", str(target)]
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    caches = {"HF_HOME": str(target / "cache")}
    done = subprocess.run(command, env=kept | SETTINGS | caches, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr[-4000:]}")
    results = json.loads(next(target.rglob("results_*.json")).read_text())
    (figures,) = results["results"].values()
    return {name: figures[f"{name},none"] for name in ("loss", "perplexity")}, results["lm_eval_version"]


def checked(case: Case, python: Path, work: Path) -> dict[str, Any]:
    """The row of the table."""
    finetune("run", case.job(work), "-o", "plain", work=work)
    folder = work / case.key
    skip = ["--skip"] if case.left_out else []
    lines = finetune("lm-eval", case.key, folder / "task", *skip, work=work).splitlines()
    (printed,) = [index for index, line in enumerate(lines) if line.startswith("lm_eval ")]
    command = "\n".join(lines[printed:])
    (model,) = [line.removeprefix("model: ") for line in lines if line.startswith("model: ")]
    finetune("store", "get", model, folder / "model", work=work)
    run = model.removesuffix("model/")
    record = json.loads(finetune("store", "get", f"{run}evaluation.json", "-", work=work))
    tuned, version = lm_eval(command, folder / "model", python, folder / "tuned")
    base, _ = lm_eval(command, case.model, python, folder / "base")
    wanted, before = record["tuned"]["metrics"], record["baseline"]["metrics"]
    errors = {
        "loss": tuned["loss"] / wanted["Loss"] - 1,
        "perplexity": tuned["perplexity"] / wanted["Perplexity"] - 1,
        "base": base["loss"] / before["Loss"] - 1,
    }
    errors = {name: abs(value) for name, value in errors.items()}
    task = lines[0].partition(": ")[2]
    left_out = [line for line in lines if line.startswith("left out")]
    equal = all(value <= case.tolerance for value in errors.values())
    differs = abs(base["loss"] / wanted["Loss"] - 1) > 10 * case.tolerance
    return {
        "task": "; ".join([task, *left_out]),
        "ours": wanted["Loss"],
        "lm_eval": tuned["loss"],
        "base": before["Loss"],
        "lm_eval_base": base["loss"],
        "errors": errors,
        "tolerance": case.tolerance,
        "version": version,
        "holds": differs and equal is not case.left_out,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    arguments = parser.parse_args()
    quiet_libraries()
    python = environment("lm-eval", ROOT / "requirements/lm-eval.txt", title="lm-eval (6 GB)")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        print(f"{'case':40}{'tuned':>9}{'lm-eval':>9}{'base':>9}{'lm-eval':>9}{'error':>9}", flush=True)
        for case in cases(work):
            if arguments.only not in case.name:
                continue
            row = found[case.name] = checked(case, python, work)
            figures = "".join(f"{row[name]:9.4f}" for name in ("ours", "lm_eval", "base", "lm_eval_base"))
            word = "" if row["holds"] else "  WRONG"
            print(f"{case.name:40}{figures}{max(row['errors'].values()):9.1e}{word}\n    {row['task']}", flush=True)
    wrong = sum(not row["holds"] for row in found.values())
    print(json.dumps({"cases": found, "wrong": wrong}))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
