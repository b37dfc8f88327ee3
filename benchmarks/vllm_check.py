"""Checks that vLLM reads exported folders: the current version, and one that is a year older.

    make check-vllm [ARGS='--versions vllm']

Models are trained in memory by changing random parameters, and exported with the code of the trainer. vLLM runs on the
CPU in Float32, in an environment of its own for each version, with its own code for loading, models and attention.
Compared with transformers:

rope    The parameters of rotary embeddings.
chat    The tokens of a conversation with the chat template.
error   The largest difference of an output of the trained model: log probabilities of the LOGPROBS most probable tokens
        at every position of four rows, or probabilities of the labels. At most TOLERANCE.
greedy  The continuation of these rows.

`effect` is the same difference between the base model and the trained one: a reader that ignores the trained weights
would have it as `error`. Prints a table, and as the last line a JSON object. The exit status is 1 if a folder is read
differently, or if a control, which must be read differently, is not.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from environments import environment
from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Task
from finetune_trainer.logs import quiet_libraries
from finetune_trainer.methods import METHODS
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.load import load_model
from finetune_trainer.model.portable import with_older_names, with_older_tokenizer_names
from finetune_trainer.model.vocabulary import Forms, choose_tokens, write_extended
from finetune_trainer.model.weights import plan_weights
from finetune_trainer.tasks import TASKS
from process_support import ROOT
from real_models import smollm2
from tiny_models import CHATML, tiny_tokenizer
from train_configs import train_config

VERSIONS = ("vllm", "vllm-oldest")
"""Lock files of the environments."""
MERGED, ADAPTER = ArtifactFormat.MERGED, ArtifactFormat.ADAPTER
TOLERANCE = 1e-3
NEW_TOKENS = 8
LOGPROBS = 300
"""Tokens at each position whose log probabilities are compared, the most probable ones. Tiny models have 341."""
LABELS = ("bad", "good")
MESSAGES = [
    {"role": "user", "content": "what is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "a good film? COVID-19 or myocarditis?"},
]
SETTINGS = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
SETTINGS |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "WARNING"}

# Attention of vLLM on the CPU requires heads of 32 or more.
_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIZES |= {"max_position_embeddings": 256, "tie_word_embeddings": False}
_GROUPED = _SIZES | {"num_key_value_heads": 1}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 64, "rope_theta": 500000.0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED | {"rope_theta": 250000.0},
    "llama 3": _GROUPED | {"rope_parameters": _LLAMA3},
    "qwen2": _GROUPED | {"rope_theta": 1000000.0},
    "qwen3": _GROUPED | {"head_dim": 32, "tie_word_embeddings": True, "rope_theta": 1000000.0},
    "mistral": _GROUPED | {"head_dim": 32, "sliding_window": None, "rope_theta": 1000000.0},
    "gemma": _GROUPED | {"head_dim": 32, "tie_word_embeddings": True},
    "gpt_neox": _SIZES | {"rotary_pct": 0.5, "rotary_emb_base": 5000},
    "gpt2": {"n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 2},
}
ADAPTERS = ("llama", "qwen2", "qwen3", "gemma")
"""Models whose adapters are also read."""
VARIANTS = {"qwen2": {"variant": "RsLoRA"}}
CLASSIFIERS = {"bert": _SIZES, "llama": MODELS["llama"]}


@dataclass
class Case:
    """A folder that vLLM reads, and the outputs of the trained model."""

    name: str
    model: Path
    adapter: Path | None = None
    labels: bool = False
    rows: list[list[int]] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    """For each row of a language model, log probabilities of shape (tokens - 1, vocabulary)."""
    greedy: list[list[int]] = field(default_factory=list)
    rope: dict[str, Any] = field(default_factory=dict)
    chat: list[int] = field(default_factory=list)
    effect: float = 0.0
    unreadable: Collection[int] = ()
    """A control: major versions of transformers with which vLLM must not read the trained model."""

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": str(self.model),
            "adapter": str(self.adapter or ""),
            "labels": self.labels,
            "rows": self.rows,
            "messages": MESSAGES,
            "new_tokens": NEW_TOKENS,
            "logprobs": LOGPROBS,
        }


def save_base(name: str, fields: dict[str, Any], folder: Path) -> Path:
    """A random model whose files are as transformers 4 wrote them."""
    tokenizer = tiny_tokenizer(CHATML)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(name.split(maxsplit=1)[0], **{**fields, **special})
    torch.manual_seed(0)
    # An encoder has no head yet.
    (AutoModel if name == "bert" else AutoModelForCausalLM).from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    as_transformers_4(folder)
    return folder


def as_transformers_4(folder: Path) -> None:
    """Replace names that only transformers 5 reads, in the files of a base model."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(with_older_tokenizer_names(json.loads(path.read_text()))))
    path = folder / "config.json"
    config = with_older_names(json.loads(path.read_text()), {})
    config.pop("rope_parameters", None)
    path.write_text(json.dumps(config))


