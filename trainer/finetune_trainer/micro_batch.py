"""The micro-batch of a run whose spec has none: when it is measured, which sizes, and the record of the result.

Pure, and importable without torch. `train.probe` measures.
"""

import hashlib
import sys
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from finetune_api.rules import limiting_memory, limits_micro_batch, memory_fingerprint
from finetune_api.trainer_config import Exchanged, PreparedConfig
from finetune_api.v1alpha1 import Spec
from finetune_api.v1alpha1.quantities import gib

CLOSE = 0.75
"""Share of the memory from which on the estimate is checked by a measurement. The estimate of a GPU was up to 10 % too
low (docs/planning.md), and processes differ by libraries and allocator."""

CPU_SHARE, GPU_SHARE = 0.95, 0.9
"""Share of the memory that a measured training may use. The rest is for what is not measured: validation, sockets, and
with GPUs what torch reserves and cannot use. It is also how far a process on the CPU may grow before it is killed."""

_MAX_STEPS = 64
_MAX_TEXT = 512


class MeasuredStep(Exchanged):
    """An optimizer step that was measured."""

    micro_batch_size: Annotated[int, Field(ge=1)]
    peak_bytes: int
    """On the CPU, memory of the process without files. On a GPU, what torch has allocated."""
    seconds: float


class MeasuredMicroBatch(Exchanged):
    """`micro-batch-<settings>.json`: the result of a measurement. Of several workers, that of the smallest."""

    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Largest size that fits. Absent: it could not be measured."""
    usable_bytes: int = 0
    """What the process may use."""
    limit_bytes: int = 0
    """Memory of a worker, with GPUs of a GPU."""
    steps: Annotated[tuple[MeasuredStep, ...], Field(max_length=_MAX_STEPS)] = ()
    """Those that fit, by size."""
    too_large: int | None = None
    """A larger size, which was tried and did not fit, or does not by the peaks of the last two. Absent: there is
    none."""
    seconds: float = 0.0
    """Duration of the measurement, including the load of the model."""
    problem: Annotated[str, Field(max_length=_MAX_TEXT)] = ""
    """Why it could not be measured, or why the training may not fit."""

    @property
    def sentence(self) -> str:
        """How the size was chosen, for log and status."""
        if self.micro_batch_size is None:
            return f"the micro-batch was not measured: {self.problem}"
        limit = "" if self.too_large is None else f", {self.too_large} does not fit"
        used = f", {gib(self.steps[-1].peak_bytes)} of {gib(self.usable_bytes)} usable" if self.steps else ""
        return f"micro-batch {self.micro_batch_size}: measured in {self.seconds:.0f} s{used}{limit}"

    @property
    def warning(self) -> str:
        """What the user should know; empty if the measurement has succeeded."""
        if self.micro_batch_size is None:
            return f"{self.sentence}; set spec.training.microBatchSize to choose it"
        return self.problem


def settings_digest(spec: Spec) -> str:
    """Return a digest of the settings that a measurement is for. All attempts with the same ones use its result."""
    text = f"{limiting_memory(spec)}/{memory_fingerprint(spec)}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def is_lowered_by_operator(config: PreparedConfig) -> bool:
    """Whether a restart rule has lowered the micro-batch below the one that the prepare stage has found to fit."""
    limit, estimated = None if config.plan is None else config.plan.micro_batch_limit, estimated_limit(config)
    return limit is not None and (estimated is None or limit < estimated)


def estimated_limit(config: PreparedConfig) -> int | None:
    """Return the largest micro-batch that fits by the estimate of the prepare stage; None: any."""
    prepared = config.prepared
    return prepared.micro_batch_limit if limits_micro_batch(config.spec, prepared.micro_batch_memory) else None


def reason_to_measure(config: PreparedConfig, *, limit: int | None, is_known: bool) -> str:
    """Return why a measurement may change the micro-batch; empty if it hardly can.

    `limit` is the memory of a worker or GPU in bytes; `is_known`, whether the estimate knows the architecture. A
    measurement loads the model once more. Therefore it is made only if the estimate may be wrong about what fits.
    """
    estimated = config.prepared.memory_estimate_bytes
    if limit is None or not estimated or config.batch.global_size == config.world.size:
        return ""
    if estimated_limit(config) is not None:
        return "by the estimate, larger micro-batches do not fit"
    if not is_known:
        return "the estimate does not know the architecture"
    if config.prepared.memory_fingerprint != memory_fingerprint(config.spec):
        return "the estimate is for other settings"
    if estimated > CLOSE * limit:
        return f"the estimate of {gib(estimated)} is close to the memory of {gib(limit)}"
    return ""


def divisors(number: int, most: int) -> tuple[int, ...]:
    """Return the divisors of `number` up to `most`, ascending."""
    return tuple(size for size in range(1, min(number, most) + 1) if number % size == 0)


def predicted_bytes(steps: Sequence[MeasuredStep], size: int) -> int:
    """Return the peak of a larger micro-batch. Activations are proportional to the size, everything else constant."""
    last = steps[-1]
    if len(steps) == 1:
        return last.peak_bytes
    before = steps[-2]
    slope = (last.peak_bytes - before.peak_bytes) / (last.micro_batch_size - before.micro_batch_size)
    return last.peak_bytes + int(max(0.0, slope) * (size - last.micro_batch_size))


def next_size(sizes: Sequence[int], steps: Sequence[MeasuredStep], usable: int) -> int | None:
    """Return the size to measure next: twice the last one, or the largest smaller one that should fit; None: none.

    `sizes` are the possible ones, ascending. A size whose predicted peak does not fit is not tried, because a process
    that reaches the limit may end the whole container.
    """
    if not steps:
        return sizes[0]
    if steps[-1].peak_bytes > usable:
        return None
    last = steps[-1].micro_batch_size
    larger = [size for size in sizes if size > last]
    if not larger:
        return None
    doubled = next((size for size in larger if size >= 2 * last), larger[-1])
    fitting = [size for size in larger if size <= doubled and predicted_bytes(steps, size) <= usable]
    return fitting[-1] if fitting else None


def result(
    sizes: Sequence[int], steps: Sequence[MeasuredStep], *, usable: int, limit: int, seconds: float
) -> MeasuredMicroBatch:
    """Return the result of the completed steps. What does not fit has no step, or one that uses too much memory."""
    fitting = tuple(step for step in steps if step.peak_bytes <= usable)
    size = fitting[-1].micro_batch_size if fitting else sizes[0]
    larger = next_size(sizes, fitting, sys.maxsize) if fitting else None
    made = {"usable_bytes": usable, "limit_bytes": limit, "steps": fitting, "seconds": round(seconds, 1)}
    if fitting:
        return MeasuredMicroBatch(micro_batch_size=size, too_large=larger, **made)
    return MeasuredMicroBatch(
        micro_batch_size=size,
        too_large=size,
        problem=f"a training step with micro-batch {size} did not fit {gib(usable)}, what a worker with {gib(limit)} "
        "has for its process; lower spec.data.maxLength, or raise the memory",
        **made,
    )


def smallest(results: Sequence[MeasuredMicroBatch | None]) -> MeasuredMicroBatch:
    """Return the result that holds for all workers: the smallest size. None: a process that has not measured.

    If one of them could not measure, none of them has.
    """
    found = [each for each in results if each is not None]
    unmeasured = next((each for each in found if each.micro_batch_size is None), None)
    return unmeasured or min(found, key=lambda each: each.micro_batch_size or 0)
