"""Going on where a cluster does not answer for a while: a laptop that slept, an API server that is being upgraded."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from finetune_api.backoff import backoff_seconds
from finetune_operator.errors import ApiError, ApiUnreachableError

from .cluster_errors import is_passing, refused

_FIRST_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 8.0

Answer = TypeVar("Answer")
Pause = Callable[[float], Awaitable[None]]


class Patience:
    """Asks until there is an answer, for at most some minutes; tells once that it waits, and once that it is over."""

    def __init__(self, tell: Callable[[str], None], *, seconds: float = 600.0, pause: Pause = asyncio.sleep) -> None:
        self._tell, self._seconds, self._pause = tell, seconds, pause
        self._has_answered = False

    async def ask(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer. A refusal that lasts is raised at once, and so is every error before the first answer."""
        started, tries = time.monotonic(), 0
        while True:
            try:
                answer = await call()
                break
            except (ApiError, ApiUnreachableError) as error:
                waited = time.monotonic() - started
                if not self._has_answered or not is_passing(error) or waited > self._seconds:
                    raise
                if tries == 0:
                    self._tell(f"{refused(error)}; asking again")
            await self._pause(backoff_seconds(tries, _FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS))
            tries += 1
        if tries:
            self._tell("the cluster answers again")
        self._has_answered = True
        return answer
