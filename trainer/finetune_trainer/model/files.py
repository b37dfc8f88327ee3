"""Which files of a model folder are the model. Pure."""

import json
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase

TOKENIZER_PATTERNS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
)
CONFIG_FILES = ("config.json", "generation_config.json")
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
"""JSON; its `weight_map` names the file that holds each tensor."""

PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack")
"""Weights that are not loaded: pickles run code, the others have lost precision or belong to other frameworks."""

VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""One of these has to be there for a tokenizer."""


def model_files(names: Collection[str], read_index: Callable[[], str | bytes]) -> list[str]:
    """The names, sorted, that loading reads: configuration, tokenizer, and the weights that transformers would open.

    `names` are relative to the model's folder. Files in sub-folders, pickled weights, other frameworks' weights and
    safetensors files that nothing refers to (`consolidated.safetensors`) do not belong to the model. `read_index`
    returns the content of INDEX_FILE and is called only where `names` has it; a damaged index names no files.
    """
    weights = {WEIGHTS_FILE}
    if INDEX_FILE in names:
        weights |= {INDEX_FILE, *_indexed(read_index())}
    return sorted(
        name
        for name in set(names)
        if "/" not in name and (name in CONFIG_FILES or is_tokenizer_file(name) or name in weights)
    )


def _indexed(index: str | bytes) -> set[str]:
    try:
        return {name for name in json.loads(index)["weight_map"].values() if isinstance(name, str)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()  # inspecting the folder reports it


def is_tokenizer_file(name: str) -> bool:
    """True for a name, without folder, that decides how text becomes tokens."""
    return "/" not in name and matches(name, TOKENIZER_PATTERNS)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """True when any pattern fits; `*` also matches slashes."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
