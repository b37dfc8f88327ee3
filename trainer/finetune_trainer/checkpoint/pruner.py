"""CheckpointPruner: rank 0's uploader removes checkpoints that are not kept, between two saves.

A save relies on blobs that it finds in storage although no manifest refers to them yet. Therefore no rank uploads
anything during pruning: it starts when a save has been committed, and ends, on rank 0 and then on all ranks together,
before the next save starts. A waiting save stops the pruning after its current request, and the pruning after the next
save finishes it. If saves follow each other so closely that pruning never finishes, it blocks saves for a while:
otherwise storage would fill up.
"""

import logging
import math
import time
from dataclasses import dataclass
from functools import partial

from ..collectives import gather_all
from ..runtime import RuntimeEnv
from .format.orders import Answer, Pruned, PruneOrder
from .format.retention import Keep
from .upload.client import UploaderClient

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_MAX_INTERRUPTIONS = 3
"""A save may interrupt pruning this many times in a row; the next pruning blocks saves that are not required."""
BLOCKING_SECONDS = 60.0
"""After this time pruning no longer blocks saves; it has removed some checkpoints by then."""


@dataclass(frozen=True)
class _Progress:
    """Progress of pruning on one rank."""

    has_ended: bool
    interruptions: int


class CheckpointPruner:
    """Pruning of one attempt, on one rank. `start` and `stop` are collective."""

    def __init__(self, client: UploaderClient, keep: Keep, runtime: RuntimeEnv) -> None:
        self._client, self._keep, self._runtime = client, keep, runtime
        self.is_open = False
        """The same on every rank: pruning has started and is not known to have ended on all ranks."""
        self.is_busy = False
        """Whether this rank's uploader was pruning at its last answer."""
        self._started = 0.0
        self._interruptions = 0
        """How many times in a row pruning was interrupted."""
        self.error = ""
        """Why the last pruning did not remove everything; empty if it did."""

    def start(self, *, is_save_waiting: bool) -> None:
        """Start pruning after a commit. No order may be open on any rank.

        `is_save_waiting`: the next save is already waiting.
        """
        if is_save_waiting and self._interruptions < _MAX_INTERRUPTIONS:
            self._interruptions += 1
            return
        self.is_open, self.is_busy, self._started = True, self._runtime.is_main, time.monotonic()
        if self.is_busy:
            self._client.send(PruneOrder(keep=self._keep))

    @property
    def blocks_saves(self) -> bool:
        """On rank 0: whether only a required save may interrupt the pruning."""
        is_starved = self.is_busy and self._interruptions >= _MAX_INTERRUPTIONS
        return is_starved and time.monotonic() - self._started < BLOCKING_SECONDS

    def poll(self, timeout: float = 0.0) -> bool:
        """Process an answer, waiting at most `timeout` seconds; return whether this rank's uploader is idle."""
        if self.is_busy and (answer := self._client.receive(timeout)) is not None:
            self.is_busy = not answer.done
            self._handle(answer)
        return not self.is_busy

    def wait(self, timeout: float) -> bool:
        """Wait for the pruning for at most `timeout` seconds; return whether this rank's uploader is idle."""
        deadline = time.monotonic() + timeout
        if self.is_busy:
            self._client.raise_priority()
        while not self.poll(_POLL_SECONDS):
            if time.monotonic() >= deadline:
                self._client.restore_priority()
                return False
        return True

    def stop(self, timeout: float) -> bool:
        """Stop the pruning so that a save can start; return whether it has ended on all ranks. Collective.

        `timeout`: in seconds; infinite for a required save, which pruning cannot block.
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
            self.error = pruned.blocked_by and f"their blobs are kept while {pruned.blocked_by}"
            self._interruptions = 0 if pruned.is_finished else self._interruptions + 1
        if pruned.checkpoints or pruned.blobs:
            names = ", ".join(pruned.checkpoints) or "no checkpoint"
            log.info("removed %s and %d blobs of %d bytes", names, pruned.blobs, pruned.bytes)
