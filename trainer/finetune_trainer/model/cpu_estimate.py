"""Estimates the memory of a training process on the CPU before anything is loaded. Pure.

It is anonymous and shared memory, memory of the kernel, and the weights: those that an adapter method freezes are pages
of their file, which the kernel could reclaim, but every step reads them. Pages of libraries are not counted.

Model state is that of `estimate.model_state`. The rest is counted from the source of DeepSpeed 0.19:

- stage 0 flattens all gradients to reduce them (`engine.allreduce_bucket`), also with one process;
- stages 1 and 2 flatten a bucket of gradients, then those of this process (`allreduce_bucket` and `step` of
  `stage_1_and_2.py`). 16-bit gradients exist beside their 32-bit sums;
- stage 3 keeps a flat buffer of its gradients and a bucket (`stage3.py`), flattens the gradients again, and keeps up to
  a billion parameters gathered until the end of the backward pass;
- with offloading, stages 1 and 2 keep 32-bit gradients, a copy of the weights of this process and two buffers for the
  largest parameter all the time, because the host is the same machine.

Activations are those of `activations.saved_bytes`. sdpa has no kernel with dropout for the CPU: it computes the scores
and saves three matrices of them in 32 bit for each head (what torch saves for BERT, DistilBERT and GPT-2, in Float32
and BFloat16); two more exist in the backward pass.

`benchmarks/plan.py` compares the estimate with trainings in control groups; docs/benchmarks.md has the errors.
"""

from typing import NamedTuple

from finetune_api.v1alpha1 import Offload

from . import activations
from .estimate import (
    TrainingShape,
    checkpointed_layers,
    dequantized_bytes,
    kept_layers,
    logits_bytes,
    mask_bytes,
    merging_bytes,
    method_values,
    model_state,
    snapshot_bytes,
    value_bytes,
)
from .zero_buffers import ALL_REDUCE_ELEMENTS, GATHERED_ELEMENTS, bucket_elements

LIBRARIES_BYTES = 640 * 2**20
"""Python with torch, transformers, DeepSpeed and PEFT after the imports (500 MiB), the supervisor, the process that
stores snapshots, what the libraries allocate in the first step, and the kernel's page tables: measured with models of 1
to 20 million parameters."""

HEAP_FACTOR = 1.6
"""Memory that activations take in the heap, as a multiple of their size. Tensors of less than 32 MiB are allocated
there, and holes between those that are kept are not filled by larger ones. Measured: 1.3 to 1.9, in trainings without
gradient checkpointing."""

MARGIN = 1.1
"""What a training demands, as a multiple of the estimate. See the errors in docs/benchmarks.md."""

LOWEST = 0.9
"""Lowest peak as a multiple of the estimate."""


class ProcessMemory(NamedTuple):
    """Bytes of one training process, by use. They are needed at the same time: most freed memory stays in the heap."""

    libraries: int
    state: int
    """Weights, optimizer state, and gradients and buffers that are never freed."""
    snapshot: int
    """Buffer of a save."""
    activations: int
    """With logits, masks and what a method adds."""
    step: int
    """Gradients, their flat copies, and temporary tensors of the optimizer."""
    export: int
    """Matrices of the merged model."""

    @property
    def total(self) -> int:
        """The peak."""
        return sum(self)


def process_bytes(shape: TrainingShape, zero_stage: int) -> int:
    """Return the memory that one training process demands, in bytes: the estimate and its margin."""
    return int(MARGIN * process_memory(shape, zero_stage).total)


def process_memory(shape: TrainingShape, zero_stage: int) -> ProcessMemory:
    """Return the estimated memory of one training process."""
    value, state = value_bytes(shape.dtype), model_state(shape, zero_stage)
    kept, step = _buffer_bytes(shape, zero_stage)
    working = _activation_bytes(shape) + logits_bytes(shape) + dequantized_bytes(shape)
    live = GATHERED_ELEMENTS if shape.gathered_elements is None else shape.gathered_elements
    gathered = max(value * min(shape.facts.parameters, live), state.gathered) if zero_stage == 3 else 0
    return ProcessMemory(
        libraries=LIBRARIES_BYTES,
        state=state.parameters + state.optimizer + gathered + kept,
        snapshot=snapshot_bytes(shape),
        activations=working,
        step=step + state.step,
        export=max(_merged_bytes(shape, zero_stage), merging_bytes(shape) - working),
    )


def _merged_bytes(shape: TrainingShape, zero_stage: int) -> int:
    """The matrices that the adapter changes, beside the base model; stage 3 loads the whole base model again.

    The frozen weights are pages of their file until then.
    """
    facts, value = shape.facts, value_bytes(shape.dtype)
    if not shape.is_merged or not shape.added:
        return 0
    changed = sum(outputs * inputs for _, (outputs, inputs) in facts.linear)
    if shape.method == "ia3":
        changed = facts.layers * facts.hidden_size * (2 * facts.key_value_size + activations.intermediate_size(facts))
    return value * (changed + (facts.parameters if zero_stage == 3 else 0))


def _buffer_bytes(shape: TrainingShape, zero_stage: int) -> tuple[int, int]:
    """Return what DeepSpeed keeps for gradients, and what a step needs in addition."""
    value, trained, share = value_bytes(shape.dtype), shape.trained, -(-shape.trained // shape.world)
    bucket = bucket_elements(shape.facts.parameters) if shape.reduce_elements is None else shape.reduce_elements
    reduced = 4 * min(trained, bucket)
    if zero_stage == 0:
        return 0, 4 * trained + 4 * min(trained, ALL_REDUCE_ELEMENTS)
    if zero_stage == 3:
        # The reduction of several processes copies the bucket twice.
        copies = 3 if shape.world > 1 else 1
        return 4 * share + reduced, max(4 * share, copies * reduced)
    if shape.offload is not Offload.NONE:
        accumulates = shape.global_batch > shape.world * shape.micro_batch
        largest = min(trained, shape.facts.largest_parameter)
        kept = (4 + value + 4 * accumulates) * share + 2 * value * largest
        return kept, value * trained + value * min(trained, bucket)
    is_partitioned = zero_stage == 2 and shape.world > 1
    gradients = min(4 * trained, 4 * share + reduced) if is_partitioned else 4 * trained
    in_16_bit = value * trained if value < 4 else 0
    return 0, gradients + in_16_bit + max(reduced, 4 * share)


def _activation_bytes(shape: TrainingShape) -> int:
    """Without logits, which are large enough to be returned to the system."""
    facts, value, tokens = shape.facts, value_bytes(shape.dtype), shape.micro_batch * shape.length
    scores = 4 * shape.micro_batch * shape.length**2 * facts.heads_with_dropout
    layer = tokens * activations.saved_bytes(facts, value, has_mask=shape.is_packed) + 3 * scores
    backward = tokens * activations.backward_bytes(facts, value) + 2 * scores
    held = checkpointed_layers(shape) * value * tokens * facts.hidden_size + kept_layers(shape) * layer + backward
    masks = mask_bytes(shape) if shape.is_packed else 0
    return int(HEAP_FACTOR * (held + value * method_values(shape, tokens))) + masks + shape.activations.flags
