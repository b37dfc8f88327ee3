"""What an exported folder needs so that other versions of transformers, vLLM and PEFT read it. Needs no torch.

transformers 5 writes files that version 4 cannot read or reads wrongly: tokenizer_config.json names classes and lists
that version 4 does not know, and `rope_theta` has moved into `rope_parameters`, so that version 4 falls back to its
default of 10,000 without a warning.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from .files import tokenizer_files

OLDEST_TRANSFORMERS, OLDEST_PEFT = "4.57", "0.17"
"""Oldest versions that exported folders were loaded with: Llama, Qwen 2, Gemma, GPT-2, GPT-NeoX, BERT, DistilBERT and
RoBERTa gave the same logits as in the version that wrote them."""

_ROPE_WORDS = ("rope", "rotary")
"""Keys of config.json with these words describe rotary embeddings, which no training of ours changes."""
_NOT_SCALING = ("rope_theta", "partial_rotary_factor")
"""Entries of `rope_parameters` that version 4 keeps outside `rope_scaling`."""
_TOKENIZER_CONFIG = "tokenizer_config.json"


def base_name(uri: str) -> tuple[str, str | None]:
    """Name and revision of a base model as PEFT and the hub write them: `hf://` addresses give the hub's own name."""
    if uri.startswith("hf://"):
        name, _, revision = uri.removeprefix("hf://").partition("@")
        return name, revision or None
    return uri.removeprefix("file://"), None


def copy_tokenizer(base: Path, folder: Path, *, pad_token: str | None = None) -> None:
    """Copy the base model's tokenizer files as they are.

    `pad_token` is added where tokenizer_config.json names none: a decoder that classifies needs one for batches.
    """
    for name in tokenizer_files(base):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(base / name, folder / name)
    if pad_token is None:
        return
    path = folder / _TOKENIZER_CONFIG
    settings = json.loads(path.read_text()) if path.exists() else {}
    if settings.get("pad_token") is None:
        path.write_text(json.dumps(settings | {"pad_token": pad_token}, indent=2, ensure_ascii=False) + "\n")


def keep_generation_config(base: Path, folder: Path) -> None:
    """The base model's generation_config.json as it is; without one, what transformers has written stays."""
    path = base / "generation_config.json"
    if path.exists():
        shutil.copyfile(path, folder / path.name)


def add_older_names(folder: Path, base: Path) -> None:
    """Add to config.json the keys that version 4 reads, where the installed version still reads the same from it."""
    from transformers import AutoConfig

    path = folder / "config.json"
    written = path.read_text()
    before = AutoConfig.from_pretrained(folder).to_dict()
    original = json.loads((base / "config.json").read_text())
    path.write_text(json.dumps(with_older_names(json.loads(written), original), indent=2, sort_keys=True) + "\n")
    after = AutoConfig.from_pretrained(folder).to_dict()
    if any(after.get(key) != value for key, value in before.items()):
        path.write_text(written)


def with_older_names(config: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """`config` with `torch_dtype` and the rotary embeddings under the names of version 4.

    `base` is the base model's own config.json. What it says about rotary embeddings goes before what is derived.
    """
    result = dict(config)
    if "dtype" in config:
        result.setdefault("torch_dtype", config["dtype"])
    kept = {key: value for key, value in base.items() if any(word in key for word in _ROPE_WORDS)}
    for key, value in (kept | _derived(config.get("rope_parameters"), kept)).items():
        result.setdefault(key, value)
    nested = config.get("text_config")
    if isinstance(nested, dict):
        its_base = base.get("text_config")
        result["text_config"] = with_older_names(nested, its_base if isinstance(its_base, dict) else {})
    return result


def _derived(parameters: Any, kept: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and the like from `rope_parameters`, which may be a dict per type of layer."""
    if not isinstance(parameters, dict):
        return {}
    found: dict[str, Any] = {}
    whole = parameters.get("full_attention", parameters)
    local = parameters.get("sliding_attention")
    if isinstance(whole, dict) and "rope_theta" in whole:
        found["rope_theta"] = whole["rope_theta"]
        if whole.get("partial_rotary_factor") is not None:
            found["partial_rotary_factor"] = whole["partial_rotary_factor"]
        if whole.get("rope_type", "default") != "default":
            found["rope_scaling"] = {key: value for key, value in whole.items() if key not in _NOT_SCALING}
    if isinstance(local, dict) and "rope_theta" in local:
        found["rope_local_base_freq"] = local["rope_theta"]
    return {key: value for key, value in found.items() if key not in kept}
