"""Credentials, one file each: a mounted Secret. Files stay out of the pod's description and of child processes."""

import os
from pathlib import Path

from finetune_api.constants import Env

AWS_NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def credential(name: str) -> str | None:
    """The file of that name in the credentials folder, else the environment variable; None where there is neither."""
    return _mounted(name) or os.environ.get(name) or None


def from_files() -> dict[str, str]:
    """boto3's arguments for a session, where the folder holds keys; empty: boto3's own chain is asked.

    All of one place: a token that belongs to other keys would have the mounted ones refused.
    """
    found = {name.lower(): value for name in AWS_NAMES if (value := _mounted(name))}
    return found if AWS_NAMES[0].lower() in found else {}


def _mounted(name: str) -> str | None:
    folder = os.environ.get(Env.CREDENTIALS)
    path = Path(folder) / name if folder else None
    return path.read_text().strip() if path is not None and path.is_file() else None
