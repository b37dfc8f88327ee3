"""Going on where a cluster does not answer for a while: a laptop that slept, an API server that is being upgraded."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from finetune_operator.errors import ApiError, ApiUnreachableError

from .cluster_errors import is_passing, refused

_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Between tries; the last one from then on."""

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
            await self._pause(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1
        if tries:
            self._tell("the cluster answers again")
        self._has_answered = True
        return answer
