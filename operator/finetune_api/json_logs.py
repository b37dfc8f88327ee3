"""The format of log lines, which operator and trainer write and `finetune logs` reads."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter as BaseFormatter

from .redaction import hide_credentials


class JsonFormatter(BaseFormatter):
    """Formats a record as one line of JSON without credentials.

    Keys: time (RFC 3339, UTC), level, `static`, logger, message, the attributes in `fields` that the record has, and
    for an exception traceback. Other attributes, which libraries set, are omitted.
    """

    def __init__(self, fields: Sequence[str] = (), **static: object) -> None:
        super().__init__(json_ensure_ascii=False)
        self._fields, self._static = tuple(fields), static

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Unpaired surrogates, which streams cannot encode, are escaped."""
        return super().format(record).encode(errors="backslashreplace").decode()

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Collect the keys and values of the line.

        The base class would add every attribute of the record, and the entries of a message that is a dictionary.
        """
        log_data.update(
            {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
                "level": record.levelname,
                **self._static,
                "logger": record.name,
                "message": hide_credentials(record.getMessage()),
                **{name: value for name in self._fields if (value := getattr(record, name, None)) is not None},
            }
        )
        if record.exc_info:
            log_data["traceback"] = hide_credentials(str(self.formatException(record.exc_info)))