def exported(
    base: Path, folder: Path, *, task: Task = Task.CAUSAL_LM, change: float = 0.1, lora: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """Export a LoRA model whose adapter is not zero, in both formats; returns the base model and the trained one."""
    labels = LABELS if TASKS[task].has_labels else ()
    config = train_config(
        model={"uri": f"file://{base}"},
        method={"lora": {"rank": 4} | (lora or {})},
        output={"formats": [MERGED.value, ADAPTER.value]},
        prepared={"task": task, "labels": labels},
    )
    untrained, model = (load_model(base, task=task, labels=labels, dtype=Dtype.FLOAT32, seed=3) for _ in range(2))
    torch.manual_seed(1)
    method: Any = METHODS["lora"]
    trained = method.adapted(model, config.spec.method.lora, TASKS[task])
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(change * torch.randn_like(parameter))
    weights = {name: value.detach() for name, value in trained.named_parameters() if value.requires_grad}
    for artifact in (MERGED, ADAPTER):
        write_folder(artifact, trained, weights, folder / artifact.value, config=config, base=base)
    return untrained.eval(), trained.eval()


@torch.no_grad()
def language_model(case: Case, untrained: Any, trained: Any, *, length: int = 24) -> Case:
    """Add the results of transformers."""
    rows = torch.randint(5, trained.config.vocab_size, (4, length), generator=torch.Generator().manual_seed(2))
    before, after = (model(input_ids=rows).logits[:, :-1].float().log_softmax(-1) for model in (untrained, trained))
    longer = rows
    for _ in range(NEW_TOKENS):
        longer = torch.cat([longer, trained(input_ids=longer).logits[:, -1:].argmax(-1)], dim=1)
    tokenizer = AutoTokenizer.from_pretrained(case.adapter or case.model)
    case.chat = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    case.rows, case.outputs = rows.tolist(), list(after)
    case.greedy = longer[:, length:].tolist()
    case.rope = getattr(AutoConfig.from_pretrained(case.model), "rope_parameters", None) or {}
    case.effect = float((before - after).abs().max())
    return case


@torch.no_grad()
def classifier(case: Case, untrained: Any, trained: Any) -> Case:
    rows = torch.randint(5, trained.config.vocab_size, (4, 24), generator=torch.Generator().manual_seed(2))
    before, after = (model(input_ids=rows).logits.float().softmax(-1) for model in (untrained, trained))
    case.rows, case.outputs, case.effect = rows.tolist(), list(after), float((before - after).abs().max())
    case.rope = getattr(AutoConfig.from_pretrained(case.model), "rope_parameters", None) or {}
    return case


def cases(work: Path) -> Iterator[Case]:
    for name, fields in MODELS.items():
        base = save_base(name, fields, work / name / "base")
        models = exported(base, work / name, lora=VARIANTS.get(name, {}))
        yield language_model(Case(f"{name} merged", work / name / MERGED.value), *models)
        if name in ADAPTERS:
            yield language_model(Case(f"{name} adapter", base, work / name / ADAPTER.value), *models)
        if name == "llama 3":
            yield language_model(Case(f"{name} as saved", without_older_names(work / name), unreadable=[4]), *models)
    base, folder = work / "llama/base", work / "DoRA"
    models = exported(base, folder, lora={"variant": "DoRA"})
    yield language_model(Case("DoRA merged", folder / MERGED.value), *models)
    yield language_model(Case("DoRA adapter", base, folder / ADAPTER.value, unreadable=[4, 5]), *models)
    yield from changed_tokenizers(work)
    for name, fields in CLASSIFIERS.items():
        folder = work / f"{name} classifier"
        models = exported(save_base(name, fields, folder / "base"), folder, task=Task.SEQUENCE_CLASSIFICATION)
        yield classifier(Case(f"{name} classifier merged", folder / MERGED.value, labels=True), *models)
    base = work / "smollm2" / "base"
    shutil.copytree(smollm2(), base)
    as_transformers_4(base)
    models = exported(base, work / "smollm2", change=0.02)
    yield language_model(Case("SmolLM2 merged", work / "smollm2" / MERGED.value), *models)
    yield language_model(Case("SmolLM2 adapter", base, work / "smollm2" / ADAPTER.value), *models)


def changed_tokenizers(work: Path) -> Iterator[Case]:
    """Models whose tokenizer transformers 5 has saved: that of the base model, and one with new tokens of a job."""
    saved, extended = work / "saved tokenizer", work / "vocabulary"
    base = save_base("llama", MODELS["llama"], saved / "base")
    extension = choose_tokens(Forms(base, "base"), ("myocarditis", "COVID-19"), [], 0, "base")
    plan = plan_weights(base, "base", Task.CAUSAL_LM)
    extended.mkdir()
    write_extended(base, "base", Task.CAUSAL_LM, plan, extension, extended / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(base)
    for folder in (saved, extended):
        models = exported(folder / "base", folder)
        yield language_model(Case(f"{folder.name} merged", folder / MERGED.value), *models)


def without_older_names(folder: Path) -> Path:
    """A copy of the merged model whose config.json has only the names of transformers 5."""
    target = folder / "as saved"
    shutil.copytree(folder / MERGED.value, target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: config[key] for key in config if key not in ("rope_theta", "rope_scaling")}))
    return target


