"""Makes exported folders readable by other versions of transformers, vLLM and PEFT. Does not import torch.

transformers 5 writes files that version 4 cannot read or misreads: tokenizer_config.json contains classes and lists
that version 4 does not support, and `rope_theta` has moved into `rope_parameters`, so that version 4 uses its default
of 10,000 without a warning.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from .files import tokenizer_files

OLDEST_TRANSFORMERS, OLDEST_PEFT = "4.57", "0.17"
"""Oldest versions that were tested with exported folders: Llama, Qwen 2, Gemma, GPT-2, GPT-NeoX, BERT, DistilBERT and
RoBERTa gave the same logits as in the version that wrote them."""
OLDEST_COMPRESSED_TENSORS = "0.20"
"""Oldest version that was tested."""

_ROPE_WORDS = ("rope", "rotary")
"""Keys of config.json with these words describe rotary embeddings, which fine-tuning does not change."""
_NOT_SCALING = ("rope_theta", "partial_rotary_factor")
"""Entries of `rope_parameters` that version 4 keeps outside `rope_scaling`."""
_TOKENIZER_CONFIG = "tokenizer_config.json"


def base_name(uri: str) -> tuple[str, str | None]:
    """Return name and revision of a base model as PEFT and the hub write them; for `hf://`, the name on the hub."""
    if uri.startswith("hf://"):
        name, _, revision = uri.removeprefix("hf://").partition("@")
        return name, revision or None
    return uri.removeprefix("file://"), None


def copy_tokenizer(base: Path, folder: Path, *, pad_token: str | None = None) -> None:
    """Copy the base model's tokenizer files unchanged, except for the padding token and names that version 4 lacks.

    `pad_token` is added if tokenizer_config.json has none: a decoder that classifies needs one for batches.
    """
    for name in tokenizer_files(base):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(base / name, folder / name)
    _use_older_tokenizer_names(folder)
    if pad_token is None:
        return
    path = folder / _TOKENIZER_CONFIG
    settings = json.loads(path.read_text()) if path.exists() else {}
    if settings.get("pad_token") is None:
        path.write_text(json.dumps(settings | {"pad_token": pad_token}, indent=2, ensure_ascii=False) + "\n")


def _use_older_tokenizer_names(folder: Path) -> None:
    """Change tokenizer_config.json to names that version 4 reads, if the installed version still reads the same."""
    path = folder / _TOKENIZER_CONFIG
    written = path.read_text() if path.exists() else "{}"
    settings = json.loads(written)
    older = with_older_tokenizer_names(settings)
    if older == settings:
        return
    before = _read_tokenizer(folder)
    is_same = False
    path.write_text(json.dumps(older, indent=2, ensure_ascii=False) + "\n")
    try:
        is_same = _read_tokenizer(folder) == before
    finally:
        if not is_same:
            path.write_text(written)


def _read_tokenizer(folder: Path) -> tuple[Any, ...]:
    """What the installed version reads from the tokenizer files, in comparable form."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    backend = getattr(tokenizer, "backend_tokenizer", None)  # tokenizers in Python have none
    rules = tokenizer.get_vocab() if backend is None else backend.to_str()
    special = (tokenizer.special_tokens_map, tokenizer.extra_special_tokens)
    return type(tokenizer), rules, special, tokenizer.chat_template


def with_older_tokenizer_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the content of tokenizer_config.json with the names of version 4, which version 5 also reads.

    Version 5 saves tokenizers under names that version 4 fails to load.
    """
    result = dict(settings)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        result["tokenizer_class"] = "PreTrainedTokenizerFast"
    # A dict has the names of the tokens as keys and is the same in both versions.
    if isinstance(settings.get("extra_special_tokens"), list):
        result.setdefault("additional_special_tokens", result.pop("extra_special_tokens"))
    return result


def keep_generation_config(base: Path, folder: Path) -> None:
    """Copy the base model's generation_config.json, if it has one, over the file that transformers has written."""
    path = base / "generation_config.json"
    if path.exists():
        shutil.copyfile(path, folder / path.name)


def add_older_names(folder: Path, base: Path) -> None:
    """Add the keys that version 4 reads to config.json, if the installed version still reads the same values."""
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
    """Return `config` with `torch_dtype` and the rotary embeddings under the names of version 4.

    `base` is the base model's config.json. Its settings of rotary embeddings take precedence over derived ones.
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
    """Derive `rope_theta`, `rope_scaling` etc. from `rope_parameters`, which may contain a dict per layer type."""
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
