"""Which files of a model folder are the model. Pure."""

from fnmatch import fnmatch

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
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
MODEL_PATTERNS = ("config.json", "generation_config.json", *TOKENIZER_PATTERNS, *WEIGHT_PATTERNS)
"""Everything that loading needs. Pickled weights, other frameworks' and sub-folders are left where they are."""

PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack")
"""Weights that are not loaded: pickles run code, the others have lost precision or belong to other frameworks."""

VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""One of these has to be there for a tokenizer."""


def is_model_file(name: str) -> bool:
    """True for a name (without folder) that loading needs."""
    return matches(name, MODEL_PATTERNS)


def is_tokenizer_file(name: str) -> bool:
    """True for a name that decides how text becomes tokens."""
    return matches(name, TOKENIZER_PATTERNS)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """True when any pattern fits."""
    return any(fnmatch(name, pattern) for pattern in patterns)
