"""What a training does about checkpoints that are not kept: rank 0's uploader removes them, between two saves.

A save that is being stored relies on blobs that it finds in storage, and no manifest names them yet. So no rank stores
anything while a removal is open: it is begun when a save has landed on all ranks, and ended, on rank 0 and then on all
together, before the next one begins. Who waits for that hurries it: it breaks off at its next request, and the one
after the next save finishes it. Where saves follow each other so closely that none ever does, the next save is left
out for a while instead: storage must not fill up.
"""

import logging
import math
import time
from dataclasses import dataclass
from functools import partial

from ..runtime import RuntimeEnv
from .engine.collective import gather_all
from .format.orders import Answer, Pruned, PruneOrder
from .format.retention import Keep
from .upload.client import UploaderClient

log = logging.getLogger(__name__)

_PEEK_SECONDS = 0.2
_LET_GO = 3
"""So many removals in a row give way to a save that waits; the next one does not."""
INSISTING_SECONDS = 60.0
"""Then it gives way again, and has removed some of what there was."""


@dataclass(frozen=True)
class _Seen:
    """How far a removal is, as one rank sees it."""

    has_ended: bool
    given_way: int


class Housekeeping:
    """The removals of one attempt, as one rank sees them. `begin` and `end` are for all ranks together."""

    def __init__(self, client: UploaderClient, keep: Keep, runtime: RuntimeEnv) -> None:
        self._client, self._keep, self._runtime = client, keep, runtime
        self.is_open = False
        """The same on every rank: begun, and not known on every rank to have ended."""
        self.is_working = False
        """This rank's uploader is at it, or was when it was last heard of."""
        self._begun = 0.0
        self._given_way = 0
        """How many in a row have not been run to their end."""
        self.trouble = ""
        """Why the last one has not removed all it should have; empty if it has."""

    def begin(self, *, is_awaited: bool) -> None:
        """A checkpoint has landed: remove what is not kept any more. No order is open on any rank.

        `is_awaited`: the next save waits already.
        """
        if is_awaited and self._given_way < _LET_GO:
            self._given_way += 1
            return
        self.is_open, self.is_working, self._begun = True, self._runtime.is_main, time.monotonic()
        if self.is_working:
            self._client.send(PruneOrder(keep=self._keep))

    @property
    def insists(self) -> bool:
        """On rank 0: what goes on gives way only to a save that has to be."""
        starves = self.is_working and self._given_way >= _LET_GO
        return starves and time.monotonic() - self._begun < INSISTING_SECONDS

    def hear(self, timeout: float = 0.0) -> bool:
        """Look for news of it, `timeout` seconds at most; whether nothing is going on on this rank."""
        if self.is_working and (answer := self._client.receive(timeout)) is not None:
            self.is_working = not answer.done
            self._take(answer)
        return not self.is_working

    def finish(self, patience: float) -> bool:
        """Give it `patience` seconds; whether nothing is going on on this rank then."""
        deadline = time.monotonic() + patience
        if self.is_working:
            self._client.raise_priority()
        while not self.hear(_PEEK_SECONDS):
            if time.monotonic() >= deadline:
                self._client.restore_priority()
                return False
        return True

    def end(self, patience: float) -> bool:
        """A save waits, for so many seconds, or endlessly if it has to be: break it off; whether it has ended."""
        if self.is_open:
            seen = gather_all(partial(self._wait, patience), _Seen)
            self.is_open, self._given_way = not all(rank.has_ended for rank in seen), seen[0].given_way
        return not self.is_open

    def _wait(self, patience: float) -> _Seen:
        has_ended = self.hear()
        if not has_ended and (math.isinf(patience) or not self.insists):
            self._client.expedite()
            has_ended = self.finish(patience)
        return _Seen(has_ended, self._given_way)

    def _take(self, answer: Answer) -> None:
        pruned = answer.pruned or Pruned()
        if answer.failure is not None:
            self.trouble = answer.failure.message
        elif answer.done:
            self.trouble = pruned.blocked_by and f"their blobs stay while {pruned.blocked_by}"
            self._given_way = 0 if pruned.is_finished else self._given_way + 1
        if pruned.checkpoints or pruned.blobs:
            names = ", ".join(pruned.checkpoints) or "no checkpoint"
            log.info("removed %s and %d blobs of %d bytes", names, pruned.blobs, pruned.bytes)
