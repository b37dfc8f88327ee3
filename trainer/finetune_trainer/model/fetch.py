"""Downloads the base model from the hub, object storage or a local folder.

The prepare stage downloads the model from the user's address and stores a copy under the output prefix:

    <output>/models/<digest>/<file>       the files that training reads
    <output>/models/<digest>/files.json   their names, sizes and digests; written last

All later stages read that copy, so that changes at the user's address do not affect the run. Local files are in
`<cache>/models/<digest>`. The cache may be shared with other jobs, which can write to it. Every stage therefore
compares the files with their digests when it starts, and trusts nothing else in the cache.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from finetune_api.files import replace_file
from finetune_api.run_layout import base_model_folder
from finetune_api.trainer_config import Message, PreparedConfig

from ..errors import BadConfigError, ModelUnusableError, ObjectMissingError
from ..hub import HubFile, HubRepository, resolve_model
from ..locks import locked
from ..runtime import RuntimeEnv
from ..store.client import ObjectInfo, ObjectStore
from ..store.digests import folder_sha256, has_etag, sha256_of
from ..store.transfer import inside
from ..store.uri import join
from .files import INDEX_FILE, files_in, model_files, tokenizer_files

log = logging.getLogger("finetune")

T = TypeVar("T")
R = TypeVar("R")

FILES_FILE = "files.json"
_LOCAL = "file://"
_PARALLEL = 4
_ABANDONED_SECONDS = 24 * 3600.0


class ModelFile(Message):
    """A file of a model."""

    name: str
    size: int
    sha256: str


class ModelFiles(Message):
    """`files.json`: the files of a model."""

    source: str
    """Address that it was downloaded from, as in the spec."""
    revision: str = ""
    """Commit of the hub; empty for other sources."""
    files: tuple[ModelFile, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted names and content digests; identifies the model."""
        return folder_sha256((file.name, file.sha256) for file in self.files)


@dataclass(frozen=True)
class ModelFolder:
    """A local model in Hugging Face layout."""

    path: Path
    listing: ModelFiles

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted names and content digests of the files that loading needs."""
        return self.listing.digest

    @property
    def revision(self) -> str:
        """Commit of the hub; empty for other sources."""
        return self.listing.revision


@dataclass(frozen=True)
class _RemoteFile:
    """A file of a model at the user's address."""

    name: str
    fetch: Callable[[Path], None]
    is_content_of: Callable[[Path], bool | None]
    """Whether a local file is known to have the same content."""


def fetch_model(uri: str, store: ObjectStore, cache: Path) -> ModelFolder:
    """Download the current model at `s3://`, `hf://` or `file://` into the cache, unless the cache has it.

    Raises ModelUnusableError if there is no model at the address, AccessDeniedError, StorageUnreachableError.
    """
    if uri.startswith(_LOCAL):
        return _local_folder(uri)
    folder = cache / "models"
    folder.mkdir(parents=True, exist_ok=True)
    revision, available = _from_hub(uri) if uri.startswith("hf://") else _from_storage(uri, store)
    with locked(folder / f"{_short(uri)}.lock"):
        return _fetch(uri, revision, available, folder)


def listed_folder(path: Path, source: str, extra: Iterable[str] = ()) -> ModelFolder:
    """List a local folder that this program has written. `extra` are further files that belong to the model."""
    present = files_in(path)
    names = model_files(present, (path / INDEX_FILE).read_bytes)
    return ModelFolder(path, ModelFiles(source=source, files=_hashed(path, sorted({*names, *extra}))))


def store_copy(model: ModelFolder, store: ObjectStore, output_uri: str) -> None:
    """Store a copy of the model under the output prefix for later stages, unless there is one.

    A local folder is not copied, because later stages run on the same machine and read it directly.
    """
    if model.listing.source.startswith(_LOCAL):
        return
    uri = base_model_folder(output_uri, model.digest)
    stored = {info.uri: info.size for info in store.list(uri + "/")}
    wanted = {join(uri, file.name): file.size for file in model.listing.files}
    if join(uri, FILES_FILE) not in stored or any(stored.get(name) != size for name, size in wanted.items()):
        store.upload_files([(model.path / file.name, join(uri, file.name)) for file in model.listing.files])
        content = model.listing.model_dump_json(indent=1).encode()
        store.put(join(uri, FILES_FILE), content, content_type="application/json")


def prepared_model(config: PreparedConfig, store: ObjectStore, runtime: RuntimeEnv) -> ModelFolder:
    """Return the base model that the run was prepared with, including the tokens of `spec.model.vocabulary`.

    May be called by all processes of a pod. Raises BadConfigError if the stored copy is missing or damaged,
    ModelUnusableError if a local folder has changed.
    """
    return _prepared(config.prepared.model_digest, config, store, runtime)


