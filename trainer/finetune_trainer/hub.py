"""Models and datasets of the Hugging Face Hub: resolves a repository to a commit and downloads single files.

HF_ENDPOINT and HF_TOKEN are read here for every call, because huggingface_hub reads them only when it is imported.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from .errors import AccessDeniedError, BadDataError, ModelUnusableError, StorageUnreachableError, TrainerError
from .store.credentials import credential
from .store.digests import git_blob_id, sha256_of
from .store.faults import disk_errors

DEFAULT_ENDPOINT = "https://huggingface.co"
_DATASETS = "hf://datasets/"
_REVISION = re.compile(r"(refs/(?:convert|pr)/[^/]+|[^/]+)(?:/|$)")
"""The revision after `@` in the address of a file. Only special refs of the hub contain slashes."""


class Kind(StrEnum):
    """Repository types, by the hub's names."""

    MODEL = "model"
    DATASET = "dataset"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub lists it."""

    name: str
    """Path within the repository."""
    sha256: str = ""
    """SHA-256 of the content of a file in Git LFS; empty if not provided."""
    blob_id: str = ""
    """Git's id of the content of any other file; empty if not provided."""

    def is_content_of(self, path: Path) -> bool | None:
        """Whether the local file has the content of this file; None if the hub provides no digest."""
        if self.sha256:
            return sha256_of(path) == self.sha256
        return git_blob_id(path) == self.blob_id if self.blob_id else None


@dataclass(frozen=True)
class HubRepository:
    """A repository at one commit."""

    uri: str
    """As the user wrote it."""
    kind: Kind
    name: str
    """`organization/name`, or the name alone."""
    commit: str
    files: tuple[HubFile, ...]

    def download(self, file: HubFile, target: Path) -> None:
        """Download the file to `target`, atomically.

        Raises AccessDeniedError, DiskFullError, StorageUnreachableError (also if the digest of the content differs from
        the hub's), and BadDataError or ModelUnusableError if the client rejects the name of the file.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".hub-") as folder:
            try:
                with disk_errors(target):
                    path = hf_hub_download(
                        self.name,
                        file.name,
                        repo_type=self.kind,
                        revision=self.commit,
                        local_dir=folder,
                        endpoint=endpoint(),
                        token=_token(),
                    )
            except _errors() as error:
                raise _mapped(error, self.uri, self.kind) from error
            except ValueError as error:  # not HFValidationError, a subclass that is handled above
                unusable = ModelUnusableError if self.kind is Kind.MODEL else BadDataError
                raise unusable(
                    f"{self.uri}: the file {file.name!r} cannot be downloaded: {error}",
                    advice="name other files, or rename the file in the repository",
                ) from error
            if file.is_content_of(Path(path)) is False:
                raise StorageUnreachableError(
                    f"{self.uri}: the content of {file.name} from {endpoint()} does not match its digest",
                    advice="check the network and the mirror that HF_ENDPOINT names",
                )
            shutil.move(path, target)


@dataclass(frozen=True)
class DatasetAddress:
    """Files of a dataset repository: `hf://datasets/organization/name@revision/path`."""

    name: str
    revision: str
    """Empty: the default branch."""
    path: str
    """Path of a file, or a pattern."""


def endpoint() -> str:
    """Return the address of the hub or of its mirror."""
    return os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT


def resolve_model(uri: str) -> HubRepository:
    """Return the repository of `hf://[organization/]name[@revision]` at the current commit of the revision.

    Raises ModelUnusableError if the repository or revision does not exist, AccessDeniedError, StorageUnreachableError.
    """
    if uri.startswith(_DATASETS):
        raise ModelUnusableError(f"{uri} is a dataset, not a model", advice="write hf://organization/name@revision")
    name, _, revision = uri.removeprefix("hf://").partition("@")
    return _resolve(uri, Kind.MODEL, name, revision)


def resolve_dataset(uri: str) -> tuple[HubRepository, str]:
    """Return the repository of a data source at its current commit, and the path within it.

    Raises BadDataError if the repository or revision does not exist, AccessDeniedError, StorageUnreachableError.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    first, *others = dataset_addresses(uri)
    try:
        return _resolve(uri, Kind.DATASET, first.name, first.revision), first.path
    except TrainerError as error:
        # `hf://datasets/imdb/data/x.csv` may be a file of the repository `imdb/data` or of `imdb`.
        if not others or not isinstance(error.__cause__, RepositoryNotFoundError):
            raise
        try:
            return _resolve(uri, Kind.DATASET, others[0].name, others[0].revision), others[0].path
        except TrainerError:
            raise error from error.__cause__


