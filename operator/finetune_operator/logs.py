"""JSON lines on standard error: time, level, message, and the job, run and attempt."""

import logging

from finetune_api.json_logs import JsonFormatter

_FIELDS = ("namespace", "job", "uid", "run", "stage", "attempt")
_LIBRARIES = {"kopf": logging.WARNING, "aiohttp.access": logging.WARNING}


def configure_logging(level: str) -> None:
    """Set up the root logger at `level`; libraries log from WARNING on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(_FIELDS))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name, least in _LIBRARIES.items():
        logging.getLogger(name).setLevel(max(least, logging.getLogger().level))
