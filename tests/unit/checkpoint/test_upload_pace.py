"""How uploads are spread over time, and the request body that applies the pace."""

import io
import threading
import time

from finetune_trainer.checkpoint.upload.uploader import Pace
from finetune_trainer.store.paced import PacedBody


def seconds_of(pace: Pace, pieces: list[int]) -> float:
    started = time.monotonic()
    for piece in pieces:
        pace(piece)
    return time.monotonic() - started


def test_bytes_are_spread_over_the_duration() -> None:
    pace = Pace(1000, 0.4)
    taken = seconds_of(pace, [100] * 10)
    assert taken >= 0.35, "the last piece starts nine tenths later"
    assert 0 < pace.waited_seconds <= taken


def test_nothing_waits_without_a_duration() -> None:
    pace = Pace(1000, 0.0)
    seconds_of(pace, [1000] * 100)
    assert pace.waited_seconds == 0


def test_lost_time_is_made_up_for() -> None:
    pace = Pace(1000, 0.2)
    time.sleep(0.25)
    seconds_of(pace, [100] * 10)
    assert pace.waited_seconds == 0


def test_an_expedited_upload_no_longer_waits() -> None:
    pace = Pace(1000, 60.0)
    threading.Timer(0.1, pace.expedite).start()
    assert seconds_of(pace, [500, 500, 500]) < 10.0


def test_a_paced_body_is_a_file_of_its_bytes() -> None:
    asked: list[int] = []
    content = bytes(range(256)) * 4096
    body = PacedBody(memoryview(content), asked.append)
    assert len(body) == len(content)
    assert body.read(1000) == content[:1000]
    assert (body.seek(0, io.SEEK_END), body.tell(), body.seek(10)) == (len(content), len(content), 10)
    assert body.read() == content[10:]
    assert sum(asked) == 1000 + len(content) - 10
    assert max(asked) <= 256 << 10


def test_concurrent_waits_of_senders_count_once() -> None:
    pace = Pace(800, 0.4, senders=4)
    started = time.monotonic()
    senders = [threading.Thread(target=lambda: [pace(50) for _ in range(4)]) for _ in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert pace.waited_seconds <= time.monotonic() - started
    assert pace.waited_seconds > 0.1
