"""JSON lines on standard error: time, level, message, and which job, run and attempt a line is about."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from finetune_api.redaction import hide_credentials

_FIELDS = ("namespace", "job", "uid", "run", "stage", "attempt")
_LIBRARIES = {"kopf": logging.WARNING, "aiohttp.access": logging.WARNING}


class JsonFormatter(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Whatever the message holds, one line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": hide_credentials(record.getMessage()),
            **{name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None},
        }
        if record.exc_info:
            fields["traceback"] = hide_credentials(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


def configure_logging(level: str) -> None:
    """For the whole process; libraries speak from WARNING on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name, least in _LIBRARIES.items():
        logging.getLogger(name).setLevel(max(least, logging.getLogger().level))
