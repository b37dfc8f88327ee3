"""Chooses a ZeRO stage, a micro-batch and, with GPUs, offloading, so that a training fits its memory. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd

from finetune_api.rules import lowest_zero_stage
from finetune_api.support import OFFLOAD_ZERO_STAGES
from finetune_api.v1alpha1 import Offload
from finetune_api.v1alpha1.quantities import gib

from ..errors import BadConfigError
from ..tasks.base import LOSS_CHUNK_BYTES
from .cpu_estimate import process_bytes
from .estimate import TrainingShape
from .gpu_estimate import gpu_memory, host_bytes

_MAX_NODES = 512
_GIB = 2**30
_GPU_FIELD, _WORKER_FIELD = "spec.workers.gpuMemory", "spec.workers.resources.limits.memory"


@dataclass(frozen=True)
class MemoryChoice:
    """The ZeRO stage, micro-batch size and offloading of a run, the reason for them, and the estimated memory."""

    stage: int
    process_bytes: int
    """Memory of one training process; with GPUs, that of its GPU."""
    reason: str
    micro_batch_limit: int | None = None
    """The largest micro-batch that fits, if that of the shape does not. None: it fits."""
    offload: Offload = Offload.NONE
    host_bytes: int = 0
    """Host memory of one worker with GPUs. 0 without GPUs."""


@dataclass(frozen=True)
class _Limits:
    """Memory in bytes that a training must fit; None: no limit."""

    memory: int | None
    """Of one worker; with GPUs, of one GPU."""
    host: int | None = None
    """Of one worker with GPUs."""


def choose_memory_settings(
    shape: TrainingShape,
    *,
    requested: int | None,
    limit: int | None,
    host_limit: int | None = None,
    offload: Offload | None = Offload.NONE,
    may_reduce: bool = False,
) -> MemoryChoice:
    """Return the requested stage, else the lowest that fits `limit` in bytes, else 2 if there is no limit.

    `limit` is the memory of a worker or, with GPUs, of one GPU; `host_limit` is then that of a worker. The stage is
    raised to the lowest one that supports the data type and offload. If no stage fits, and with `may_reduce`, the
    micro-batch is the largest divisor of that of the shape that fits. If none fits either, and `offload` is None, state
    is offloaded. Raises BadConfigError if the training does not fit, with the estimate and the closest settings that
    fit.
    """
    limits = _Limits(limit, host_limit)
    first = replace(shape, offload=offload or Offload.NONE)
    options = [(first, _candidates(first, requested, limit))]
    if offload is None and shape.on_gpus:
        others = [replace(shape, offload=each) for each in Offload if each is not Offload.NONE]
        options += [(one, stages) for one in others if (stages := _supported(one, requested))]
    if may_reduce:
        # Smaller micro-batches are tried before more is offloaded.
        options = [(each, stages) for one, stages in options for each in [one, *_with_smaller_micro_batches(one)]]
    possible = [(one, stage) for one, stages in options for stage in stages]
    fitting = next(((one, stage) for one, stage in possible if _fits(one, stage, limits)), None)
    if fitting is None:
        raise _refusal(*_closest(possible, limits), limits)
    chosen, stage = fitting
    return MemoryChoice(
        stage,
        gpu_memory(chosen, stage).total if shape.on_gpus else process_bytes(chosen, stage),
        "; ".join(_reasons(shape, chosen, stage, requested, offload, limits)),
        None if chosen.micro_batch == shape.micro_batch else chosen.micro_batch,
        chosen.offload,
        host_bytes(chosen, stage) if shape.on_gpus else 0,
    )


def _closest(possible: list[tuple[TrainingShape, int]], limits: _Limits) -> tuple[TrainingShape, int]:
    """Return what only the host is too small for, otherwise what needs the least memory."""
    assert limits.memory is not None, "without a limit, everything fits"
    fitting = [each for each in possible if _needed(*each) <= limits.memory]
    if fitting:
        return min(fitting, key=lambda each: host_bytes(*each))
    return min(possible, key=lambda each: _needed(*each))


def _candidates(shape: TrainingShape, requested: int | None, limit: int | None) -> list[int]:
    """Return the stages that may be used. Raises BadConfigError if none supports the data type and offload."""
    lowest = lowest_zero_stage(shape.offload, shape.dtype)
    usable = [stage for stage in shape.zero_stages if stage >= lowest]
    if not usable:
        raise BadConfigError(
            f"spec.method.{shape.method} is trained with ZeRO stage {' or '.join(map(str, shape.zero_stages))}, but "
            f"{shape.dtype} with spec.deepspeed.offload {shape.offload} needs stage {lowest} or higher",
            advice="set spec.model.dtype: Float32 and spec.deepspeed.offload: None, or use another method",
        )
    if requested is not None:
        return [_at_least(max(requested, lowest), usable)]
    return [_at_least(2, usable)] if limit is None else usable


def _supported(shape: TrainingShape, requested: int | None) -> list[int]:
    """Return the stages with which `offload` of the shape may be chosen."""
    lowest = lowest_zero_stage(shape.offload, shape.dtype)
    raised = None if requested is None else max(requested, lowest_zero_stage(Offload.NONE, shape.dtype))
    return [stage for stage in shape.zero_stages if stage >= lowest and raised in (None, stage)]


def _at_least(stage: int, usable: list[int]) -> int:
    """Return the lowest usable stage that is at least `stage`, else the highest usable one."""
    return next((other for other in usable if other >= stage), usable[-1])


def _reasons(
    shape: TrainingShape,
    chosen: TrainingShape,
    stage: int,
    requested: int | None,
    offload: Offload | None,
    limits: _Limits,
) -> Iterator[str]:
    limit = "the memory of a GPU" if shape.on_gpus else "the memory limit"
    if chosen.micro_batch != shape.micro_batch:
        yield f"micro-batch {chosen.micro_batch} instead of {shape.micro_batch}: the largest that fits {limit}"
    if offload is None and chosen.offload is not Offload.NONE:
        yield (
            f"offload {chosen.offload}: nothing else fits the memory of a GPU; a worker needs about "
            f"{gib(host_bytes(chosen, stage))} of host memory"
        )
    lowest = lowest_zero_stage(chosen.offload, shape.dtype)
    is_default = False
    if requested is not None and requested < lowest:
        yield f"ZeRO stage {requested} does not accumulate gradients of {shape.dtype} in 32 bit; stage {lowest} is used"
    elif requested is None and limits.memory is not None:
        needed = gpu_memory(chosen, stage).total if shape.on_gpus else process_bytes(chosen, stage)
        yield f"ZeRO stage {stage}: the lowest that fits {limit} ({gib(needed)} estimated of {gib(limits.memory)})"
    elif requested is None and chosen.offload is Offload.OPTIMIZER_AND_PARAMETERS:
        yield f"ZeRO stage {stage}: spec.deepspeed.offload {chosen.offload} needs it"
    elif requested is None and not shape.on_gpus:
        yield f"ZeRO stage {stage}: the default, because {_WORKER_FIELD} is absent"
    else:
        is_default = requested is None
    if shape.on_gpus and limits.memory is None:
        absent = f"because {_GPU_FIELD} is absent"
        estimated = f"estimated: {gib(gpu_memory(chosen, stage).total)} per GPU, not checked"
        yield f"ZeRO stage {stage}: the default, {absent}; {estimated}" if is_default else f"{estimated}, {absent}"
        yield "set it to the memory of one GPU, such as 80Gi"
    if not _fits_host(chosen, stage, limits):
        needed = host_bytes(chosen, stage)
        yield (
            f"a worker needs about {gib(needed)} of host memory, more than {_WORKER_FIELD} allows; raise it to "
            f"{_whole_gib(needed)}Gi"
        )


def _needed(shape: TrainingShape, stage: int) -> int:
    """Return the memory that `_Limits.memory` limits."""
    return gpu_memory(shape, stage).total if shape.on_gpus else shape.processes_per_node * process_bytes(shape, stage)


def _fits(shape: TrainingShape, stage: int, limits: _Limits) -> bool:
    if limits.memory is None:
        return True
    return _needed(shape, stage) <= limits.memory and _fits_host(shape, stage, limits)


def _fits_host(shape: TrainingShape, stage: int, limits: _Limits) -> bool:
    return not shape.on_gpus or limits.host is None or host_bytes(shape, stage) <= limits.host


def _refusal(shape: TrainingShape, stage: int, limits: _Limits) -> BadConfigError:
    assert limits.memory is not None, "without a limit, everything fits"
    is_host = _needed(shape, stage) <= limits.memory
    limit = limits.memory
    if is_host:
        assert limits.host is not None
        limit = limits.host
    needed = host_bytes(shape, stage) if is_host else _needed(shape, stage)
    whole = _whole_gib(needed)
    ways = _settings_that_fit(shape, stage, limits)
    if shape.on_gpus and not is_host:
        ways.append(f"use GPUs of at least {whole}Gi, and set {_GPU_FIELD} to their memory")
        place, field = "each GPU", _GPU_FIELD
    else:
        ways.append(f"raise {_WORKER_FIELD} to {whole}Gi")
        place, field = "the host of each worker" if is_host else "each worker", _WORKER_FIELD
    offload = "" if shape.offload is Offload.NONE else f"offload {shape.offload}, "
    return BadConfigError(
        f"{field} must be at least {whole}Gi for ZeRO stage {stage}, {offload}{shape.dtype}, micro-batch "
        f"{shape.micro_batch}, {shape.length} tokens and world size {shape.world}, not {_quantity(limit)}; training "
        f"needs about {gib(needed)} on {place}",
        advice="; or ".join(ways),
    )


def _settings_that_fit(shape: TrainingShape, stage: int, limits: _Limits) -> list[str]:
    """Return at most three changes of a single setting with which the training fits, the least intrusive first."""
    ways = []
    higher = next((other for other in shape.zero_stages if other > stage and _fits(shape, other, limits)), None)
    if higher is not None:
        ways.append(f"set spec.deepspeed.zeroStage: {higher}")
    can_checkpoint = shape.facts.gradient_checkpointing and not shape.gradient_checkpointing
    if can_checkpoint and _fits(replace(shape, gradient_checkpointing=True), stage, limits):
        ways.append("set spec.training.gradientCheckpointing: true")
    if shape.gradient_checkpointing and shape.checkpoint_every > 1:
        rarer = range(shape.checkpoint_every - 1, 0, -1)
        every = next((one for one in rarer if _fits(replace(shape, checkpoint_every=one), stage, limits)), None)
        if every is not None:
            ways.append(f"set spec.training.gradientCheckpointingEveryNLayers: {every}")
    smaller = next((one for one in _with_smaller_micro_batches(shape) if _fits(one, stage, limits)), None)
    if smaller is not None:
        ways.append(f"set spec.training.microBatchSize: {smaller.micro_batch}")
    if shape.on_gpus:
        ways += _gpu_settings_that_fit(shape, stage, limits)
    for name, (trained, added) in shape.lighter_methods.items():
        if _fits(replace(shape, trained=trained, added=added), stage, limits):
            ways.append(f"set spec.method.{name} instead of {shape.method}")
            break
    nodes = _nodes_that_fit(shape, max(stage, 1), limits)
    if nodes is not None:
        field = "minNodes" if shape.is_fewest else "nodes"
        ways.append(f"set spec.workers.{field}: {nodes}" + ("" if stage else " with spec.deepspeed.zeroStage: 1"))
    return ways[:3]


def _gpu_settings_that_fit(shape: TrainingShape, stage: int, limits: _Limits) -> Iterator[str]:
    if shape.has_token_logits and shape.logits_limit is None:
        chunked = replace(shape, logits_limit=LOSS_CHUNK_BYTES)
        lowest = lowest_zero_stage(shape.offload, shape.dtype)
        usable = (one for one in shape.zero_stages if lowest <= one < 3 and _fits(chunked, one, limits))
        if (below := next(usable, None)) is not None:
            yield f"set spec.training.chunkedLoss: true{_with_stage(below, stage)}"
    order = list(Offload)
    for offload in order[order.index(shape.offload) + 1 :]:
        raised = next((one for one in shape.zero_stages if one >= stage and one in OFFLOAD_ZERO_STAGES[offload]), None)
        if raised is not None and _fits(replace(shape, offload=offload), raised, limits):
            yield f"set spec.deepspeed.offload: {offload}{_with_stage(raised, stage)}"
            return


def _with_stage(stage: int, before: int) -> str:
    return "" if stage == before else f" with spec.deepspeed.zeroStage: {stage}"


def _with_smaller_micro_batches(shape: TrainingShape) -> list[TrainingShape]:
    """The shape with each divisor of its micro-batch, largest first."""
    divisors = [size for size in range(shape.micro_batch - 1, 0, -1) if shape.micro_batch % size == 0]
    return [replace(shape, micro_batch=size) for size in divisors]


def _nodes_that_fit(shape: TrainingShape, stage: int, limits: _Limits) -> int | None:
    """Return the next higher number of nodes that divides the global batch and with which the training fits."""
    for nodes in range(shape.nodes + 1, _MAX_NODES + 1):
        share, rest = divmod(shape.global_batch, nodes * shape.processes_per_node)
        if not rest and _fits(replace(shape, nodes=nodes, micro_batch=gcd(share, shape.micro_batch)), stage, limits):
            return nodes
    return None


def _whole_gib(size: int) -> int:
    return -(-size // _GIB)


def _quantity(size: int) -> str:
    return f"{size // _GIB}Gi" if size % _GIB == 0 else f"{size >> 20}Mi"
