"""What a training does about checkpoints that are not kept: rank 0's uploader removes them, between two saves.

A save that is being stored relies on blobs that it finds in storage, and no manifest names them yet. So no rank stores
anything while a removal is open: it is begun when a save has landed on all ranks, and ended, on rank 0 and then on all
together, before the next one begins. Who waits for that hurries it: it breaks off at its next request, and the one
after the next save finishes it.
"""

import logging
import time
from functools import partial

from ..runtime import RuntimeEnv
from .carrier import Carrier
from .collective import everywhere
from .orders import Answer, Pruned, PruneOrder
from .retention import Keep

log = logging.getLogger(__name__)

_PEEK_SECONDS = 0.2


class Housekeeping:
    """The removals of one attempt, as one rank sees them. `begin` and `end` are for all ranks together."""

    def __init__(self, carrier: Carrier, keep: Keep, runtime: RuntimeEnv) -> None:
        self._carrier, self._keep, self._runtime = carrier, keep, runtime
        self.is_open = False
        """The same on every rank: begun, and not known everywhere to have ended."""
        self._is_ordered = False
        """This rank's uploader is at it, or was when it was last heard of."""
        self.trouble = ""
        """Why the last one has not removed all it should have; empty if it has."""

    def begin(self) -> None:
        """A checkpoint has landed: remove what is not kept any more. No order is open on any rank."""
        self.is_open, self._is_ordered = True, self._runtime.is_main
        if self._is_ordered:
            self._carrier.send(PruneOrder(keep=self._keep))

    def hear(self, timeout: float = 0.0) -> bool:
        """Look for news of it, `timeout` seconds at most; whether nothing is going on on this rank."""
        if self._is_ordered and (answer := self._carrier.receive(timeout)) is not None:
            self._is_ordered = not answer.done
            self._take(answer)
        return not self._is_ordered

    def finish(self, patience: float) -> bool:
        """Give it `patience` seconds; whether nothing is going on on this rank then."""
        deadline = time.monotonic() + patience
        while not self.hear(_PEEK_SECONDS):
            if time.monotonic() >= deadline:
                return False
        return True

    def end(self, deadline: float) -> bool:
        """Break it off, or wait for its end; whether it has ended before `deadline`, on the monotonic clock."""
        if self.is_open:
            self.is_open = not all(everywhere(partial(self._wait, deadline)))
        return not self.is_open

    def _wait(self, deadline: float) -> bool:
        if not self.hear():
            self._carrier.hurry()
        return self.finish(deadline - time.monotonic())

    def _take(self, answer: Answer) -> None:
        pruned = answer.pruned or Pruned()
        if answer.failure is not None:
            self.trouble = answer.failure.message
        elif answer.done:
            self.trouble = pruned.blocked_by and f"their blobs stay while {pruned.blocked_by}"
        if pruned.checkpoints or pruned.blobs:
            names = ", ".join(pruned.checkpoints) or "no checkpoint"
            log.info("removed %s and %d blobs of %d bytes", names, pruned.blobs, pruned.bytes)