def original_model(config: PreparedConfig, store: ObjectStore, runtime: RuntimeEnv) -> ModelFolder:
    """Like `prepared_model`, without the tokens of `spec.model.vocabulary`."""
    return _prepared(config.prepared.original_model_digest, config, store, runtime)


def _prepared(digest: str, config: PreparedConfig, store: ObjectStore, runtime: RuntimeEnv) -> ModelFolder:
    with locked(runtime.scratch / "model.lock"):  # one process of the pod hashes and downloads while the others wait
        # A model with new tokens is always in storage.
        if config.spec.model.uri.startswith(_LOCAL) and digest == config.prepared.original_model_digest:
            return _unchanged_folder(config.spec.model.uri, digest, runtime)
        uri = base_model_folder(config.output_uri, digest)
        listing = _stored_listing(uri, digest, store)
        folder = runtime.cache / "models"
        path = folder / listing.digest
        seen = _VerifiedRecord(runtime.scratch / "model.verified", path, listing)
        if not seen.is_unchanged():
            if not _is_intact(path, listing):
                with locked(folder / f"{listing.digest}.lock"):
                    _download_copy(uri, listing, store, folder)
            seen.remember()
        return ModelFolder(path, listing)


# The source


def _local_folder(uri: str) -> ModelFolder:
    path = Path(uri.removeprefix(_LOCAL))
    if not path.is_dir():
        raise ModelUnusableError(f"{uri} is not a folder", advice="name a folder in Hugging Face layout")
    present = {entry.name for entry in path.iterdir()} | set(tokenizer_files(path))
    names = model_files(present, (path / INDEX_FILE).read_bytes)
    return ModelFolder(path, ModelFiles(source=uri, files=_hashed(path, names)))


def _unchanged_folder(uri: str, digest: str, runtime: RuntimeEnv) -> ModelFolder:
    known = runtime.scratch / "model.files"
    if known.exists():
        listing = ModelFiles.model_validate_json(known.read_bytes())
        path = Path(uri.removeprefix(_LOCAL))
        if _VerifiedRecord(runtime.scratch / "model.verified", path, listing).is_unchanged():
            return ModelFolder(path, listing)
    model = _local_folder(uri)
    if model.digest != digest:
        raise ModelUnusableError(
            f"{uri} has changed since the run was prepared: its digest was {digest[:12]} and is {model.digest[:12]}",
            advice="restore the folder, or change spec.runNonce to start a new run with the new model",
        )
    known.write_text(model.listing.model_dump_json())
    _VerifiedRecord(runtime.scratch / "model.verified", model.path, model.listing).remember()
    return model


def _from_hub(uri: str) -> tuple[str, dict[str, _RemoteFile]]:
    repository = resolve_model(uri)
    return repository.commit, {file.name: _hub_file(repository, file) for file in repository.files}


def _hub_file(repository: HubRepository, file: HubFile) -> _RemoteFile:
    return _RemoteFile(file.name, lambda target: repository.download(file, target), file.is_content_of)


def _from_storage(uri: str, store: ObjectStore) -> tuple[str, dict[str, _RemoteFile]]:
    prefix = uri.rstrip("/") + "/"
    found = {info.uri.removeprefix(prefix): info for info in store.list(prefix)}
    return "", {name: _stored_file(name, info, store) for name, info in found.items()}


def _stored_file(name: str, info: ObjectInfo, store: ObjectStore) -> _RemoteFile:
    return _RemoteFile(
        name,
        lambda target: store.download(info.uri, target),
        lambda path: path.stat().st_size == info.size and has_etag(path, info.etag),
    )


def _fetch(uri: str, revision: str, available: dict[str, _RemoteFile], folder: Path) -> ModelFolder:
    partial = _partial_folder(folder)
    try:
        names = model_files(available, lambda: _content(available[INDEX_FILE], partial))
        if not names:
            raise ModelUnusableError(
                f"{uri} has no model files", advice="name the prefix that config.json and *.safetensors are under"
            )
        wanted = [available[name] for name in names]
        hint = folder / f"{_short(uri)}.digest"
        if (path := _cached(folder, hint, wanted)) is not None:
            return ModelFolder(path, ModelFiles(source=uri, revision=revision, files=_hashed(path, names)))
        missing = [file for file in wanted if not (partial / file.name).exists()]
        _parallel(lambda file: file.fetch(inside(partial, file.name)), missing)
        listing = ModelFiles(source=uri, revision=revision, files=_hashed(partial, names))
        path = folder / listing.digest
        with locked(folder / f"{listing.digest}.lock"):
            if not _is_intact(path, listing):
                _replace(partial, path)
        replace_file(hint, listing.digest)
        return ModelFolder(path, listing)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _content(file: _RemoteFile, folder: Path) -> bytes:
    path = inside(folder, file.name)
    file.fetch(path)
    return path.read_bytes()


