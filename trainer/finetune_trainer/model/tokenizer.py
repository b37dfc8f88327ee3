"""Loads and checks the tokenizer of the base model."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelUnusableError
from .files import tokenizer_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def keeps_spaces(tokenizer: "Tokenizer") -> bool:
    """Whether tokens contain the space before a word, so that decoding restores a text exactly."""
    first, *others = tokenizer.encode("a a", add_special_tokens=False).ids
    return bool(others != [first])


def load_tokenizer(folder: Path) -> Any:
    """Load the fast tokenizer of a model folder. It pads on the right, with the end token if there is no pad token.

    Raises ModelUnusableError if the tokenizer cannot be loaded or is not a fast one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="right")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelUnusableError(
            f"{folder}: the tokenizer cannot be loaded: {error}",
            advice="the model folder needs the tokenizer.json and tokenizer_config.json that belong to the model",
        ) from error
    if not tokenizer.is_fast:
        raise ModelUnusableError(
            f"{folder}: the tokenizer {type(tokenizer).__name__} has no fast version",
            advice="save it with transformers' save_pretrained so that the folder has a tokenizer.json",
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelUnusableError(
                f"{folder}: the tokenizer has neither a pad token nor an end token",
                advice="set eos_token or pad_token in tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def check_special_tokens(tokenizer: Any, rows: int, uri: str) -> None:
    """Raise ModelUnusableError if a special token of the tokenizer has no row in an embedding of `rows` rows."""
    for name in ("pad_token", "bos_token", "eos_token", "cls_token", "sep_token", "unk_token"):
        token_id = getattr(tokenizer, f"{name}_id", None)
        if token_id is not None and token_id >= rows:
            raise embedding_too_small(tokenizer, token_id, rows, uri, f"the tokenizer's {name}")


def embedding_too_small(tokenizer: Any, token_id: int, rows: int, uri: str, what: str) -> ModelUnusableError:
    """Return the error for a token without a row in the embedding; `what` states the origin of the token."""
    return ModelUnusableError(
        f"{uri}: {what} {tokenizer.convert_ids_to_tokens(token_id)!r} has the id {token_id}, but the model's embedding "
        f"has {rows} rows; the tokenizer has {len(tokenizer)} tokens",
        advice="use the tokenizer files that belong to the model, or save the model with the tokenizer's size: "
        f"model.resize_token_embeddings({len(tokenizer)})",
    )


def tokenizer_digest(folder: Path) -> str:
    """Return the SHA-256 over the names and contents of the files that affect tokenization."""
    digest = hashlib.sha256()
    for name in tokenizer_files(folder):
        digest.update(f"{name}\0{hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
