"""From the addresses in the spec to files on this machine, with their digests."""

import glob
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from finetune_api.v1alpha1 import Source

from ..errors import BadDataError
from ..store.client import ObjectStore

_PARALLEL_DOWNLOADS = 8
"""Small files are bound by latency; a large one is already fetched in parallel parts."""


@dataclass(frozen=True)
class SourceFile:
    """One file of records, present on this machine."""

    uri: str
    path: Path
    sha256: str
    size: int


def fetch_sources(sources: Sequence[Source], field: str, store: ObjectStore, folder: Path) -> tuple[SourceFile, ...]:
    """All files that the sources name, each once, sorted by address: the order of the list does not matter.

    `field` is the path in the spec that errors name. Raises BadDataError for an address that names no file.
    """
    uris = sorted({uri for source in sources for uri in _resolve(source.uri, field, store)})
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
        return tuple(pool.map(lambda uri: _fetch(uri, store, folder), uris))


def _resolve(uri: str, field: str, store: ObjectStore) -> list[str]:
    if uri.startswith("file://"):
        found = _local(uri, field)
    else:
        found = [info.uri for info in store.glob(uri) if not info.uri.endswith("/")]
    if not found:
        raise BadDataError(
            f"{field}: {uri} matches no file",
            advice="check the address; `*`, `?` and `[...]` match within one name and never across `/`",
        )
    return found


def _local(uri: str, field: str) -> list[str]:
    pattern = uri.removeprefix("file://")
    found = [pattern] if Path(pattern).exists() else glob.glob(pattern)
    for path in found:
        if Path(path).is_dir() and path == pattern:
            raise BadDataError(
                f"{field}: {uri} is a folder", advice=f"name its files, for example {uri.rstrip('/')}/*.jsonl"
            )
    return [f"file://{path}" for path in found if Path(path).is_file()]


def _fetch(uri: str, store: ObjectStore, folder: Path) -> SourceFile:
    if uri.startswith("file://"):
        path = Path(uri.removeprefix("file://"))
    else:
        place = hashlib.sha256(uri.encode()).hexdigest()[:16]
        path = folder / place / uri.rsplit("/", 1)[1]
        path.parent.mkdir(exist_ok=True)
        store.download(uri, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return SourceFile(uri, path, digest, path.stat().st_size)
