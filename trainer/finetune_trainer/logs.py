"""Logging of ranks: one JSON object a line, and third-party chatter turned down."""

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from finetune_api.redaction import hide_credentials

from .errors import printable

CHATTY = {
    "DeepSpeed": logging.WARNING,
    "accelerate": logging.WARNING,
    "botocore": logging.WARNING,
    "boto3": logging.WARNING,
    "datasets": logging.WARNING,
    "filelock": logging.WARNING,
    "httpx": logging.WARNING,
    "huggingface_hub": logging.WARNING,
    "matplotlib": logging.WARNING,
    "s3transfer": logging.WARNING,
    "torch.distributed": logging.WARNING,
    "transformers": logging.ERROR,
    "urllib3": logging.WARNING,
}
"""Libraries whose INFO lines tell a user nothing, and the level from which on they speak."""

QUIET_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""The same, for what is decided while a library is imported."""


class JsonFormatter(logging.Formatter):
    """{"time", "level", "rank", "logger", "message", "traceback"}; the last only for an exception."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "rank": self._rank,
            "logger": record.name,
            "message": hide_credentials(record.getMessage()),
        }
        if record.exc_info:
            fields["traceback"] = hide_credentials("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return printable(json.dumps(fields, ensure_ascii=False))


def configure_logging(rank: int) -> None:
    """Send the root logger, and warnings, to stdout as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(rank))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    quiet_libraries()


def quiet_libraries() -> None:
    """Turn chatty libraries and their progress bars down, and take their own handlers away.

    To be repeated after they have been imported.
    """
    for name, level in CHATTY.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers.clear()
        logger.propagate = True
    loaded = sys.modules.get("transformers.utils.logging")
    if loaded is not None:
        # Asked for by the environment as well, but that is read at the import, which the fork server has done before.
        loaded.disable_progress_bar()


def readable_lines(line: str) -> Iterator[str]:
    """What a person should see of a log line: of ours level, message and traceback, of others the line itself."""
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or "message" not in fields:
        yield line
        return
    yield from f"{fields.get('level', '')} {fields['message']}".strip().splitlines()
    yield from str(fields.get("traceback", "")).splitlines()
