"""Choose the object storage of a command: the user's own, or the embedded server of the work folder."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.redaction import has_credentials, hide_credentials
from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1.base import ENDPOINT_PATTERN

from ..exit_status import USAGE, CommandError
from .embedded_store import EmbeddedStore, StoreAccess, open_store

if TYPE_CHECKING:  # imports boto3, which takes half a second
    from finetune_trainer.store import ObjectStore


@dataclass(frozen=True)
class LocalStorage:
    """Object storage of one command."""

    settings: StorageSettings
    environ: Mapping[str, str]
    """The user's environment, plus the credentials of the embedded server if it is used."""
    check: Callable[[], None]
    """Raises EmbeddedStoreError if the embedded server has exited by itself."""
    embedded: StoreAccess | None

    def connect(self) -> "ObjectStore":
        """Return a client. Sets the credentials in the environment of this process, where boto3 reads them."""
        from finetune_trainer.store import ObjectStore

        os.environ.update(self.environ)
        return ObjectStore.connect(self.settings)

    def ensure_bucket(self, uri: str) -> None:
        """Create the bucket of an address in the embedded server. External storage is not changed."""
        from finetune_trainer.store import parse as parse_address

        if self.embedded is not None:
            self.embedded.create_bucket(parse_address(uri).bucket)


def store_folder(work_dir: Path) -> Path:
    """Return the folder of the embedded server."""
    return work_dir / "store"


@contextmanager
def owned_storage(work_dir: Path, endpoint: str | None) -> Iterator[LocalStorage]:
    """Open the storage of a run: external storage, or an embedded server that this process owns."""
    if endpoint is not None:
        yield external_storage(endpoint_settings(endpoint))
        return
    with EmbeddedStore(store_folder(work_dir)) as server:
        yield _embedded(server.access, server.check)


@contextmanager
def shared_storage(work_dir: Path, endpoint: str | None) -> Iterator[LocalStorage]:
    """Open external storage or the embedded server, which a run may be using at the same time."""
    if endpoint is not None:
        yield external_storage(endpoint_settings(endpoint))
        return
    with open_store(store_folder(work_dir)) as access:
        yield _embedded(access, lambda: None)


def endpoint_settings(endpoint: str) -> StorageSettings:
    """Return the settings for `--endpoint`. Raises CommandError if it is not a URL or contains credentials."""
    if not re.fullmatch(ENDPOINT_PATTERN, endpoint):
        shown = hide_credentials(endpoint)
        raise CommandError(f"--endpoint must be a URL such as https://s3.example.com, not {shown}", USAGE)
    if has_credentials(endpoint):
        raise CommandError("--endpoint must not contain a user name or password; set AWS_* variables instead", USAGE)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return StorageSettings(endpoint=endpoint.rstrip("/"), region=region, path_style=True)


def external_storage(settings: StorageSettings) -> LocalStorage:
    """Return external storage with the credentials in the user's environment."""
    return LocalStorage(settings=settings, environ=dict(os.environ), check=lambda: None, embedded=None)


def _embedded(access: StoreAccess, check: Callable[[], None]) -> LocalStorage:
    return LocalStorage(
        settings=StorageSettings(endpoint=access.endpoint, path_style=True),
        environ={**os.environ, **access.env()},
        check=check,
        embedded=access,
    )