def _cached(folder: Path, hint: Path, wanted: list[_RemoteFile]) -> Path | None:
    """Return the cached folder of this address if the source's digests prove that its content is current.

    The hint and the files are verified, because other jobs can write them.
    """
    try:
        digest = hint.read_text()
    except OSError:
        return None
    path = folder / digest
    if len(digest) != 64 or not digest.isalnum() or not path.is_dir() or path.is_symlink():
        return None
    if files_in(path) != {file.name for file in wanted}:
        return None
    return path if all(_parallel(lambda file: file.is_content_of(path / file.name) is True, wanted)) else None


# The copy


def _stored_listing(uri: str, digest: str, store: ObjectStore) -> ModelFiles:
    advice = "restore the folder, or change spec.runNonce to start a new run, which prepares the model again"
    try:
        listing = ModelFiles.model_validate(store.get_json(join(uri, FILES_FILE)))
    except ObjectMissingError as error:
        raise BadConfigError(f"the base model of this run is missing at {uri}", advice=advice) from error
    except ValidationError as error:
        raise BadConfigError(f"{join(uri, FILES_FILE)} does not list the files of a model", advice=advice) from error
    if listing.digest != digest:
        raise BadConfigError(
            f"{join(uri, FILES_FILE)} lists another model: its digest is {listing.digest[:12]}, not {digest[:12]}",
            advice=advice,
        )
    return listing


def _download_copy(uri: str, listing: ModelFiles, store: ObjectStore, folder: Path) -> None:
    """Download the copy into the cache, unless another pod of the node has done so in the meantime."""
    path = folder / listing.digest
    if _is_intact(path, listing):
        return
    if path.exists():
        log.warning("%s is damaged or was changed, and is downloaded again", path)
    partial = _partial_folder(folder)
    try:
        try:
            store.download_files(uri, [file.name for file in listing.files], partial)
        except ObjectMissingError as error:
            raise BadConfigError(
                f"a file of the base model of this run is missing: {error}",
                advice="restore it, or change spec.runNonce to start a new run, which prepares the model again",
            ) from error
        if not _is_intact(partial, listing):
            raise BadConfigError(
                f"{uri} does not match the digests in its {FILES_FILE}",
                advice="delete that folder and change spec.runNonce: a new run prepares the model again",
            )
        _replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# Local files


@dataclass(frozen=True)
class _VerifiedRecord:
    """Record of a folder that a process of this pod has verified, kept in a folder that other jobs cannot write to."""

    memory: Path
    folder: Path
    listing: ModelFiles

    def is_unchanged(self) -> bool:
        try:
            return self.memory.read_text() == self._state()
        except OSError:
            return False

    def remember(self) -> None:
        replace_file(self.memory, self._state())

    def _state(self) -> str:
        stats = [(file.name, (self.folder / file.name).stat()) for file in self.listing.files]
        entries = [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]
        return json.dumps([str(self.folder.resolve()), self.listing.digest, entries])


def _hashed(folder: Path, names: Iterable[str]) -> tuple[ModelFile, ...]:
    def hashed(name: str) -> ModelFile:
        path = folder / name
        return ModelFile(name=name, size=path.stat().st_size, sha256=sha256_of(path))

    return tuple(_parallel(hashed, names))


def _is_intact(folder: Path, listing: ModelFiles) -> bool:
    """Whether the folder has these files with this content, and no other files that loading would read."""
    try:
        if files_in(folder) != {file.name for file in listing.files}:
            return False
        if any((folder / file.name).stat().st_size != file.size for file in listing.files):
            return False
        return _hashed(folder, [file.name for file in listing.files]) == listing.files
    except OSError:
        return False


def _parallel(action: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return list(pool.map(action, items))


def _partial_folder(folder: Path) -> Path:
    """Return a new folder with a unique name. Removes those left by killed processes."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("partial-*"):
        if time.time() - old.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    made = Path(tempfile.mkdtemp(dir=folder, prefix="partial-"))
    made.chmod(0o755)
    return made


def _replace(partial: Path, path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
    os.replace(partial, path)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
