"""Downloads the files that the spec names, and computes their digests."""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from finetune_api.rules import UNCLEAR_PATH, plain_path
from finetune_api.v1alpha1 import Data, Source, TrainingSource

from ..errors import BadConfigError, BadDataError
from ..hub import HubFile, HubRepository, resolve_dataset
from ..store.client import ObjectInfo, ObjectStore
from ..store.digests import sha256_of
from ..store.transfer import inside
from ..store.uri import matches

_PARALLEL_DOWNLOADS = 8
"""Small files are limited by latency; a large one is already downloaded in parallel parts."""


@dataclass(frozen=True)
class SourceFile:
    """One file of records on this machine."""

    uri: str
    path: Path
    sha256: str
    size: int
    split: str = "train"
    """`train`, `validation` or `test`: the part of the spec that names it."""
    source: int = 0
    """Index of the first source in the list of the spec that names it."""


@dataclass(frozen=True)
class _Found:
    """A file that an address names; not downloaded yet unless it is local."""

    uri: str
    """The address of this file alone; for the hub with its commit, so that its content never changes."""
    name: str
    version: str
    """Differs after the content was replaced: size and ETag, or time. Empty: the address contains the version."""
    fetch: Callable[[Path], Path]
    """Download it to the path, or return its existing path."""


def fetch_sources(sources: Sequence[Source], field: str, store: ObjectStore, folder: Path) -> tuple[SourceFile, ...]:
    """All files that the sources name, each once, sorted by address: the order of the list does not matter.

    `field` is the path in the spec for error messages. Raises BadDataError for an address that names no file, and
    BadConfigError if two sources name the same file and have weights.
    """
    found: dict[str, tuple[_Found, int]] = {}
    for index, source in enumerate(sources):
        for file in _resolve(source.uri, field, store):
            identity = _identity(file.uri)
            known, first = found.get(identity, (file, index))
            reason = f"{source.uri} and {sources[first].uri} both name {file.uri}"
            check_one_weight(sources, first, index, reason, field)
            found[identity] = (min(known, file, key=attrgetter("uri")), first)
    folder.mkdir(parents=True, exist_ok=True)
    in_order = sorted(found.values(), key=lambda entry: entry[0].uri)
    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
        return tuple(pool.map(lambda entry: _fetch(entry[0], entry[1], folder), in_order))


def _identity(uri: str) -> str:
    """Local paths may have several spellings."""
    return f"file://{os.path.realpath(uri.removeprefix('file://'))}" if uri.startswith("file://") else uri


def check_one_weight(sources: Sequence[Source], first: int, second: int, reason: str, field: str) -> None:
    """Raise BadConfigError if one of two sources, which have a file in common, has a weight. `reason` says which."""
    if first == second:
        return
    if any(isinstance(source, TrainingSource) and source.weight != 1 for source in (sources[first], sources[second])):
        raise BadConfigError(
            f"{field}[{second}].uri must not name files of {field}[{first}].uri, because a file has one weight: "
            f"{reason}",
            advice=f"exclude the file from one of them, or remove one and set the weight of the other; to train more "
            f"often on a file that is already in {field}[{first}], set a weight above 1 there",
        )


def listing_digest(data: Data, store: ObjectStore) -> str:
    """Return the SHA-256 over split, address and version of every source file. Nothing is downloaded.

    Raises BadDataError for an address that names no file, and storage errors.
    """
    splits = {"train": data.train, "validation": data.validation.sources or (), "test": data.test.sources or ()}
    if data.augmentation is not None and data.augmentation.synonyms is not None:
        splits["augmentation.synonyms"] = (data.augmentation.synonyms,)
    found = {
        (split, file.uri, file.version)
        for split, sources in splits.items()
        for source in sources
        for file in _resolve(source.uri, f"spec.data.{split}", store)
    }
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()


def _resolve(uri: str, field: str, store: ObjectStore) -> list[_Found]:
    if uri.startswith("file://"):
        found = _local(uri, field)
    elif uri.startswith("hf://"):
        found = _on_hub(uri)
    else:
        if written := plain_path(uri):
            raise BadConfigError(f"{field}: {uri} must {UNCLEAR_PATH}", advice=f"write {written}")
        found = [_stored(info, store) for info in store.glob(uri) if not info.uri.endswith("/")]
    if not found:
        raise BadDataError(
            f"{field}: {uri} matches no file",
            advice="check the address; `*`, `?` and `[...]` match within one name and never across `/`",
        )
    return found


def _stored(info: ObjectInfo, store: ObjectStore) -> _Found:
    def fetch(path: Path) -> Path:
        store.download(info.uri, path)
        return path

    return _Found(info.uri, info.uri.rsplit("/", 1)[1], f"{info.size} {info.etag}", fetch)


def _on_hub(uri: str) -> list[_Found]:
    repository, wanted = resolve_dataset(uri)
    files = [file for file in repository.files if file.name == wanted]
    if not files:  # a name with brackets is first tried literally
        files = [file for file in repository.files if matches(wanted, file.name)]
    return [_in_repository(repository, file) for file in files]


def _in_repository(repository: HubRepository, file: HubFile) -> _Found:
    def fetch(path: Path) -> Path:
        repository.download(file, path)
        return path

    uri = f"hf://datasets/{repository.name}@{repository.commit}/{file.name}"
    try:
        inside(Path(), file.name)
    except BadConfigError:
        raise BadDataError(
            f"{repository.uri} matches the file {file.name!r}, which must be a path within the repository",
            advice="name other files, or rename the file in the repository",
        ) from None
    return _Found(uri, file.name.rsplit("/", 1)[-1], "", fetch)


def _local(uri: str, field: str) -> list[_Found]:
    pattern = uri.removeprefix("file://")
    found = [pattern] if Path(pattern).exists() else glob.glob(pattern)
    for path in found:
        if Path(path).is_dir() and path == pattern:
            raise BadDataError(
                f"{field}: {uri} is a folder", advice=f"name its files, for example {uri.rstrip('/')}/*.jsonl"
            )
    return [_in_place(Path(path)) for path in found if Path(path).is_file()]


def _in_place(path: Path) -> _Found:
    info = path.stat()
    return _Found(f"file://{path}", path.name, f"{info.st_size} {info.st_mtime_ns}", lambda _: path)


def _fetch(found: _Found, source: int, folder: Path) -> SourceFile:
    place = folder / hashlib.sha256(os.fsencode(found.uri)).hexdigest()[:16]
    place.mkdir(exist_ok=True)
    path = found.fetch(inside(place, found.name))
    return SourceFile(found.uri, path, sha256_of(path), path.stat().st_size, source=source)
