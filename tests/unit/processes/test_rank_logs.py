import logging
import sys

import pytest
from transformers.utils import logging as transformers_logging

from finetune_api.json_logs import JsonFormatter
from finetune_trainer.logs import CHATTY, quiet_libraries, readable_lines


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("finetune", logging.ERROR, __file__, 1, message, arguments, None)


def test_a_line_shows_level_message_and_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        print(1 / 0)
    failed = record("it broke")
    failed.exc_info = (caught.type, caught.value, sys.exc_info()[2])
    lines = list(readable_lines(JsonFormatter(rank=0).format(failed)))
    assert lines[0] == "ERROR it broke"
    assert lines[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("line", ["plain text", '{"not": "ours"}', "[1]", "{broken"])
def test_other_lines_are_unchanged(line: str) -> None:
    assert list(readable_lines(line)) == [line]


def test_verbose_libraries_log_only_through_our_handler() -> None:
    logger = logging.getLogger("DeepSpeed")
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    quiet_libraries()
    assert (logger.handlers, logger.propagate, logger.level) == ([], True, CHATTY["DeepSpeed"])


def test_progress_bars_are_disabled_even_if_their_library_was_imported_before() -> None:
    transformers_logging.enable_progress_bar()
    quiet_libraries()
    assert not transformers_logging.is_progress_bar_enabled()
