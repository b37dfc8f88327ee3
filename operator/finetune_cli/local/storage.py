"""Which object storage a command talks to: the user's own, or the embedded server of the work folder."""

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

if TYPE_CHECKING:  # boto3 comes with it: half a second that most commands need not spend
    from finetune_trainer.store import ObjectStore


@dataclass(frozen=True)
class LocalStorage:
    """Storage of one command."""

    settings: StorageSettings
    environ: Mapping[str, str]
    """The user's environment, with the embedded server's credentials where that is used."""
    check: Callable[[], None]
    """Raises EmbeddedStoreError if our own server has ended by itself."""
    embedded: StoreAccess | None

    def connect(self) -> "ObjectStore":
        """A client. Puts the credentials into this process' environment, where boto3 looks for them."""
        from finetune_trainer.store import ObjectStore

        os.environ.update(self.environ)
        return ObjectStore.connect(self.settings)

    def ensure_bucket(self, uri: str) -> None:
        """Make the bucket of an address in the embedded server; the user's own storage is left as it is."""
        from finetune_trainer.store import parse as parse_address

        if self.embedded is not None:
            self.embedded.create_bucket(parse_address(uri).bucket)


def store_folder(work_dir: Path) -> Path:
    """Where the embedded server of a work folder keeps its data."""
    return work_dir / "store"


@contextmanager
def owned_storage(work_dir: Path, endpoint: str | None) -> Iterator[LocalStorage]:
    """For a run: the user's storage, or an embedded server that this process starts and ends."""
    if endpoint is not None:
        yield external_storage(own_settings(endpoint))
        return
    with EmbeddedStore(store_folder(work_dir)) as server:
        yield _embedded(server.access, server.check)


@contextmanager
def shared_storage(work_dir: Path, endpoint: str | None) -> Iterator[LocalStorage]:
    """Read access to the external storage, or to the embedded server, also while a run is using it."""
    if endpoint is not None:
        yield external_storage(own_settings(endpoint))
        return
    with open_store(store_folder(work_dir)) as access:
        yield _embedded(access, lambda: None)


def own_settings(endpoint: str) -> StorageSettings:
    """Of the user's storage at `--endpoint`. Raises CommandError if that is no URL."""
    if not re.fullmatch(ENDPOINT_PATTERN, endpoint):
        shown = hide_credentials(endpoint)
        raise CommandError(f"--endpoint must be a URL such as https://s3.example.com, not {shown}", USAGE)
    if has_credentials(endpoint):
        raise CommandError("--endpoint must not contain a user name or password; set AWS_* variables instead", USAGE)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return StorageSettings(endpoint=endpoint.rstrip("/"), region=region, path_style=True)


def external_storage(settings: StorageSettings) -> LocalStorage:
    """The user's storage, with the credentials of the user's environment."""
    return LocalStorage(settings=settings, environ=dict(os.environ), check=lambda: None, embedded=None)


def _embedded(access: StoreAccess, check: Callable[[], None]) -> LocalStorage:
    return LocalStorage(
        settings=StorageSettings(endpoint=access.endpoint, path_style=True),
        environ={**os.environ, **access.env()},
        check=check,
        embedded=access,
    )