def dataset_addresses(uri: str) -> tuple[DatasetAddress, ...]:
    """Return the possible meanings of the address, the most likely first. Raises BadDataError if it has no path."""
    rest = uri.removeprefix(_DATASETS)
    found = []
    for parts in (2, 1):
        name, separator, behind = _split(rest, parts)
        if name is None:
            continue
        if separator == "@":
            revision = _REVISION.match(behind)
            if revision is None:
                continue
            found.append(DatasetAddress(name, revision[1], behind[revision.end() :]))
            break
        found.append(DatasetAddress(name, "", behind))
    found = [address for address in found if address.path]
    if not found:
        raise BadDataError(
            f"{uri} must name files of a dataset", advice="write hf://datasets/organization/name@revision/path"
        )
    return tuple(found)


def _split(text: str, parts: int) -> tuple[str | None, str, str]:
    """Return the first `parts` names (None if there are fewer), the `@` or `/` that follows, and the rest."""
    found = re.match("/".join([r"([^/@]+)"] * parts) + "([/@])(.*)", text, re.DOTALL)
    if found is None:
        return None, "", ""
    return "/".join(found.groups()[:parts]), found[parts + 1], found[parts + 2]


def _resolve(uri: str, kind: Kind, name: str, revision: str) -> HubRepository:
    from huggingface_hub import DatasetInfo, HfApi, ModelInfo

    try:
        api = HfApi(endpoint=endpoint(), token=_token())
        info: ModelInfo | DatasetInfo
        if kind is Kind.MODEL:
            info = api.model_info(name, revision=revision or "main", files_metadata=True)
        else:
            info = api.dataset_info(name, revision=revision or "main", files_metadata=True)
    except _errors() + _UNREADABLE as error:
        raise _mapped(error, uri, kind) from error
    files = tuple(
        HubFile(
            sibling.rfilename,
            sha256=sibling.lfs.sha256 if sibling.lfs else "",
            blob_id="" if sibling.lfs else sibling.blob_id or "",
        )
        for sibling in info.siblings or ()
    )
    if not info.sha:
        raise StorageUnreachableError(
            f"{uri}: {endpoint()} provides no commit for {revision or 'main'}", advice="check HF_ENDPOINT"
        )
    return HubRepository(uri, kind, name, info.sha, files)


def _token() -> str | bool:
    return credential("HF_TOKEN") or False


_UNREADABLE = (ValueError, LookupError, TypeError)
"""What the client raises for a response that is not from the hub, for example from a proxy or a login page."""


def _errors() -> tuple[type[Exception], ...]:
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return (HfHubHTTPError, HFValidationError, HTTPError, OSError)


def _mapped(error: BaseException, uri: str, kind: Kind) -> TrainerError:
    status = next((code for code in map(_status, _chain(error)) if code is not None), None)
    what = "model" if kind is Kind.MODEL else "dataset"
    if status in (401, 403):
        return AccessDeniedError(
            f"{uri}: {endpoint()} denies access ({status})",
            advice=f"check the name; for a private or gated {what} set HF_TOKEN to a token that may read it",
        )
    if status is not None and 400 <= status < 500 and status != 429:
        message = f"{uri}: {endpoint()} has no such {what} or revision ({status})"
        if kind is Kind.MODEL:
            return ModelUnusableError(
                message, advice="check organization, name and revision; write hf://organization/name@revision"
            )
        return BadDataError(message, advice="check the name; write hf://datasets/organization/name@revision/path")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return StorageUnreachableError(
        f"{uri}: {endpoint()} did not respond like a Hugging Face Hub: {reason}",
        advice=f"check HF_ENDPOINT and the network; on a cluster without internet copy the {what} to s3://",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    return code if isinstance(code, int) else None
