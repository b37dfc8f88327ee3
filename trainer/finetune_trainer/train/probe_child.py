"""The process that measures micro-batches: optimizer steps with the longest rows, in a world of one real process.

The other processes are those of torch's fake process group, whose collectives return at once. ZeRO divides the state of
the model by their number, so that the peak is that of one process of the real world. The values are wrong, the sizes of
all tensors are right.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from finetune_api.constants import Env
from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1 import Dtype

from ..deepspeed_imports import disable_shared_memory_kernel
from ..errors import TrainerError, is_out_of_memory
from ..logs import configure_logging
from ..memory import peak_own_bytes, prefer_as_victim, reset_peak
from ..micro_batch import MeasuredStep
from ..progress import ProgressReporter
from ..runtime import RuntimeEnv
from ..stop import StopFlag
from ..store.client import ObjectStore
from .engine import partitioned_models
from .loop import Batch, Parts, TrainingLoop
from .probe import ProbeRequest, next_of, steps_file
from .rows import PADDING_ROW, PackedBatches
from .stage import trial_loop
from .world import allow_float16_on_cpu


def run_probe(path: Path) -> int:
    """Measure the sizes of the request in `path`, and append a line to a file beside it for each that was measured."""
    prefer_as_victim()
    configure_logging(rank=0)
    request = ProbeRequest.model_validate_json(path.read_bytes())
    try:
        _start_fake_group(request)
        _measure(request, path.parent)
    except TrainerError as error:
        print(error, flush=True)
        return error.exit_code
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return ExitCode.OUT_OF_MEMORY
    return ExitCode.DONE


def _start_fake_group(request: ProbeRequest) -> None:
    import deepspeed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    runtime = RuntimeEnv.from_environ(os.environ)
    if request.config.world.gpus:
        torch.cuda.set_device(runtime.local_rank)
    else:
        os.environ[Env.DS_ACCELERATOR] = "cpu"
    disable_shared_memory_kernel()
    dist.init_process_group("fake", rank=0, world_size=request.world, store=FakeStore())
    deepspeed.init_distributed(dist_backend="fake", verbose=False)
    if not request.config.world.gpus and request.config.prepared.dtype is Dtype.FLOAT16:
        allow_float16_on_cpu()


def _measure(request: ProbeRequest, folder: Path) -> None:
    config, runtime = request.config, RuntimeEnv.from_environ(os.environ)
    report = ProgressReporter(None, stage=config.stage, attempt=config.attempt)
    steps: list[MeasuredStep] = []
    with partitioned_models(config), steps_file(folder).open("a") as output:
        store = ObjectStore.connect(config.storage)
        loop = trial_loop(config, store, runtime, request.base, report, StopFlag())
        while (size := next_of(request, steps)) is not None:
            accumulation = config.batch.global_size // request.world // size
            # With a second micro-batch, the gradients of the first exist beside its activations.
            batches = [longest_rows(loop.parts, size)] * min(2, accumulation)
            if not steps:
                loop.trial_step(batches)  # at stage 0, the state of the optimizer exists only after a step
            steps.append(_measured_step(loop, batches, size))
            output.write(f"{steps[-1].model_dump_json()}\n")
            output.flush()


def _measured_step(loop: TrainingLoop, batches: list[Batch], size: int) -> MeasuredStep:
    on_gpu = loop.parts.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    reset_peak()
    started = time.monotonic()
    loop.trial_step(batches)
    if on_gpu:
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_own_bytes(os.getpid())
    return MeasuredStep(micro_batch_size=size, peak_bytes=peak, seconds=time.monotonic() - started)


def longest_rows(parts: Parts, count: int) -> Batch:
    """Return a micro-batch of the longest examples, or of the fullest packs, of the first epoch."""
    lengths = np.asarray(parts.batches.lengths)
    if isinstance(parts.batches, PackedBatches):
        ranks = range(parts.config.world.size)
        packs = [pack for rank in ranks for micro in parts.batches.micro_batches(0, rank=rank) for pack in micro]
        sizes = [sum(int(lengths[row]) for row in pack if row != PADDING_ROW) for pack in packs]
    else:
        packs, sizes = range(len(lengths)), lengths  # type: ignore[assignment]
    order = np.argsort(sizes, kind="stable")[::-1]
    rows: Any = parts.rows.in_epoch(0)
    return parts.collator([rows[packs[int(order[place % len(order)])]] for place in range(count)])
