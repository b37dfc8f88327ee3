"""Processes blocks of files in worker processes, with the results in the order of the blocks."""

import ctypes
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from finetune_api.constants import Stage
from finetune_api.exit_codes import out_of_memory_advice

from ..errors import MemoryExhaustedError, TrainerError
from ..memory import cpu_limit, memory_kills, memory_limit
from .pipeline import BlockPlan, BlockResult, process_block
from .readers import Block

MIN_BYTES_FOR_WORKERS = 8 << 20
"""Minimum size of the files for which workers are started. Starting one takes 0.9 s of CPU time, tokenizing 8 MiB
about 5 s."""
_WORKER_BYTES = 256 << 20
"""Memory reserved for a worker: about 200 MiB were measured."""
_QUEUED_BLOCKS_PER_WORKER = 2
"""Blocks per worker that are read before the first of them is processed."""
_PR_SET_PDEATHSIG = 1


def worker_count(source_bytes: int) -> int:
    """Number of workers for files of this size; 0: process the blocks in this process.

    One per CPU of the container, as far as its memory allows.
    """
    if source_bytes < MIN_BYTES_FOR_WORKERS:
        return 0
    limit = memory_limit()
    by_memory = cpu_limit() if limit is None else max(0, limit // 2) // _WORKER_BYTES
    count = min(cpu_limit(), by_memory)
    return count if count > 1 else 0


def process_blocks(
    plan: BlockPlan, blocks: Iterable[tuple[int, Block]], workers: int
) -> Iterator[tuple[int, BlockResult]]:
    """Yield the result of each block, in order, with the number that was given with the block.

    An error while reading is raised after the results of the blocks before it.

    Raises MemoryExhaustedError or TrainerError if a worker exits before its block is done.
    """
    if workers == 0:
        for number, (file, block) in enumerate(blocks):
            yield file, process_block(plan, block, number)
        return
    kills = memory_kills()
    # Uses "spawn": a fork would copy locks that threads of torch, boto3 and the tokenizer may hold.
    # The size is fixed: with this start method, all workers are started with the first block.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(plan, os.getpid()))
    try:
        yield from _in_order(pool, blocks, workers * _QUEUED_BLOCKS_PER_WORKER)
    except BrokenProcessPool as error:
        if memory_kills() > kills:
            raise MemoryExhaustedError(
                "a worker process of the prepare stage was killed because the container reached its memory limit",
                advice=out_of_memory_advice(Stage.PREPARE),
            ) from error
        raise TrainerError(
            "a worker process of the prepare stage ended unexpectedly",
            advice="see the preceding lines in the log of the prepare stage; the stage is retried",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, blocks: Iterable[tuple[int, Block]], ahead: int
) -> Iterator[tuple[int, BlockResult]]:
    waiting: deque[tuple[int, Future[BlockResult]]] = deque()
    error: TrainerError | None = None
    remaining = enumerate(blocks)
    while error is None:
        try:
            number, (file, block) = next(remaining)
        except StopIteration:
            break
        except TrainerError as raised:
            error = raised
            break
        waiting.append((file, pool.submit(_process, block, number)))
        if len(waiting) > ahead:
            file, result = waiting.popleft()
            yield file, result.result()
    for file, result in waiting:
        yield file, result.result()
    if error is not None:
        raise error


_plan: BlockPlan


def _start(plan: BlockPlan, parent: int) -> None:
    """Initialize a worker. The kernel kills it when its parent process exits."""
    global _plan  # noqa: PLW0603 - the initializer of a pool has no other way to leave something for its tasks
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _plan = plan


def _process(block: Block, number: int) -> BlockResult:
    return process_block(_plan, block, number)
