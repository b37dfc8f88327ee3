"""Credentials, one file each: a mounted Secret. Files stay out of the pod's description and of child processes.

Session credentials expire, and whoever issues them writes new ones into the same files. So files are read again when
they have changed, and everything is looked up again when a server refuses what it was sent.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import botocore.loaders
import botocore.session
from botocore.credentials import CredentialProvider, Credentials
from botocore.exceptions import BotoCoreError, CredentialRetrievalError

from finetune_api.constants import Env

from .faults import FOREIGN, is_transient

AWS_NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_READS = 5
"""How often a set of files that changes while it is read is read again."""
_LOOK_ERRORS: tuple[type[Exception], ...] = (*FOREIGN, OSError, RuntimeError, ValueError, LookupError)
"""What looking for credentials, or refreshing them, may raise: a token's file that is gone, keys that come expired."""


def credential(name: str) -> str | None:
    """The file of that name in the credentials folder, else the environment variable; None where there is neither."""
    folder = _folder()
    return (_read(folder / name) if folder else None) or os.environ.get(name) or None


def from_files() -> dict[str, str]:
    """boto3's arguments for a session, where the folder holds keys; empty: boto3's own chain is asked.

    All of one place: a token that belongs to other keys would have the mounted ones refused.
    """
    for _ in range(_READS):
        before, folder = _state(), _folder()
        found = {name.lower(): value for name in AWS_NAMES if folder and (value := _read(folder / name))}
        if _state() == before:
            break
    return found if AWS_NAMES[0].lower() in found else {}


class RotatingCredentials(Credentials):  # type: ignore[misc]  # botocore has no types
    """What boto3's chain or the mounted files give, looked up again when files change or `renew` is called.

    Those of an identity refresh themselves before they expire; where that fails they are as good as gone.

    Safe to use from many threads.
    """

    def __init__(self, load: Callable[[], Any], state: Callable[[], object]) -> None:
        self._load, self._watched_state = load, state
        self._lock = threading.RLock()
        self.generation = 0
        """Grows whenever others are used than before."""
        self._state = state()
        self._current = load()

    @property
    def is_there(self) -> bool:
        """Whether any credentials were found."""
        return self._current is not None

    def get_frozen_credentials(self) -> Any:
        """A consistent set of key, secret and token: what a request is signed with.

        Raises CredentialRetrievalError where there is none any more, and a transient error where nobody can tell now.
        """
        with self._lock:
            if (state := self._watched_state()) != self._state:
                self._state = state
                self._look_up()
            try:
                return self._current.get_frozen_credentials()
            except _LOOK_ERRORS as error:
                if is_transient(error):
                    raise
                return self._in_place_of_those_gone(error)

    def renew(self, generation: int) -> bool:
        """A server has refused those of `generation`: whether there are others by now."""
        with self._lock:
            if self.generation == generation:
                self._look_up()
            return self.generation != generation

    def _in_place_of_those_gone(self, error: Exception) -> Any:
        found = self._look_up()
        if found is None:
            raise CredentialRetrievalError(provider=self.method, error_msg=str(error)) from error
        return found

    def _look_up(self) -> Any:
        """What is found now, which is in force from now on. None: nothing that can be used, and nothing changes."""
        found = _quietly(self._load)
        frozen = _frozen(found)
        if frozen is not None and frozen != _frozen(self._current):
            self._current = found
            self.generation += 1
        return frozen

    @property
    def access_key(self) -> str:
        """Of the current set."""
        return str(self.get_frozen_credentials().access_key)

    @property
    def secret_key(self) -> str:
        """Of the current set."""
        return str(self.get_frozen_credentials().secret_key)

    @property
    def token(self) -> str | None:
        """Of the current set."""
        token: str | None = self.get_frozen_credentials().token
        return token

    @property
    def method(self) -> str:
        """Where the current set was found."""
        return str(self._current.method)

    @property
    def account_id(self) -> str | None:
        """Of the current set."""
        account: str | None = getattr(self.get_frozen_credentials(), "account_id", None)
        return account


def _frozen(credentials: Any) -> Any:
    """A consistent set; None where there is none, or none any more."""
    return None if credentials is None else _quietly(credentials.get_frozen_credentials)


def _quietly(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except _LOOK_ERRORS:
        return None


class _Provider(CredentialProvider):  # type: ignore[misc]  # botocore has no types
    METHOD = CANONICAL_NAME = "finetune-rotating"

    def __init__(self, credentials: RotatingCredentials) -> None:
        super().__init__()
        self._credentials = credentials

    def load(self) -> RotatingCredentials | None:
        """Before all of boto3's own providers."""
        return self._credentials if self._credentials.is_there else None


def rotating_session() -> tuple[Any, RotatingCredentials]:
    """A botocore session whose clients follow the rotation of credentials, and these credentials."""
    credentials = RotatingCredentials(_looked_up, _state)
    session = _session()
    session.get_component("credential_provider").providers.insert(0, _Provider(credentials))
    return session, credentials


def _session() -> Any:
    session = botocore.session.get_session()
    session.register_component("data_loader", _loader(os.environ.get("AWS_DATA_PATH")))
    return session


@cache
def _loader(data_path: str | None) -> Any:
    """The loader of the descriptions of services, which parses each once: 0.2 s of CPU for S3 in every new session."""
    return botocore.loaders.create_loader(data_path)


def parse_descriptions() -> None:
    """Parse what clients of S3 need, for this process and for those that are forked from it.

    The client for it has keys, of nobody: it would look for some, over the network too. A profile that cannot be used
    is an error of whoever connects.
    """
    session = _session()
    with contextlib.suppress(BotoCoreError):
        session.create_client("s3", "us-east-1", aws_access_key_id="none", aws_secret_access_key="none").close()


def _looked_up() -> Any:
    """Mounted keys, else what a new session finds: environment, shared files, workload identity. None: nothing."""
    if found := from_files():
        return Credentials(
            found[AWS_NAMES[0].lower()],
            found.get(AWS_NAMES[1].lower(), ""),
            found.get(AWS_NAMES[2].lower()),
            method="mounted-files",
        )
    return _session().get_credentials()


def _folder() -> Path | None:
    """The folder of the files. A kubelet swaps all files of a volume at once, by the link `..data`."""
    named = os.environ.get(Env.CREDENTIALS)
    if not named:
        return None
    current = Path(named) / "..data"
    return current.resolve() if current.exists() else Path(named)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None  # not there, or swapped just now


def _state() -> object:
    """Changes whenever one of the files may have changed."""
    folder = _folder()
    shared = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    return [_stat(path) for path in (shared, *(folder / name for name in AWS_NAMES if folder))]


def _stat(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
