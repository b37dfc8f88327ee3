"""Logging of ranks as JSON lines, with less output of third-party libraries."""

import json
import logging
import sys
from collections.abc import Iterator

from finetune_api.json_logs import JsonFormatter

CHATTY = {
    "DeepSpeed": logging.WARNING,
    "accelerate": logging.WARNING,
    "bitsandbytes": logging.ERROR,
    "botocore": logging.WARNING,
    "boto3": logging.WARNING,
    "filelock": logging.WARNING,
    "gguf": logging.WARNING,
    "httpx": logging.WARNING,
    "huggingface_hub": logging.WARNING,
    "matplotlib": logging.WARNING,
    "s3transfer": logging.WARNING,
    "torch.distributed": logging.WARNING,
    "transformers": logging.ERROR,
    "urllib3": logging.WARNING,
}
"""Minimum log levels of libraries whose INFO lines are not useful to a user."""

QUIET_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment variables with the same effect, which libraries read when they are imported."""


def configure_logging(rank: int) -> None:
    """Log to stdout as JSON lines, including Python warnings."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(rank=rank))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    quiet_libraries()


def quiet_libraries() -> None:
    """Set the log levels of libraries, disable their progress bars and remove their own handlers.

    Call it again after they have been imported, because an import may add handlers.
    """
    for name, level in CHATTY.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers.clear()
        logger.propagate = True
    loaded = sys.modules.get("transformers.utils.logging")
    if loaded is not None:
        # transformers reads QUIET_ENVIRONMENT when it is imported, which may have been before the variables were set.
        loaded.disable_progress_bar()


def readable_lines(line: str) -> Iterator[str]:
    """Yield level, message and traceback of a JSON line, or any other line unchanged."""
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or "message" not in fields:
        yield line
        return
    yield from f"{fields.get('level', '')} {fields['message']}".strip().splitlines()
    yield from str(fields.get("traceback", "")).splitlines()
