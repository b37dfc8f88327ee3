"""Adds tokens to a base model: to its tokenizer, its embeddings and its output matrix.

The prepare stage writes the result as another model folder, which is then the base model of the run. Therefore every
process and every attempt starts with the same values, at every ZeRO stage.

A new token stands for a form, which is a word or, if the tokenizer keeps the space before a word in its tokens, also a
space and the word. Its row in each matrix is the mean of the rows of its pieces, the tokens that it replaces
(Sachidananda et al. 2021, arXiv 2109.07460).
"""

import copy
import json
import shutil
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tokenizers import AddedToken, Tokenizer

from finetune_api.v1alpha1 import Task

from ..errors import BadConfigError, ModelUnusableError
from ..new_tokens import VOCABULARY_FILE, NewToken, NewTokens
from .fetch import ModelFolder, listed_folder
from .files import CONFIG_FILES, INDEX_FILE, WEIGHTS_FILE, tokenizer_files
from .inspect import tensor_shapes
from .tokenizer import keeps_spaces, load_tokenizer
from .weights import WeightPlan, plan_weights, unpartitioned

BASE_TOKENIZER_FILE = "base_tokenizer.json"
"""File of a model folder with new tokens: the tokenizer without them."""

_WORD_MARK = "\u2581"
_FIELD = "spec.model.vocabulary"
_COPIED_BYTES = 16 << 20
_ROUNDS = 10
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of safetensors -> types of torch."""
_NAMED = 5
"""Maximum number of words that a note names."""


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new tokens."""

    tokenizer: Any
    tokens: NewTokens
    known: tuple[str, ...]
    """Words of the spec that are tokens of the base model."""
    base: Tokenizer
    """The tokenizer without new tokens."""


