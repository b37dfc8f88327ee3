"""The base model's files on this machine, from object storage, the hub or a folder; shared by a node's processes."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelUnusableError
from ..locks import locked
from ..store.client import ObjectInfo, ObjectStore
from .files import is_model_file
from .hub import download_snapshot

DIGESTS_FOLDER = "digests"
_PARALLEL_DOWNLOADS = 4


@dataclass(frozen=True)
class ModelFolder:
    """A model in Hugging Face layout."""

    path: Path
    digest: str
    """SHA-256 over the sorted names and content digests of the files that loading needs."""


def fetch_model(uri: str, store: ObjectStore, cache: Path, *, offline_ok: bool = False) -> ModelFolder:
    """Bring the model at `s3://`, `hf://` or `file://` into the cache, or find it there.

    `offline_ok` takes a hub model from the cache when the hub does not answer. Raises ModelUnusableError for an address
    without a model, AccessDeniedError, StorageUnreachableError.
    """
    folder = cache / "models"
    folder.mkdir(parents=True, exist_ok=True)
    if uri.startswith("file://"):
        path = Path(uri.removeprefix("file://"))
        if not path.is_dir():
            raise ModelUnusableError(f"{uri} is not a folder", advice="name a folder in Hugging Face layout")
    else:
        with locked(folder / f"{_short(uri)}.lock"):
            if uri.startswith("hf://"):
                path = download_snapshot(uri, folder / "hub", offline_ok=offline_ok)
            else:
                path = _from_storage(uri, store, folder)
    return ModelFolder(path, _digest(path, cache / DIGESTS_FOLDER))


def _from_storage(uri: str, store: ObjectStore, folder: Path) -> Path:
    prefix = uri.rstrip("/") + "/"
    found = [info for info in store.list(prefix) if is_model_file(info.uri.removeprefix(prefix))]
    if not found:
        raise ModelUnusableError(
            f"{uri} holds no model files", advice="name the prefix that config.json and *.safetensors are under"
        )
    # A changed object changes the listing, and so the folder: what is cached is never stale.
    listing = json.dumps(sorted((info.uri, info.size, info.etag) for info in found))
    complete = folder / f"s3-{_short(listing)}"
    if complete.exists():
        return complete
    partial = complete.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()

    def download(info: ObjectInfo) -> None:
        store.download(info.uri, partial / info.uri.removeprefix(prefix))

    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
        list(pool.map(download, found))
    os.replace(partial, complete)
    return complete


def _digest(folder: Path, memory: Path) -> str:
    """The folder's digest; hashing gigabytes takes seconds, so a listing seen before is not hashed again."""
    paths = sorted((path for path in folder.iterdir() if is_model_file(path.name)), key=lambda path: path.name)
    stats = [(path.name, status.st_size, status.st_mtime_ns) for path in paths for status in [path.stat()]]
    remembered = memory / _short(json.dumps([str(folder.resolve()), stats]))
    # One process of the node reads the gigabytes; the others wait for what it finds.
    with locked(remembered.with_suffix(".lock")):
        if remembered.exists():
            return remembered.read_text()
        whole = hashlib.sha256()
        for path in paths:
            with path.open("rb") as file:
                whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        partial = remembered.with_suffix(".part")
        partial.write_text(whole.hexdigest())
        os.replace(partial, remembered)
        return whole.hexdigest()


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
