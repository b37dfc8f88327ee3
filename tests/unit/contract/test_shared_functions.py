"""Functions shared by operator, trainer and command line in addition to the API: times, back-off, files."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from finetune_api.backoff import backoff_seconds
from finetune_api.clock import rfc3339, utc_now
from finetune_api.files import replace_file


@pytest.mark.parametrize(
    ("moment", "timespec", "text"),
    [
        (datetime(2026, 1, 31, 12, tzinfo=UTC), "milliseconds", "2026-01-31T12:00:00.000Z"),
        (datetime(2026, 1, 31, 12, 0, 0, 123_999, tzinfo=UTC), "milliseconds", "2026-01-31T12:00:00.123Z"),
        (datetime(2026, 1, 31, 12, 0, 59, 999_999, tzinfo=UTC), "seconds", "2026-01-31T12:00:59Z"),
    ],
)
def test_a_time_is_written_as_kubernetes_does(moment, timespec, text):
    assert rfc3339(moment, timespec) == text


def test_a_written_time_is_read_back():
    moment = utc_now()
    assert moment - datetime.fromisoformat(rfc3339(moment)) < timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 0.5), (1, 1.0), (2, 2.0), (6, 32.0), (7, 60.0), (31, 60.0), (10_000, 60.0)]
)
def test_a_wait_doubles_up_to_the_longest(failures, seconds):
    assert backoff_seconds(failures, 0.5, 60.0) == seconds


def test_a_first_delay_above_the_maximum_is_limited():
    assert backoff_seconds(0, 5.0, 2.0) == 2.0


def test_a_file_is_replaced_with_owner_permissions_and_without_remains(tmp_path: Path):
    path = tmp_path / "object.json"
    path.write_text("old")
    path.chmod(0o644)
    replace_file(path, "Größe")
    assert path.read_bytes() == "Größe".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["half a pair \ud83d", 5])
def test_a_failed_write_keeps_the_old_content_without_remains(tmp_path: Path, text):
    path = tmp_path / "object.json"
    path.write_text("old")
    with pytest.raises((UnicodeError, TypeError)):
        replace_file(path, text)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("object.json", "old")]
