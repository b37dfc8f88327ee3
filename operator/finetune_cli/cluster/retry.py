"""Retry requests while a cluster is temporarily unreachable, for example during an upgrade."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from finetune_api.backoff import backoff_seconds
from finetune_operator.errors import ApiError, ApiUnreachableError

from .errors import command_error, is_transient

_FIRST_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 8.0

Answer = TypeVar("Answer")
Pause = Callable[[float], Awaitable[None]]


class Retry:
    """Retries for up to `seconds`. Reports when waiting starts and when it ends."""

    def __init__(self, report: Callable[[str], None], *, seconds: float = 600.0, pause: Pause = asyncio.sleep) -> None:
        self._report, self._seconds, self._pause = report, seconds, pause
        self._has_answered = False

    async def call(self, request: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the result of `request`.

        Raises ApiError and ApiUnreachableError. Permanent errors are not retried, and neither are errors before the
        first success, because an address that has never answered is probably wrong.
        """
        started, tries = time.monotonic(), 0
        while True:
            try:
                answer = await request()
                break
            except (ApiError, ApiUnreachableError) as error:
                waited = time.monotonic() - started
                if not self._has_answered or not is_transient(error) or waited > self._seconds:
                    raise
                if tries == 0:
                    self._report(f"{command_error(error)}; retrying")
            await self._pause(backoff_seconds(tries, _FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS))
            tries += 1
        if tries:
            self._report("the cluster is reachable again")
        self._has_answered = True
        return answer
