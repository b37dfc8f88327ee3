"""Process groups of real ranks: forked from this process, which has imported the libraries once, connected by gloo."""

import gc
import importlib
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from finetune_trainer.deepspeed_imports import disable_shared_memory_kernel, import_muon
from process_support import free_port

RunWorld = Callable[..., list[Any]]
SECONDS = 600
PRELOAD = (
    "boto3",
    "torch",
    "transformers.models.llama.modeling_llama",
    "peft",
    "deepspeed",
)


def _rank(
    conn: Connection,
    body: Callable[..., Any],
    rank: int,
    size: int,
    port: int,
    first: Callable[[], None] | None,
    uploaders: int,
    arguments: dict[str, Any],
) -> None:
    import deepspeed
    import torch

    from finetune_trainer.checkpoint.upload.standby import fork_uploader

    gc.freeze()  # exclude the parent's heap: DeepSpeed runs the garbage collector for every engine
    warnings.simplefilter("default")  # do not fail on third-party warnings of a rank
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if first is not None:
        first()
    for _ in range(uploaders):
        fork_uploader()
    torch.set_num_threads(1)
    try:
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
        conn.send((body(rank=rank, size=size, **arguments), None))
    except BaseException:  # noqa: BLE001 - reported and raised by the parent
        conn.send((None, traceback.format_exc()))


def _run(
    body: Callable[..., Any],
    size: int,
    /,
    *,
    first: Callable[[], None] | None = None,
    uploaders: int = 1,
    **arguments: Any,
) -> list[Any]:
    """Run `body(rank=, size=, **arguments)` on `size` new ranks; returns their results, by rank.

    Each rank calls `first` and then forks its uploaders: as many as it makes managers that save.
    """
    port = free_port()
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe(duplex=False) for _ in range(size)]
    processes = [
        fork.Process(target=_rank, args=(pipes[rank][1], body, rank, size, port, first, uploaders, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    results, failures = [], []
    try:
        for rank, (receiver, _) in enumerate(pipes):
            answered = receiver.poll(5 if failures else SECONDS)
            result, failure = receiver.recv() if answered else (None, "no answer")
            results.append(result)
            failures += [f"rank {rank}: {failure}"] if failure else []
    finally:
        for process in processes:
            if failures:
                process.kill()
            process.join()
    assert not failures, "\n".join(failures)
    return results


@pytest.fixture(scope="session")
def run_world() -> Iterator[RunWorld]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from third-party modules during import
            for name in PRELOAD:
                importlib.import_module(name)
            import_muon()  # as the first engine does
            disable_shared_memory_kernel()  # it would be compiled at every start
        yield _run
