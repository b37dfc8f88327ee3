"""How long a request that storage does not answer is tried again."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from finetune_api.backoff import backoff_seconds

from .faults import FOREIGN, is_expired, is_refusal, is_transient, translate
from .uri import S3Address

T = TypeVar("T")

_RESETS = 5
"""How many tries in a row may set the clock back without getting further than any before them: a server that breaks off
every transfer at the same byte must not be asked for ever."""


class Renewable(Protocol):
    """Credentials that others may replace while they are used."""

    @property
    def generation(self) -> int:
        """Grows whenever others are used than before."""

    def renew(self, generation: int) -> bool:
        """A server has refused those of `generation`: whether there are others by now."""


@dataclass
class Meter:
    """How far the tries of a transfer have got, in bytes."""

    moved: int = 0
    """By all tries together."""
    furthest: int = 0
    """By the one that got furthest."""
    done: int = 0
    """Of files that need not be moved again."""
    _at: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Parts are moved by several threads."""

    def begin(self, at: int = 0) -> None:
        """A try begins, with so many bytes done."""
        self._at = at

    def add(self, count: int) -> None:
        """So many more bytes; negative where a part begins again."""
        with self._lock:
            self._at += count
            self.moved += max(0, count)
            self.furthest = max(self.furthest, self._at)


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter, bounded by the time since the first failure after the last progress."""

    total_seconds: float = 30.0
    """A short outage of storage costs no attempt; a longer one is for the operator to judge."""
    first_delay: float = 0.25
    max_delay: float = 5.0
    attempts_per_request: int = 3
    """botocore's own quick retries, which also cover the single parts of a large transfer."""
    credentials: Renewable | None = None
    """Looked up again when a request is refused."""

    def run(
        self,
        request: Callable[[], T],
        address: Callable[[], S3Address],
        endpoint: str,
        meter: Meter | None = None,
    ) -> T:
        """The answer of `request`; raises our error for its failure, a transient one only when the time is up.

        `address` is asked after a failure: of many files in one request, it names the one that failed. `meter` shows
        how far a long transfer gets: a try that has moved bytes sets the clock back.
        """
        patience = _Patience(self, meter or Meter())
        while True:
            generation = 0 if self.credentials is None else self.credentials.generation
            try:
                return request()
            except FOREIGN as error:
                is_renewed = self.credentials is not None and is_refusal(error) and self.credentials.renew(generation)
                if is_renewed and patience.may_renew():
                    continue
                # New credentials may come a little later than the old ones expire.
                may_pass = is_transient(error) or (self.credentials is not None and is_expired(error))
                if not may_pass or not patience.lasts():
                    raise translate(error, address(), endpoint) from error
            patience.wait()


class _Patience:
    """The clock of one request and its retries."""

    def __init__(self, policy: RetryPolicy, meter: Meter) -> None:
        self._policy, self._meter = policy, meter
        self._moved, self._furthest, self._resets = 0, 0, 0
        self._renewed_at = -1
        """Bytes moved when credentials were renewed last."""
        self._restart()

    def _restart(self) -> None:
        self._tries, self._deadline = 0, float("inf")

    def may_renew(self) -> bool:
        """Whether a refused try may follow at once with new credentials: once, and again after progress.

        An identity provider issues other keys each time, also to an identity without permission.
        """
        if self._renewed_at == self._meter.moved:
            return False
        self._renewed_at = self._meter.moved
        return True

    def lasts(self) -> bool:
        """A try has failed: whether another one may follow."""
        if self._meter.furthest > self._furthest:
            self._resets = 0
            self._restart()
        elif self._meter.moved > self._moved and self._resets < _RESETS:
            self._resets += 1
            self._restart()
        self._moved, self._furthest = self._meter.moved, self._meter.furthest
        now = time.monotonic()
        self._deadline = min(self._deadline, now + self._policy.total_seconds)
        return now + self._delay <= self._deadline

    @property
    def _delay(self) -> float:
        return backoff_seconds(self._tries, self._policy.first_delay, self._policy.max_delay)

    def wait(self) -> None:
        """Until the next try."""
        time.sleep(self._delay * random.uniform(0.5, 1.0))
        self._tries += 1


DEFAULT_RETRY = RetryPolicy()
