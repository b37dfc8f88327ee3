"""How long a request that storage does not answer is tried again."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from .faults import FOREIGN, is_transient, translate
from .uri import S3Address

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter, bounded by the time since the first failure."""

    total_seconds: float = 30.0
    """A short outage of storage costs no attempt; a longer one is for the operator to judge."""
    first_delay: float = 0.25
    max_delay: float = 5.0
    attempts_per_request: int = 3
    """botocore's own quick retries, which also cover the single parts of a large transfer."""

    def run(self, request: Callable[[], T], address: Callable[[], S3Address], endpoint: str) -> T:
        """The answer of `request`; raises our error for its failure, a transient one only when the time is up.

        `address` is asked after a failure: of many files in one request, it names the one that failed.
        """
        delay, deadline = self.first_delay, None
        while True:
            try:
                return request()
            except FOREIGN as error:
                now = time.monotonic()
                deadline = now + self.total_seconds if deadline is None else deadline
                if not is_transient(error) or now + delay > deadline:
                    raise translate(error, address(), endpoint) from error
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, self.max_delay)


DEFAULT_RETRY = RetryPolicy()
