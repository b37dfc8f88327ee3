"""Credentials, one file each: a mounted Secret. Files stay out of the pod's description and of child processes."""

import os
from pathlib import Path

from finetune_api.constants import Env

AWS_NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def credential(name: str) -> str | None:
    """The file of that name in the credentials folder, else the environment variable; None where there is neither."""
    folder = os.environ.get(Env.CREDENTIALS)
    if folder and (path := Path(folder) / name).is_file():
        return path.read_text().strip()
    return os.environ.get(name) or None


def from_files() -> dict[str, str]:
    """boto3's arguments for a session, where the folder holds keys; empty: boto3's own chain is asked."""
    folder = os.environ.get(Env.CREDENTIALS)
    if not folder or not (Path(folder) / AWS_NAMES[0]).is_file():
        return {}
    return {name.lower(): value for name in AWS_NAMES if (value := credential(name))}
