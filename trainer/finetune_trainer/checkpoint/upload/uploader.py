"""The uploader: a process beside each rank that hashes and uploads its snapshots while it trains on.

    python -m finetune_trainer.checkpoint.upload.uploader --channel FD --orders FD --snapshot FD

Over the channel, a socket that keeps messages apart, come the Setup, then the length of an order in shared memory, or
`hurry`; back go Answers. At most one order is open. An uploader ends at once when the channel does: without its rank
nothing of it can be committed. Storage that does not answer is tried again for as long as it takes.
"""

import argparse
import contextlib
import logging
import math
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import NoReturn

from pydantic import TypeAdapter

from ...errors import FencedError, TrainerError
from ...store import ObjectStore, RetryPolicy
from ..format.failures import Failure
from ..format.orders import Answer, Order, PartOrder, Setup
from ..stored.blobs import THREADS
from ..stored.places import RunStorage
from . import deposit
from .pace import Pace
from .shared_memory import SharedMemory

log = logging.getLogger("finetune")

HURRY = b"hurry"
LONGEST_MESSAGE = 1 << 16
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 15.0
RETRY = RetryPolicy(total_seconds=5.0, attempts_per_request=1)
"""Of a request; then the rank is told, and the whole order is tried again, of which most is there by then."""
_ORDER: TypeAdapter[Order] = TypeAdapter(Order)


@dataclass
class Uploader:
    """One thread listens, so that a rank's end and its hurry are heard; another one works."""

    channel: socket.socket
    orders: SharedMemory
    snapshot: SharedMemory
    storage: RunStorage
    pace: Pace | None = None

    def serve(self) -> None:
        """Until the channel ends."""
        while message := self.channel.recv(LONGEST_MESSAGE):
            if message == HURRY:
                if self.pace is not None:
                    self.pace.hurry()
                continue
            order = _ORDER.validate_json(self.orders.array(int(message))[: int(message)].tobytes())
            self.pace = _pace_of(order)
            threading.Thread(target=self._carry_out, args=(order, self.pace), daemon=True).start()

    def _carry_out(self, order: Order, pace: Pace) -> None:
        delay, started = _FIRST_DELAY, time.monotonic()
        while True:
            try:
                answer = deposit.carry_out(self.storage, order, self.snapshot, pace)
            except Exception as error:
                is_final = isinstance(error, FencedError)
                self._tell(Answer(failure=Failure.of(error), is_final=is_final))
                if is_final:
                    return
                if not isinstance(error, TrainerError):
                    log.exception("an upload has failed for a reason of its own")
                time.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
            else:
                busy = max(0.0, time.monotonic() - started - pace.waited_seconds)
                self._tell(answer.model_copy(update={"busy_seconds": busy}))
                return

    def _tell(self, answer: Answer) -> None:
        with contextlib.suppress(ConnectionError):  # the rank is gone, and so is this process in a moment
            self.channel.send(answer.model_dump_json().encode())


def _pace_of(order: Order) -> Pace:
    if isinstance(order, PartOrder):
        blobs = math.ceil(order.planes_bytes / order.blob_bytes)
        return Pace(order.planes_bytes, order.spread_seconds, senders=min(THREADS, max(1, blobs)))
    return Pace()


def main() -> NoReturn:
    """Parse the command line, then serve."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.checkpoint.upload.uploader")
    for name in ("channel", "orders", "snapshot"):
        parser.add_argument(f"--{name}", type=int, required=True, metavar="FD")
    arguments = parser.parse_args()
    channel = socket.socket(fileno=arguments.channel)
    setup = Setup.model_validate_json(channel.recv(LONGEST_MESSAGE))
    store = ObjectStore.connect(setup.storage, retry=RETRY, sign_bodies=False)
    storage = RunStorage.of(store, setup.run_uri, attempt=setup.attempt, cache=setup.cache)
    Uploader(channel, SharedMemory(arguments.orders), SharedMemory(arguments.snapshot), storage).serve()
    # Threads may be in the middle of an upload that nobody waits for any more.
    os._exit(0)


if __name__ == "__main__":
    main()
