"""Models from the hub, `hf://organisation/name[@revision]`, through huggingface_hub."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import AccessDeniedError, ModelUnusableError, StorageUnreachableError, TrainerError
from ..store.credentials import credential
from .files import MODEL_PATTERNS

DEFAULT_ENDPOINT = "https://huggingface.co"
_COMMIT = re.compile("[0-9a-f]{40}")
"""A revision that never changes."""


def download_snapshot(uri: str, cache: Path, *, offline_ok: bool) -> Path:
    """Folder of the model's files at the revision; `offline_ok` takes the cached one when the hub does not answer.

    Reads HF_ENDPOINT and HF_TOKEN itself, because huggingface_hub does so only once, when it is imported.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, IncompleteSnapshotError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    name, _, named_revision = uri.removeprefix("hf://").partition("@")
    revision = named_revision or "main"
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    token = credential("HF_TOKEN") or False
    disable_progress_bars()

    def snapshot(*, local_files_only: bool = False) -> Path:
        path = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache,
            endpoint=endpoint,
            token=token,
            allow_patterns=list(MODEL_PATTERNS),
            ignore_patterns=["*/*"],
            local_files_only=local_files_only,
        )
        return Path(path)

    try:
        if not _COMMIT.fullmatch(revision):
            # Asked first, because snapshot_download itself takes the cached files when the hub refuses or is away.
            HfApi(endpoint=endpoint, token=token).model_info(name, revision=revision)
        return snapshot()
    except (HfHubHTTPError, HFValidationError, IncompleteSnapshotError, HTTPError, OSError) as error:
        mapped = _mapped(error, uri, endpoint)
        if not (offline_ok and isinstance(mapped, StorageUnreachableError)):
            raise mapped from error
    try:
        return snapshot(local_files_only=True)
    except OSError as error:  # LocalEntryNotFoundError is one
        raise _mapped(error, uri, endpoint) from error


def _mapped(error: BaseException, uri: str, endpoint: str) -> TrainerError:
    status = next((code for code in map(_status, _chain(error)) if code is not None), None)
    if status in (401, 403):
        return AccessDeniedError(
            f"{uri}: {endpoint} refuses access ({status})",
            advice="check the name; for a private or gated model set HF_TOKEN to a token that may read it",
        )
    if status is not None and 400 <= status < 500 and status != 429:
        return ModelUnusableError(
            f"{uri}: {endpoint} has no such model or revision ({status})",
            advice="check organisation, name and revision; write hf://organisation/name@revision",
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return StorageUnreachableError(
        f"{uri}: {endpoint} does not answer as a hub: {reason}",
        advice="check HF_ENDPOINT and the network; on a cluster without internet copy the model to s3://",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    return code if isinstance(code, int) else None
