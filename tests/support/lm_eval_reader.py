"""Evaluates a task as lm-evaluation-harness 0.4.13 does, without it: requests, tokens, likelihoods, aggregation.

`make check-lm-eval` runs the real one.
"""

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from ruamel.yaml import YAML

Encode = Callable[[str], list[int]]


def encoded_pair(context: str, continuation: str, encode: Encode) -> tuple[list[int], list[int]]:
    """Tokens of a request: white space at the end of the context becomes part of the continuation."""
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    before, whole = encode(stripped), encode(stripped + continuation)
    after = whole[len(before) :]
    assert before
    assert after
    return before, after


def task_of(folder: Path) -> dict[str, Any]:
    """The task of a folder, with the functions that it names."""
    module = _module(folder / "utils.py")
    yaml = YAML(typ="safe", pure=True)
    yaml.constructor.add_constructor("!function", lambda _, node: getattr(module, node.value.removeprefix("utils.")))
    task: dict[str, Any] = yaml.load(folder / "task.yaml")
    return task


def documents(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]


@torch.no_grad()
def figures(folder: Path, model: Any, encode: Encode) -> dict[str, float]:
    """The metrics of a task of several choices with functions of its own."""
    task = task_of(folder)
    assert (task["output_type"], task["target_delimiter"], task["num_fewshot"]) == ("multiple_choice", "", 0)
    found: dict[str, list[tuple[float, int]]] = {}
    for doc in documents(folder):
        context = task["doc_to_text"](doc)
        pairs = [encoded_pair(context, text, encode) for text in task["doc_to_choice"](doc)]
        results = [(_likelihood(model, *pair), False) for pair in pairs]
        for name, item in task["process_results"](doc, results).items():
            found.setdefault(name, []).append(item)
    aggregations = {metric["metric"]: metric["aggregation"] for metric in task["metric_list"]}
    assert aggregations.keys() == found.keys()
    known = {"weighted_perplexity": _weighted_perplexity}
    return {name: known.get(aggregations[name], aggregations[name])(items) for name, items in found.items()}


def _likelihood(model: Any, context: list[int], continuation: list[int]) -> float:
    ids = torch.tensor([context + continuation])
    logits = model(input_ids=ids[:, :-1]).logits[0, -len(continuation) :].float().log_softmax(-1)
    return float(logits.gather(1, torch.tensor(continuation)[:, None]).sum())


def _weighted_perplexity(items: list[tuple[float, int]]) -> float:
    return math.exp(-sum(likelihood for likelihood, _ in items) / sum(tokens for _, tokens in items))


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("lm_eval_utils_of_a_task", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