def difference(expected: torch.Tensor, found: list[Any]) -> float:
    """The largest one of a row: of all labels, or of the tokens at each position that were read."""
    if expected.dim() == 1:
        return float((torch.tensor(found) - expected).abs().max())
    differences = []
    for position, read_values in zip(expected, found, strict=True):
        ids = torch.tensor([int(token) for token in read_values])
        differences.append(float((torch.tensor(list(read_values.values())) - position[ids]).abs().max()))
    return float(torch.tensor(differences).max())  # NaN if one is


def compared(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """The row of the table."""
    if "error" in found:
        return {"equal": False, "failure": found["error"], "effect": case.effect}
    error = float(torch.tensor([*map(difference, case.outputs, found["outputs"])]).max())
    result = {"rope": {key: found["rope"].get(key) for key in case.rope} == case.rope} if case.rope else {}
    if not case.labels:
        result |= {"chat": found["chat"] == case.chat, "greedy": found["greedy"] == case.greedy}
    return {"equal": all(result.values()) and error <= TOLERANCE, **result, "error": error, "effect": case.effect}


def read(name: str, documents: list[dict[str, Any]], work: Path) -> dict[str, Any]:
    """Read the cases with one version."""
    python = environment(name, ROOT / f"requirements/{name}.txt", title=f"{name} (7 GB)")
    given, target, log = (work / f"{name}.{end}" for end in ("cases.json", "results.json", "log"))
    given.write_text(json.dumps(documents))
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python), str(ROOT / "benchmarks/vllm_reader.py"), str(given), str(target)]
    with log.open("wb") as output:
        status = subprocess.run(
            command, env=kept | SETTINGS, cwd=work, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if status.returncode != 0:
        raise SystemExit(f"vLLM failed with exit status {status.returncode}:\n{log.read_text()[-4000:]}")
    return dict(json.loads(target.read_text()))


def show(versions: dict[str, str], rows: dict[str, dict[str, Any]]) -> None:
    print(f"\nvLLM {versions['vllm']}, transformers {versions['transformers']}")
    print(f"{'folder':26}{'rope':>7}{'chat':>7}{'greedy':>8}{'error':>10}{'effect':>9}")
    words = {None: "-", True: "same", False: "OTHER"}
    for name, row in rows.items():
        if "failure" in row:
            print(f"{name:26}  FAILED: {row['failure'][:200]}")
            continue
        rope, chat, greedy = (words[row.get(key)] for key in ("rope", "chat", "greedy"))
        print(f"{name:26}{rope:>7}{chat:>7}{greedy:>8}{row['error']:10.1e}{row['effect']:9.2f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=VERSIONS)
    parser.add_argument("--only", default="", help="part of the name of a folder")
    arguments = parser.parse_args()
    quiet_libraries()
    found, wrong = [], 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        made = [case for case in cases(work) if arguments.only in case.name]
        documents = [case.document() for case in made]
        for name in arguments.versions:
            read_by = read(name, documents, work)
            versions, results = read_by["versions"], read_by["results"]
            rows = {case.name: compared(case, results[case.name]) for case in made}
            show(versions, rows)
            found.append(versions | {"folders": rows})
            major = int(versions["transformers"].split(".", 1)[0])
            wrong += sum(rows[case.name]["equal"] is (major in case.unreadable) for case in made)
    print(json.dumps({"readers": found, "wrong": wrong}))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
