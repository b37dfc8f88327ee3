"""The uploader: a process of each rank that hashes and uploads its snapshots while the rank continues to train.

    python -m finetune_trainer.checkpoint.upload.uploader --channel FD

A rank forks its first uploader (standby.py) and starts this program in place of one that has died. The rank sends over
the channel, a Unix socket that preserves message boundaries: first the Setup, with the descriptors of the shared memory
of orders and snapshots (SCM_RIGHTS), then the length of an order in shared memory, or `expedite`. The uploader sends
Answers. At most one order is open. An uploader exits as soon as the channel is closed: without its rank, nothing that
it stores can be committed. It retries requests to unresponsive storage indefinitely.

A checkpoint is stored in this order: data blobs, layout, part and state, which are content-addressed and have no
effect without a manifest. Once all parts are stored, rank 0's uploader checks that no newer attempt has claimed the
run and writes the manifest with one conditional put. If a process dies before that, the previous checkpoint remains
the newest. Checkpoints that are no longer kept are removed last.
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
from pathlib import Path
from typing import NoReturn

from pydantic import TypeAdapter

from ...errors import FencedError, TrainerError
from ...failures import Failure
from ...store import ObjectStore, RetryPolicy
from ..format.manifest import Part
from ..format.orders import Answer, CommitOrder, Order, PartOrder, PruneOrder, Setup, StoredPart
from ..stored.blobs import THREADS, parallel
from ..stored.pruning import Pruning
from ..stored.run_storage import RunStorage
from .shared_memory import SharedMemory

log = logging.getLogger("finetune")

PROCESS_NAME = "uploader"
"""As `ps -o comm` shows it: the command line of a forked process is that of the fork server."""
EXPEDITE = b"expedite"
LONGEST_MESSAGE = 1 << 16
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 15.0
RETRY = RetryPolicy(total_seconds=5.0, attempts_per_request=1)
"""Timeout of one request. After it, the uploader reports the failure to the rank and repeats the whole order, most of
which is stored by then."""
_ORDER: TypeAdapter[Order] = TypeAdapter(Order)


class Pace:
    """An upload rate shared by several threads: spreading an upload over time avoids slowing training down.

    Time lost to slow storage is made up for. Without `seconds`, nothing waits.
    """

    def __init__(self, total_bytes: int = 0, seconds: float = 0.0, *, senders: int = 1) -> None:
        self._rate = total_bytes / seconds if seconds > 0 else 0.0
        self._senders = senders
        self._sent = 0
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._expedited = threading.Event()
        self._waited = 0.0

    @property
    def waited_seconds(self) -> float:
        """How much the waits prolonged the upload: the mean over the senders, which wait concurrently."""
        return self._waited / self._senders

    @property
    def is_expedited(self) -> bool:
        """Whether the rank waits for the order."""
        return self._expedited.is_set()

    def expedite(self) -> None:
        """The rank waits for the order: stop delaying."""
        self._expedited.set()

    def __call__(self, count: int) -> None:
        """Wait until `count` further bytes may be sent."""
        if not self._rate or self._expedited.is_set():
            return
        with self._lock:
            due = self._started + self._sent / self._rate
            self._sent += count
        wait = due - time.monotonic()
        if wait > 0:
            started = time.monotonic()
            self._expedited.wait(wait)
            with self._lock:
                self._waited += time.monotonic() - started


def execute_order(storage: RunStorage, order: Order, snapshot: SharedMemory, pace: Pace) -> Answer:
    """Execute the order. `snapshot` is the memory that a PartOrder refers to.

    Raises the error that prevents a part or a commit, since there is no checkpoint without them. An error of pruning is
    returned in the answer, because pruning is not retried.
    """
    match order:
        case PartOrder():
            memory = snapshot.array(order.arrays_bytes + order.buffers_bytes)
            return Answer(done=True, part=execute_upload(storage, order, memory.data, pace))
        case CommitOrder():
            commit(storage, order)
            return Answer(done=True)
        case PruneOrder():
            return prune(storage, order, pace)


def execute_upload(storage: RunStorage, order: PartOrder, memory: memoryview, pace: Pace) -> StoredPart:
    """Upload the blobs of a rank's snapshot that storage does not have yet.

    `memory` has the rank's optimizer state arrays, followed by the module's buffers.
    """
    blobs, size = storage.blobs, order.arrays_bytes
    blobs.suspect.update(order.suspect)
    cuts = [memory[at : min(at + order.blob_bytes, size)] for at in range(0, size, order.blob_bytes)]
    storage.node_cache.start_part(size)
    digests = parallel(lambda content: blobs.put(content, pace=pace, cache=True), cuts)
    storage.node_cache.finish_part()
    part = Part(
        rank=order.rank,
        layout=blobs.put_json(order.layout.model_dump()),
        blobs=tuple(digests),
        bytes=size,
        steps=order.steps,
        rng=order.rng,
    )
    digest, state = blobs.put_json(part.model_dump()), ""
    if order.state is not None:
        buffers = memory[size : size + order.buffers_bytes]
        stored = blobs.put(buffers) if order.state.buffers else None
        state = blobs.put_json(order.state.model_copy(update={"buffers_blob": stored}).model_dump())
    return StoredPart(digest=digest, bytes=size, state=state, suspect=tuple(blobs.suspect))


def commit(storage: RunStorage, order: CommitOrder) -> None:
    """Write the manifest, which makes the checkpoint exist.

    Raises FencedError if a newer attempt has claimed the run, or another process has written this manifest.
    """
    manifest = order.manifest
    storage.claims.check()
    if not storage.catalog.add(manifest, has_conditions=order.has_conditions):
        raise FencedError(
            f"{storage.catalog.uri_of(manifest.name)} already exists: another process writes as attempt "
            f"{manifest.attempt}"
        )


def prune(storage: RunStorage, order: PruneOrder, pace: Pace) -> Answer:
    """Remove what is not kept, until the order is expedited."""
    pruning = Pruning(storage, order.keep)
    try:
        for _ in pruning.steps():
            if pace.is_expedited:
                break
    except Exception as error:
        if not isinstance(error, TrainerError):
            log.exception("unexpected error while removing old checkpoints")
        return Answer(done=True, pruned=pruning.pruned, failure=Failure.of(error))
    return Answer(done=True, pruned=pruning.pruned)


@dataclass
class Uploader:
    """One thread reads the channel, so that it notices the rank's exit and `expedite` immediately; another one
    works."""

    channel: socket.socket
    orders: SharedMemory
    snapshot: SharedMemory
    storage: RunStorage
    pace: Pace | None = None

    def serve(self) -> None:
        """Execute orders until the channel is closed."""
        while message := self.channel.recv(LONGEST_MESSAGE):
            if message == EXPEDITE:
                if self.pace is not None:
                    self.pace.expedite()
                continue
            order = _ORDER.validate_json(self.orders.array(int(message))[: int(message)].tobytes())
            self.pace = _pace_of(order)
            threading.Thread(target=self._execute, args=(order, self.pace), daemon=True).start()

    def _execute(self, order: Order, pace: Pace) -> None:
        delay, started = _FIRST_DELAY, time.monotonic()
        while True:
            try:
                answer = execute_order(self.storage, order, self.snapshot, pace)
            except Exception as error:
                is_final = isinstance(error, FencedError)
                self._send(Answer(failure=Failure.of(error), is_final=is_final))
                if is_final:
                    return
                if not isinstance(error, TrainerError):
                    log.exception("unexpected error during an upload")
                time.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
            else:
                busy = max(0.0, time.monotonic() - started - pace.waited_seconds)
                self._send(answer.model_copy(update={"busy_seconds": busy}))
                return

    def _send(self, answer: Answer) -> None:
        with contextlib.suppress(ConnectionError):  # the rank has exited, and `serve` is about to end this process
            self.channel.send(answer.model_dump_json().encode())


def _pace_of(order: Order) -> Pace:
    if isinstance(order, PartOrder):
        blobs = math.ceil(order.arrays_bytes / order.blob_bytes)
        return Pace(order.arrays_bytes, order.spread_seconds, senders=min(THREADS, max(1, blobs)))
    return Pace()


def run_uploader(channel: socket.socket) -> NoReturn:
    """Wait for the Setup, then execute orders; end this process when the channel is closed."""
    with contextlib.suppress(OSError):  # there is no /proc
        Path("/proc/self/comm").write_text(PROCESS_NAME)
    message, descriptors, _, _ = socket.recv_fds(channel, LONGEST_MESSAGE, 2)
    if message:
        setup = Setup.model_validate_json(message)
        store = ObjectStore.connect(setup.storage, retry=RETRY, sign_bodies=False)
        storage = RunStorage.of(
            store, setup.run_uri, attempt=setup.attempt, generation=setup.generation, cache=setup.cache
        )
        orders, snapshot = map(SharedMemory, descriptors)
        Uploader(channel, orders, snapshot, storage).serve()
    # Threads may be in the middle of an upload that nobody waits for.
    os._exit(0)


def main() -> NoReturn:
    """Parse the command line, then run."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.checkpoint.upload.uploader")
    parser.add_argument("--channel", type=int, required=True, metavar="FD")
    run_uploader(socket.socket(fileno=parser.parse_args().channel))


if __name__ == "__main__":
    main()