class Forms:
    """Finds how a tokenizer divides forms, and whether tokens of them would change the text around them."""

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder, self._uri = folder, uri
        self.tokenizer = _plain_tokenizer(folder, uri)
        self.backend: Tokenizer = self.tokenizer.backend_tokenizer
        _refuse_word_marks(self.backend, uri)
        self.has_spaces = keeps_spaces(self.backend)
        """Whether a token contains the space before a word."""
        added = self.backend.get_added_tokens_decoder()
        special = {*self.tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}
        self.unknown = self.tokenizer.unk_token_id
        self._forbidden = special - {self.unknown}

    def of(self, word: str) -> tuple[str, ...]:
        """The forms of a word."""
        return (f" {word}", word) if self.has_spaces else (word,)

    def pieces(self, forms: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens of each form within a text; empty if some of them also contain other characters, or if a special
        token is among them."""
        found = []
        encodings = self.backend.encode_batch([_context(form) for form in forms], add_special_tokens=False)
        for form, encoding in zip(forms, encodings, strict=True):
            begin = 1 if form.startswith(" ") else 0
            end = begin + len(form)
            inside = [
                (token, start >= begin and stop <= end)
                for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
                if stop > begin and start < end
            ]
            ids = tuple(token for token, _ in inside)
            is_usable = all(whole for _, whole in inside) and self._forbidden.isdisjoint(ids)
            found.append(ids if is_usable else ())
        return found

    def is_known(self, pieces: tuple[int, ...]) -> bool:
        """Whether these are the pieces of a token of the base model."""
        return len(pieces) == 1 and pieces[0] != self.unknown

    def extended(self, forms: Mapping[str, tuple[int, ...]]) -> tuple[Any, dict[str, int], list[str]]:
        """A tokenizer with tokens for these forms (with their pieces), the id of each, and the forms that do not work:
        the token is not used, or it changes the tokens around it."""
        tokenizer = _plain_tokenizer(self._folder, self._uri)
        # Tokenizers that remove the spaces also normalize, for example to lower case, before they divide a text.
        normalized = not self.has_spaces
        tokenizer.add_tokens(
            [
                AddedToken(form, single_word=not form.startswith(" "), normalized=normalized, special=False)
                for form in forms
            ]
        )
        backend = tokenizer.backend_tokenizer
        ids = {form: backend.token_to_id(form) for form in forms}
        taken = set(self.backend.get_vocab(with_added_tokens=True).values())
        wrong = [form for form, token in ids.items() if token is None or token in taken]
        pieces = {token: forms[form] for form, token in ids.items() if token is not None and form not in wrong}
        texts = [_context(form) for form in forms]
        before = self._ids(texts)
        after = [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]
        for form, old, new in zip(forms, before, after, strict=True):
            replaced = [piece for token in new for piece in pieces.get(token, (token,))]
            if form not in wrong and (ids[form] not in new or replaced != old):
                wrong.append(form)
        return tokenizer, ids, wrong

    def key(self, form: str) -> str:
        """Equal for forms that the tokenizer does not distinguish, such as those that differ only in case."""
        normalizer = self.backend.normalizer
        return form if self.has_spaces or normalizer is None else str(normalizer.normalize_str(form))

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch(texts, add_special_tokens=False)]


def _refuse_word_marks(backend: Tokenizer, uri: str) -> None:
    """Raise ModelUnusableError for tokenizers in the manner of SentencePiece.

    They add a mark before words, also after a new token, so that a text with new tokens has others around them, and its
    loss could not be compared with that of the base model.
    """
    parts = json.loads(backend.to_str())
    if any(_WORD_MARK in json.dumps(parts[name], ensure_ascii=False) for name in ("normalizer", "pre_tokenizer")):
        raise ModelUnusableError(
            f"{uri}: the tokenizer marks the beginnings of words with {_WORD_MARK}, as SentencePiece does, so that new "
            "tokens would change the tokens around them",
            advice=f"remove {_FIELD}, or use a base model with a byte-level or WordPiece tokenizer",
        )


def _context(form: str) -> str:
    """A text that contains the form: after another word, or at the start."""
    return f"a{form} b" if form.startswith(" ") else f"{form} b"


def _plain_tokenizer(folder: Path, uri: str) -> Any:
    """The tokenizer as it is stored, unlike `load_tokenizer`, which adds a pad token."""
    from transformers import AutoTokenizer

    load_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelUnusableError(f"{uri}: the tokenizer has no fast version", advice=f"remove {_FIELD}")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def choose_tokens(forms: Forms, words: Sequence[str], learned: Iterable[str], most: int, uri: str) -> Extension:
    """Choose the new tokens: all forms of `words`, then the first `most` forms of `learned` that can be tokens.

    Raises BadConfigError if a word cannot be a token, or if there is no new token.
    """
    chosen, known = _chosen_words(forms, words, uri)
    keys = {forms.key(form) for form in chosen}
    rest = [form for form in learned if forms.key(form) not in keys]
    pieces = dict(zip(rest, forms.pieces(rest), strict=True)) if rest else {}
    candidates = {form: found for form, found in pieces.items() if len(found) > 1}
    for _ in range(_ROUNDS):
        taken = dict(islice(candidates.items(), most))
        tokenizer, ids, wrong = forms.extended(chosen | taken)
        if not wrong:
            break
        candidates = {form: found for form, found in candidates.items() if form not in wrong}
    else:
        taken = {}
        tokenizer, ids, _ = forms.extended(chosen)
    if not ids:
        reasons = [f"{_are_known(known)} in the vocabulary of {uri}"] if known else []
        reasons += ["no word of the training split can be learned"] if most else []
        raise BadConfigError(
            f"{_FIELD} must add at least one token: {'; '.join(reasons)}",
            advice=f"write other words, or remove {_FIELD}",
        )
    tokens = [NewToken(id=ids[form], text=form, pieces=found) for form, found in (chosen | taken).items()]
    added = NewTokens(tokens=tuple(sorted(tokens, key=lambda token: token.id)))
    return Extension(tokenizer, added, tuple(known), forms.backend)


def _chosen_words(forms: Forms, words: Sequence[str], uri: str) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Forms of the words that become tokens with their pieces, and the words that are tokens already."""
    pieces = {form: found for word in words for form, found in _pieces_of(forms, word).items()}
    new: dict[str, tuple[int, ...]] = {}
    keys = set()
    for word in words:
        for form in forms.of(word):
            if not pieces[form] or forms.is_known(pieces[form]):
                # Without a new token for the space and the word, one for the word would take it from behind the space.
                break
            if forms.key(form) not in keys:
                keys.add(forms.key(form))
                new[form] = pieces[form]
    _, _, wrong = forms.extended(new)
    for word in words:
        first = forms.of(word)[0]
        if not pieces[first] or first in wrong:
            raise BadConfigError(
                f"{_FIELD}.add must not have {word!r}: the tokenizer of {uri} cannot read it as one token without "
                "changing the tokens around it",
                advice="remove the word",
            )
    known = [word for word in words if forms.is_known(pieces[forms.of(word)[0]])]
    return {form: found for form, found in new.items() if form not in wrong}, known


def _pieces_of(forms: Forms, word: str) -> dict[str, tuple[int, ...]]:
    own = forms.of(word)
    return dict(zip(own, forms.pieces(own), strict=True))


def note_of(extension: Extension, uri: str) -> str:
    """Names the words that were not added, in one line; empty: all were."""
    if not extension.known:
        return ""
    return f"{_FIELD}.add: {_are_known(extension.known)} in the vocabulary of {uri}"


def unused_note(extension: Extension, words: Collection[str], occurring: Collection[int]) -> str:
    """A warning about words of the spec that are no token of a training row; empty: all are. `occurring` are the new
    tokens that are."""
    used = {token.text.strip() for token in extension.tokens.tokens if token.id in occurring}
    added = {token.text.strip() for token in extension.tokens.tokens}
    unused = [word for word in words if word in added - used]
    if not unused:
        return ""
    return (
        f"{_FIELD}.add: no row of the training split has {_named(unused)}, so the new embeddings are not trained; "
        "remove the words, or add records with them"
    )


def _are_known(words: Sequence[str]) -> str:
    """`'the' is`, `'the', 'a' are`."""
    return f"{_named(words)} {'are' if len(words) > 1 else 'is'}"


def _named(words: Sequence[str]) -> str:
    shown = ", ".join(repr(word) for word in words[:_NAMED])
    return f"{shown} and {len(words) - _NAMED:,} more" if len(words) > _NAMED else shown


def write_extended(
    folder: Path, uri: str, task: Task, plan: WeightPlan, extension: Extension, target: Path
) -> ModelFolder:
    """Write the model with the new tokens to the new folder `target`. `plan` is that of `folder`.

    Needs the memory of one embedding matrix. Raises ModelUnusableError if the model has no embedding matrix that could
    be extended.
    """
    added = extension.tokens
    size = plan.embeddings
    if size is None:
        raise ModelUnusableError(
            f"{uri} has no embeddings of tokens, so {_FIELD} cannot add any", advice=f"remove {_FIELD}"
        )
    first, last = added.tokens[0].id, added.tokens[-1].id
    if first > size:
        raise ModelUnusableError(
            f"{uri}: the tokenizer has {first:,} tokens, and the model's embedding has {size:,} rows",
            advice="use the tokenizer files that belong to the model",
        )
    rows = max(size, last + 1)
    target.mkdir(parents=True)
    shapes = tensor_shapes(folder, uri)
    stored = _stored_names(plan, shapes, size, uri)
    index = json.loads((folder / INDEX_FILE).read_bytes()) if (folder / INDEX_FILE).exists() else None
    files = sorted(set(index["weight_map"].values())) if index else [WEIGHTS_FILE]
    grown = sum(_write_weights(folder / name, target / name, stored, rows, added) for name in files)
    if index is not None:
        if isinstance(index.get("metadata", {}).get("total_size"), int):
            index["metadata"]["total_size"] += grown
        (target / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    for name in CONFIG_FILES:
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)
    _set_size(target / CONFIG_FILES[0], rows)
    extension.tokenizer.save_pretrained(target)
    (target / VOCABULARY_FILE).write_text(added.model_dump_json(indent=1) + "\n")
    extension.base.save(str(target / BASE_TOKENIZER_FILE))
    _check(target, uri, task, plan, extension, rows)
    unknown = {path.name for path in target.iterdir() if path.is_file()} - {
        *tokenizer_files(target), *CONFIG_FILES, *files, INDEX_FILE, VOCABULARY_FILE, BASE_TOKENIZER_FILE
    }  # fmt: skip
    for name in unknown:
        (target / name).unlink()
    # Not an address of a local folder, which would not be stored.
    return listed_folder(target, f"{len(added.tokens)} new tokens and {uri}", (VOCABULARY_FILE, BASE_TOKENIZER_FILE))


def _stored_names(plan: WeightPlan, shapes: Mapping[str, tuple[int, ...]], size: int, uri: str) -> set[str]:
    """Names in the weight files of the parameters that have one row per token."""
    with unpartitioned(), torch.device("meta"):
        model = plan.model_class(plan.config)
        config = copy.deepcopy(plan.config)
        config.get_text_config().vocab_size += 1
        larger = plan.model_class(config).state_dict()
    prefix = f"{model.base_model_prefix}."
    names: set[str] = set()
    missing: dict[int, tuple[str, tuple[int, ...]]] = {}
    found: set[int] = set()
    for name, parameter in model.state_dict(keep_vars=True).items():
        if larger[name].shape == parameter.shape or name in plan.new:
            continue
        if parameter.shape[0] != size or larger[name].shape[0] != size + 1:
            raise _not_extensible(uri, f"{name} has the shape {list(parameter.shape)}")
        known = (name, name.removeprefix(prefix), prefix + name)
        matches = {each for each in known if shapes.get(each, (0,))[0] == size}
        if matches:
            names |= matches
            found.add(id(parameter))
        else:
            missing[id(parameter)] = (name, tuple(parameter.shape))
    for identity, (name, shape) in missing.items():
        if identity in found:  # tied parameters are stored once
            continue
        # The loader renames some parameters, such as embed_out.weight of GPT-NeoX.
        renamed = [each for each, stored in shapes.items() if stored == shape and each not in names]
        if len(renamed) != 1:
            raise _not_extensible(uri, f"{name} is not in the weight files")
        names.add(renamed[0])
    if not names:
        raise _not_extensible(uri, "no parameter has one row per token")
    return names


def _not_extensible(uri: str, why: str) -> ModelUnusableError:
    return ModelUnusableError(
        f"{uri}: {_FIELD} cannot extend the embeddings of this model: {why}", advice=f"remove {_FIELD}"
    )


def _write_weights(source: Path, target: Path, names: Collection[str], rows: int, added: NewTokens) -> int:
    """Copy a safetensors file with matrices of `rows` rows under these names. Returns the number of added bytes.

    The file has the length of its header (8 bytes, little-endian), a JSON header, and the tensors without gaps.
    """
    with source.open("rb") as file, target.open("wb") as out:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        start = 8 + length
        metadata = {key: value for key, value in header.items() if key == "__metadata__"}
        entries = sorted(
            ((name, entry) for name, entry in header.items() if name not in metadata),
            key=lambda item: item[1]["data_offsets"],
        )
        made: dict[str, Any] = {}
        end = 0
        for name, entry in entries:
            begin, stop = entry["data_offsets"]
            shape = list(entry["shape"])
            size = stop - begin
            if name in names:
                size = size // shape[0] * rows
                shape[0] = rows
            made[name] = {"dtype": entry["dtype"], "shape": shape, "data_offsets": [end, end + size]}
            end += size
        content = json.dumps(metadata | made, separators=(",", ":")).encode()
        content += b" " * (-len(content) % 8)
        out.write(struct.pack("<Q", len(content)) + content)
        for name, entry in entries:
            begin, stop = entry["data_offsets"]
            file.seek(start + begin)
            if name in names:
                out.write(_extended_matrix(file.read(stop - begin), entry, rows, added))
            else:
                _copy(file, out, stop - begin)
        return end - entries[-1][1]["data_offsets"][1] if entries else 0


def _copy(file: BinaryIO, out: BinaryIO, count: int) -> None:
    while count:
        part = file.read(min(count, _COPIED_BYTES))
        out.write(part)
        count -= len(part)
        if not part:
            raise OSError("the weight file is shorter than its header says")


def _extended_matrix(content: bytes, entry: Mapping[str, Any], rows: int, added: NewTokens) -> bytes:
    """The bytes of a matrix with a row for every new token. Rows that a model had in reserve are replaced."""
    dtype, shape = _TYPES[entry["dtype"]], list(entry["shape"])
    matrix = torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)
    larger = torch.zeros([rows, *shape[1:]], dtype=dtype)
    larger[: shape[0]] = matrix
    for token in added.tokens:
        total = torch.zeros(shape[1:], dtype=torch.float64)
        for piece in token.pieces:  # in a fixed order, so that the sum is the same on every machine
            total += matrix[piece].double()
        larger[token.id] = (total / len(token.pieces)).to(dtype)
    return bytes(larger.view(torch.uint8).numpy()) if larger.dim() else b""


def _set_size(path: Path, rows: int) -> None:
    config = json.loads(path.read_text())
    nested = config.get("text_config")
    has_nested = isinstance(nested, dict) and ("vocab_size" in nested or "vocab_size" not in config)
    (nested if has_nested else config)["vocab_size"] = rows
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _check(folder: Path, uri: str, task: Task, plan: WeightPlan, extension: Extension, rows: int) -> None:
    """Raise ModelUnusableError unless the folder loads with the new rows, and its tokenizer reads the new tokens."""
    written = plan_weights(folder, uri, task)
    if written.embeddings != rows or written.new != plan.new:
        raise _not_extensible(uri, f"the written model has {written.embeddings} rows, not {rows}")
    reloaded = load_tokenizer(folder).backend_tokenizer
    reloaded.no_truncation()
    texts = [_context(token.text) for token in extension.tokens.tokens]
    found = reloaded.encode_batch(texts, add_special_tokens=False)
    lost = [
        token.text
        for token, encoding in zip(extension.tokens.tokens, found, strict=True)
        if token.id not in encoding.ids
    ]
    if lost:
        raise _not_extensible(uri, f"its tokenizer loses {_named(lost)} when it is saved")
