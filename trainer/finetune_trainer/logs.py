"""Logging of ranks: JSON lines, and third-party libraries made quiet."""

import json
import logging
import sys
from collections.abc import Iterator

from finetune_api.json_logs import JsonFormatter

CHATTY = {
    "DeepSpeed": logging.WARNING,
    "accelerate": logging.WARNING,
    "botocore": logging.WARNING,
    "boto3": logging.WARNING,
    "filelock": logging.WARNING,
    "httpx": logging.WARNING,
    "huggingface_hub": logging.WARNING,
    "matplotlib": logging.WARNING,
    "s3transfer": logging.WARNING,
    "torch.distributed": logging.WARNING,
    "transformers": logging.ERROR,
    "urllib3": logging.WARNING,
}
"""Libraries whose INFO lines do not help a user, and the level from which on they log."""

QUIET_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""The same for what a library reads while it is imported."""


def configure_logging(rank: int) -> None:
    """Send the root logger, and warnings, to stdout as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(rank=rank))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    quiet_libraries()


def quiet_libraries() -> None:
    """Raise the levels of chatty libraries, switch their progress bars off and remove their own handlers.

    Call it again after they have been imported, because an import may add handlers.
    """
    for name, level in CHATTY.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers.clear()
        logger.propagate = True
    loaded = sys.modules.get("transformers.utils.logging")
    if loaded is not None:
        # QUIET_ENVIRONMENT is read at the import, which the fork server may have done before it was set.
        loaded.disable_progress_bar()


def readable_lines(line: str) -> Iterator[str]:
    """Level, message and traceback of a JSON line; any other line as it is."""
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or "message" not in fields:
        yield line
        return
    yield from f"{fields.get('level', '')} {fields['message']}".strip().splitlines()
    yield from str(fields.get("traceback", "")).splitlines()
