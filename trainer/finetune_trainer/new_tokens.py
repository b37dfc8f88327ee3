"""The tokens that `spec.model.vocabulary` has added to a model folder, as `model.vocabulary` has written them."""

from pathlib import Path

from finetune_api.trainer_config import Message

VOCABULARY_FILE = "vocabulary.json"
"""File of a model folder with new tokens: which they are."""


class NewToken(Message):
    """A token that was added to a tokenizer."""

    id: int
    text: str
    """The word, or a space and the word."""
    pieces: tuple[int, ...]
    """The tokens that the tokenizer of the base model divides the text into."""


class NewTokens(Message):
    """`vocabulary.json`: the new tokens, sorted by id."""

    tokens: tuple[NewToken, ...]

    @property
    def pieces(self) -> dict[int, tuple[int, ...]]:
        """New token -> the tokens that it replaces."""
        return {token.id: token.pieces for token in self.tokens}


def read_new_tokens(folder: Path) -> NewTokens:
    """Read the new tokens of a model folder that has some."""
    return NewTokens.model_validate_json((folder / VOCABULARY_FILE).read_bytes())


def new_token_ids(folder: Path) -> tuple[int, ...]:
    """Return the ids of the new tokens of a model folder, sorted. Empty: it has none."""
    if not (folder / VOCABULARY_FILE).exists():
        return ()
    return tuple(token.id for token in read_new_tokens(folder).tokens)
