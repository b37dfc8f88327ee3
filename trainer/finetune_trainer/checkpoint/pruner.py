"""CheckpointPruner: rank 0's uploader removes checkpoints that are not kept, between two saves.

A save relies on blobs that it finds in storage, although no manifest names them yet. So no rank uploads anything while
a removal is open: it starts when a save has been committed, and ends, on rank 0 and then on all ranks together, before
the next save starts. A save that waits stops the removal after its current request, and the removal after the next save
finishes it. If saves follow each other so closely that no removal ever finishes, one save is left out for a while:
storage must not fill up.
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

_POLL_SECONDS = 0.2
_MAX_INTERRUPTIONS = 3
"""A save may interrupt this many removals in a row; the next removal blocks saves that are not required."""
BLOCKING_SECONDS = 60.0
"""After this time the removal no longer blocks saves; it has removed some checkpoints by then."""


@dataclass(frozen=True)
class _Progress:
    """Progress of the removal on one rank."""

    has_ended: bool
    interruptions: int


class CheckpointPruner:
    """The removals of one attempt, as one rank sees them. `start` and `stop` are collective."""

    def __init__(self, client: UploaderClient, keep: Keep, runtime: RuntimeEnv) -> None:
        self._client, self._keep, self._runtime = client, keep, runtime
        self.is_open = False
        """The same on every rank: a removal has started and is not known to have ended on all ranks."""
        self.is_busy = False
        """This rank's uploader was removing something when its last answer arrived."""
        self._started = 0.0
        self._interruptions = 0
        """How many removals in a row were not finished."""
        self.error = ""
        """Why the last removal did not remove everything it should have; empty if it did."""

    def start(self, *, is_save_waiting: bool) -> None:
        """Remove what is no longer kept, after a commit. No order is open on any rank.

        `is_save_waiting`: the next save is waiting already.
        """
        if is_save_waiting and self._interruptions < _MAX_INTERRUPTIONS:
            self._interruptions += 1
            return
        self.is_open, self.is_busy, self._started = True, self._runtime.is_main, time.monotonic()
        if self.is_busy:
            self._client.send(PruneOrder(keep=self._keep))

    @property
    def blocks_saves(self) -> bool:
        """On rank 0: whether only a required save may interrupt the removal."""
        is_starved = self.is_busy and self._interruptions >= _MAX_INTERRUPTIONS
        return is_starved and time.monotonic() - self._started < BLOCKING_SECONDS

    def poll(self, timeout: float = 0.0) -> bool:
        """Process an answer, waiting at most `timeout` seconds; return whether this rank's uploader is idle."""
        if self.is_busy and (answer := self._client.receive(timeout)) is not None:
            self.is_busy = not answer.done
            self._handle(answer)
        return not self.is_busy

    def wait(self, timeout: float) -> bool:
        """Wait for the removal for at most `timeout` seconds; return whether this rank's uploader is idle."""
        deadline = time.monotonic() + timeout
        if self.is_busy:
            self._client.raise_priority()
        while not self.poll(_POLL_SECONDS):
            if time.monotonic() >= deadline:
                self._client.restore_priority()
                return False
        return True

    def stop(self, timeout: float) -> bool:
        """Stop the removal so that a save can start; return whether it has ended on all ranks. Collective.

        `timeout`: in seconds; infinite for a save that is required, which a removal cannot block.
        """
        if self.is_open:
            seen = gather_all(partial(self._stop, timeout), _Progress)
            self.is_open, self._interruptions = not all(rank.has_ended for rank in seen), seen[0].interruptions
        return not self.is_open

    def _stop(self, timeout: float) -> _Progress:
        has_ended = self.poll()
        if not has_ended and (math.isinf(timeout) or not self.blocks_saves):
            self._client.expedite()
            has_ended = self.wait(timeout)
        return _Progress(has_ended, self._interruptions)

    def _handle(self, answer: Answer) -> None:
        pruned = answer.pruned or Pruned()
        if answer.failure is not None:
            self.error = answer.failure.message
        elif answer.done:
            self.error = pruned.blocked_by and f"their blobs stay while {pruned.blocked_by}"
            self._interruptions = 0 if pruned.is_finished else self._interruptions + 1
        if pruned.checkpoints or pruned.blobs:
            names = ", ".join(pruned.checkpoints) or "no checkpoint"
            log.info("removed %s and %d blobs of %d bytes", names, pruned.blobs, pruned.bytes)
