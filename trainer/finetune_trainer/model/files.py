"""Selects the files of a model folder that belong to the model."""

import json
import re
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from pathlib import Path

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
_CHAT_TEMPLATES = "additional_chat_templates"
"""Folder of transformers for all chat templates except for the default one, such as `tool_use.jinja`."""
CONFIG_FILES = ("config.json", "generation_config.json")
CARD_FILE = "README.md"
"""The model card. It does not belong to the model, whose digest it must not change."""
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
"""JSON; its `weight_map` names the file that holds each tensor."""

PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack")
"""Weights that are not loaded: pickles can run code, the others are quantized or belong to other frameworks."""

VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""A tokenizer has at least one of these."""


def model_files(names: Collection[str], read_index: Callable[[], str | bytes]) -> list[str]:
    """Return the sorted names of the files that loading reads: configuration, tokenizer and weights.

    `names` are relative to the model's folder. Files in subfolders other than chat templates, pickled weights, weights
    of other frameworks and safetensors files without a reference (`consolidated.safetensors`) do not belong to the
    model. `read_index` returns the content of INDEX_FILE and is called only if `names` contains it. A damaged index is
    treated as empty.
    """
    weights = {WEIGHTS_FILE}
    if INDEX_FILE in names:
        weights |= {INDEX_FILE, *_indexed(read_index())}
    return sorted(
        name
        for name in set(names)
        if is_tokenizer_file(name) or ("/" not in name and (name in CONFIG_FILES or name in weights))
    )


def _indexed(index: str | bytes) -> set[str]:
    try:
        return {name for name in json.loads(index)["weight_map"].values() if isinstance(name, str)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()  # inspect_model reports the error


def is_tokenizer_file(name: str) -> bool:
    """Whether the file, a path relative to the model's folder, affects tokenization."""
    if "/" not in name:
        return matches(name, TOKENIZER_PATTERNS)
    return re.fullmatch(rf"{_CHAT_TEMPLATES}/[^/]+\.jinja", name) is not None


def tokenizer_files(folder: Path) -> list[str]:
    """Return the sorted names of a folder's tokenizer files, relative to the folder."""
    paths = [*folder.iterdir(), *folder.glob(f"{_CHAT_TEMPLATES}/*.jinja")]
    names = (path.relative_to(folder).as_posix() for path in paths if path.is_file())
    return sorted(name for name in names if is_tokenizer_file(name))


def files_in(folder: Path) -> set[str]:
    """Return the names of all files and links below a folder, relative to it. Links are not followed."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in paths}


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether any pattern matches; `*` also matches slashes."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
