"""Retries of requests to object storage."""

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
"""How many retries in a row may restart the time limit without transferring more than any earlier try. Without this
limit, a server that breaks off every transfer at the same byte would be retried forever."""


class Renewable(Protocol):
    """Credentials that can change while they are used."""

    @property
    def generation(self) -> int:
        """Increases whenever the credentials change."""

    def renew(self, generation: int) -> bool:
        """Return whether there are newer credentials than those of `generation`, which a server has rejected."""


@dataclass
class Meter:
    """Progress of a transfer over all of its tries, in bytes. Thread-safe: parts are transferred by several threads."""

    moved: int = 0
    """Transferred by all tries together."""
    furthest: int = 0
    """Transferred by the try that got furthest."""
    done: int = 0
    """Bytes of the files that are complete."""
    _at: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, at: int = 0) -> None:
        """Start a try that already has `at` bytes."""
        self._at = at

    def add(self, count: int) -> None:
        """Count `count` more bytes; negative if a part is transferred again."""
        with self._lock:
            self._at += count
            self.moved += max(0, count)
            self.furthest = max(self.furthest, self._at)


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter, bounded by the time since the first failure after the last progress."""

    total_seconds: float = 30.0
    """Time limit. A short outage of storage must not fail the attempt. After a longer one, the operator decides whether
    to restart it."""
    first_delay: float = 0.25
    max_delay: float = 5.0
    attempts_per_request: int = 3
    """botocore's own retries, which also cover the parts of a large transfer."""
    credentials: Renewable | None = None
    """Renewed when the server rejects a request."""

    def run(
        self,
        request: Callable[[], T],
        address: Callable[[], S3Address],
        endpoint: str,
        meter: Meter | None = None,
    ) -> T:
        """Return the result of `request`. Retries transient failures until the time limit, then raises a TrainerError.

        `address` is called after a failure and returns the object that failed. `meter` measures the progress of a long
        transfer: a try that has transferred bytes restarts the time limit.
        """
        limit = _Limit(self, meter or Meter())
        while True:
            generation = 0 if self.credentials is None else self.credentials.generation
            try:
                return request()
            except FOREIGN as error:
                is_renewed = self.credentials is not None and is_refusal(error) and self.credentials.renew(generation)
                if is_renewed and limit.may_renew():
                    continue
                # New credentials may arrive shortly after the old ones have expired.
                may_pass = is_transient(error) or (self.credentials is not None and is_expired(error))
                if not may_pass or not limit.allows_retry():
                    raise translate(error, address(), endpoint) from error
            limit.wait()


class _Limit:
    """Time limit and delays of one request and its retries."""

    def __init__(self, policy: RetryPolicy, meter: Meter) -> None:
        self._policy, self._meter = policy, meter
        self._moved, self._furthest, self._resets = 0, 0, 0
        self._renewed_at = -1
        """Bytes transferred when credentials were last renewed."""
        self._restart()

    def _restart(self) -> None:
        self._tries, self._deadline = 0, float("inf")

    def may_renew(self) -> bool:
        """Whether a rejected request may be retried at once with new credentials: once, and again after progress.

        Without this limit, a request without permission would be retried forever, because an identity provider issues
        new keys each time.
        """
        if self._renewed_at == self._meter.moved:
            return False
        self._renewed_at = self._meter.moved
        return True

    def allows_retry(self) -> bool:
        """Whether a request that has failed may be retried."""
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
        """Sleep until the next try. The jitter keeps many processes from retrying at the same time."""
        time.sleep(self._delay * random.uniform(0.5, 1.0))
        self._tries += 1


DEFAULT_RETRY = RetryPolicy()
