"""How fast an uploader sends: spread over the time that it has, so that the training beside it does not feel it."""

import threading
import time


class Pace:
    """A rate that several threads share. Time that was lost, to slow storage, is made up for. Without `seconds` nothing
    waits."""

    def __init__(self, total_bytes: int = 0, seconds: float = 0.0, *, senders: int = 1) -> None:
        self._rate = total_bytes / seconds if seconds > 0 else 0.0
        self._senders = senders
        self._sent = 0
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._hurry = threading.Event()
        self._waited = 0.0

    @property
    def waited_seconds(self) -> float:
        """How much longer all has taken for it: the mean of the senders' waits, which wait beside each other."""
        return self._waited / self._senders

    @property
    def is_hurried(self) -> bool:
        """Whether somebody waits for the end."""
        return self._hurry.is_set()

    def hurry(self) -> None:
        """From now on nothing waits: somebody waits for the end."""
        self._hurry.set()

    def __call__(self, count: int) -> None:
        """Wait until `count` further bytes may be sent."""
        if not self._rate or self._hurry.is_set():
            return
        with self._lock:
            due = self._started + self._sent / self._rate
            self._sent += count
        wait = due - time.monotonic()
        if wait > 0:
            begun = time.monotonic()
            self._hurry.wait(wait)
            with self._lock:
                self._waited += time.monotonic() - begun
