"""Models from the hub, `hf://organisation/name[@revision]`, through huggingface_hub."""

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import AccessDeniedError, ModelUnusableError, StorageUnreachableError, TrainerError
from .files import MODEL_PATTERNS

DEFAULT_ENDPOINT = "https://huggingface.co"


def download_snapshot(uri: str, cache: Path, *, offline_ok: bool) -> Path:
    """Folder of the model's files at the revision.

    Reads HF_ENDPOINT and HF_TOKEN itself, because huggingface_hub does so only once, when it is imported.
    """
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, IncompleteSnapshotError

    name, _, revision = uri.removeprefix("hf://").partition("@")
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    try:
        path = snapshot_download(
            name,
            revision=revision or None,
            cache_dir=cache,
            endpoint=endpoint,
            token=os.environ.get("HF_TOKEN") or False,
            allow_patterns=list(MODEL_PATTERNS),
            ignore_patterns=["*/*"],
        )
    except (HfHubHTTPError, HFValidationError, IncompleteSnapshotError, HTTPError, OSError) as error:
        raise _mapped(error, uri, endpoint) from error
    return Path(path)


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
