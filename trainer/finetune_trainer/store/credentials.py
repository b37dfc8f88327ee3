"""Credentials from the files of a mounted Secret.

Unlike environment variables, files do not appear in the pod's description and are not inherited by child processes.
Session credentials expire, and their issuer updates the files. Files are therefore read again when they change, and all
credentials are looked up again when a server rejects a request.
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
"""Maximum number of times a set of files is read again because it changed while being read."""
_LOOK_ERRORS: tuple[type[Exception], ...] = (*FOREIGN, OSError, RuntimeError, ValueError, LookupError)
"""Exceptions of looking up or refreshing credentials, for example a missing token file or expired keys."""


def credential(name: str) -> str | None:
    """Return the content of the file `name` in the credentials folder, else the environment variable, else None."""
    folder = _folder()
    return (_read(folder / name) if folder else None) or os.environ.get(name) or None


def from_files() -> dict[str, str]:
    """Return boto3's session arguments if the folder contains keys, otherwise an empty dict, for boto3's own chain.

    Sources are never mixed: a server rejects keys together with the session token of other keys.
    """
    for _ in range(_READS):
        before, folder = _state(), _folder()
        found = {name.lower(): value for name in AWS_NAMES if folder and (value := _read(folder / name))}
        if _state() == before:
            break
    return found if AWS_NAMES[0].lower() in found else {}


class RotatingCredentials(Credentials):  # type: ignore[misc]  # botocore has no types
    """Credentials of mounted files or boto3's chain, looked up again when files change or `renew` is called.

    Credentials of a workload identity refresh themselves before they expire. If that fails, they count as missing.
    Thread-safe.
    """

    def __init__(self, load: Callable[[], Any], state: Callable[[], object]) -> None:
        self._load, self._watched_state = load, state
        self._lock = threading.RLock()
        self.generation = 0
        """Increases whenever the credentials change."""
        self._state = state()
        self._current = load()

    @property
    def is_there(self) -> bool:
        """Whether any credentials were found."""
        return self._current is not None

    def get_frozen_credentials(self) -> Any:
        """Return a consistent set of key, secret and token to sign a request with.

        Raises CredentialRetrievalError if there are no credentials anymore, and a transient error if the lookup failed
        temporarily.
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
                return self._replacement_for_missing(error)

    def renew(self, generation: int) -> bool:
        """Look up credentials after a server has rejected those of `generation`. Return whether they have changed."""
        with self._lock:
            if self.generation == generation:
                self._look_up()
            return self.generation != generation

    def _replacement_for_missing(self, error: Exception) -> Any:
        found = self._look_up()
        if found is None:
            raise CredentialRetrievalError(provider=self.method, error_msg=str(error)) from error
        return found

    def _look_up(self) -> Any:
        """Look up credentials and use them from now on. Return None, without a change, if none are usable."""
        found = _quietly(self._load)
        frozen = _frozen(found)
        if frozen is not None and frozen != _frozen(self._current):
            self._current = found
            self.generation += 1
        return frozen

    @property
    def access_key(self) -> str:
        """The access key of the current set."""
        return str(self.get_frozen_credentials().access_key)

    @property
    def secret_key(self) -> str:
        """The secret key of the current set."""
        return str(self.get_frozen_credentials().secret_key)

    @property
    def token(self) -> str | None:
        """The session token of the current set."""
        token: str | None = self.get_frozen_credentials().token
        return token

    @property
    def method(self) -> str:
        """The source of the current set."""
        return str(self._current.method)

    @property
    def account_id(self) -> str | None:
        """The account of the current set."""
        account: str | None = getattr(self.get_frozen_credentials(), "account_id", None)
        return account


def _frozen(credentials: Any) -> Any:
    """Return a consistent set, or None if there is none or it has expired."""
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
        """Return the credentials; this provider precedes all of boto3's own."""
        return self._credentials if self._credentials.is_there else None


def rotating_session() -> tuple[Any, RotatingCredentials]:
    """Return a botocore session whose clients follow the rotation of credentials, and these credentials."""
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
    """Return a cached loader of service descriptions. Parsing that of S3 takes 0.2 s of CPU in every new session."""
    return botocore.loaders.create_loader(data_path)


def parse_descriptions() -> None:
    """Parse the descriptions that S3 clients need, for this process and its forked children.

    This creates a client with dummy keys; without keys, botocore would look for credentials, also over the network. An
    unusable profile is ignored here: `ObjectStore.connect` reports it.
    """
    session = _session()
    with contextlib.suppress(BotoCoreError):
        session.create_client("s3", "us-east-1", aws_access_key_id="none", aws_secret_access_key="none").close()


def _looked_up() -> Any:
    """Return mounted keys, else those that a new session finds (environment, shared files, workload identity)."""
    if found := from_files():
        return Credentials(
            found[AWS_NAMES[0].lower()],
            found.get(AWS_NAMES[1].lower(), ""),
            found.get(AWS_NAMES[2].lower()),
            method="mounted-files",
        )
    return _session().get_credentials()


def _folder() -> Path | None:
    """Return the folder of the files. A kubelet replaces all files of a volume at once, through the link `..data`."""
    named = os.environ.get(Env.CREDENTIALS)
    if not named:
        return None
    current = Path(named) / "..data"
    return current.resolve() if current.exists() else Path(named)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None  # missing, or just being replaced


def _state() -> object:
    """Return a value that changes when one of the files may have changed."""
    folder = _folder()
    shared = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    return [_stat(path) for path in (shared, *(folder / name for name in AWS_NAMES if folder))]


def _stat(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
