"""Estimates the memory of a GPU, and of the host of its process, before anything is loaded. Pure.

The model state is that of `model.estimate`. With `offload`, gradients and optimizer, and with OptimizerAndParameters
also the parameters, are in host memory. Differences to a process on the CPU, with their sources:

- Activations by architecture, see `model.activations`. With gradient checkpointing, the inputs of all layers, and what
  one layer keeps and computes in its backward pass. The allocator reuses this memory for the logits, so the larger one
  of both counts; without checkpointing, both exist when the backward pass begins.
- 12 bytes for each logit in the backward pass: the log-softmax in 32 bit, its gradient, and that of the logits. The
  logits themselves are freed by then (measured, also with DeepSpeed's engine).
- Attention masks wherever rows of a micro-batch may differ in length, because sdpa then gets a mask.
- DeepSpeed's buffers as `train.ds_config` sets them. Stages 1 and 2: two buckets in the type of the gradients, because
  communication overlaps, and a 32-bit copy of one for the reduction. A gradient that is larger than a bucket is reduced
  as a whole. Stage 3: a 32-bit bucket and the result of its reduction, what it prefetches, and up to 1e9 gathered
  parameters (Transformers' documentation of DeepSpeed: stage3_max_live_parameters, 2 GB in 16 bit).
- The CUDA context with the kernels, 1,343 MiB (Transformers' documentation, "Model training anatomy", on a V100; newer
  versions of CUDA load kernels when they are used, and need less).
- NCCL's buffers of one communicator, 1.6 GB (NVIDIA/nccl issue 864; 1.06 GB on eight H100 in issue 1685).
- A tenth of what changes with each step, which the allocator of torch reserves and cannot use. Assumed, not measured.

Not part of it: memory that other programs use on the same GPU.
"""

from dataclasses import dataclass

from finetune_api.v1alpha1 import Dtype, Offload

from . import activations
from .estimate import (
    PROCESS_BYTES,
    UPLOADER_BYTES,
    TrainingShape,
    base_bytes,
    checkpointed_layers,
    dequantized_bytes,
    logits_bytes,
    mask_bytes,
    method_values,
    model_state,
    snapshot_bytes,
    value_bytes,
)
from .zero_buffers import ALL_REDUCE_ELEMENTS, GATHERED_ELEMENTS, bucket_elements, prefetch_elements

CONTEXT_BYTES = 1343 * 2**20
NCCL_BYTES = 1_600_000_000
UNUSED_SHARE = 0.1
"""Share of the working memory that the allocator reserves in addition."""

CUDA_HOST_BYTES = 2 * 2**30
"""Host memory of a process for the libraries of CUDA. Assumed, not measured."""

PINNED_FACTOR = 1.5
"""Offloaded state is page-locked, and torch rounds large allocations up; `additional_buffer_factor` of DeepSpeed's
`estimate_zero2_model_states_mem_needs`."""

GPU_ERRORS = (0.2, 0.1)
"""How much the estimate is too high and too low at most, as a share of the published measurements that it is compared
with in the tests."""


@dataclass(frozen=True)
class GpuMemory:
    """Estimated peak of one GPU, in bytes."""

    parameters: int
    """With those that stage 3 gathers."""
    gradients: int
    optimizer: int
    buffers: int
    """Of DeepSpeed's communication."""
    working: int
    """Activations and temporary tensors of a step."""
    context: int
    """CUDA and NCCL, outside of torch's allocator."""

    @property
    def state(self) -> int:
        """Parameters, gradients and optimizer."""
        return self.parameters + self.gradients + self.optimizer

    @property
    def allocated(self) -> int:
        """What `torch.cuda.max_memory_allocated` reports."""
        return self.state + self.buffers + self.working

    @property
    def unused(self) -> int:
        """What the allocator reserves in addition."""
        return int(UNUSED_SHARE * self.working)

    @property
    def total(self) -> int:
        """What the GPU needs."""
        return self.allocated + self.unused + self.context


def gpu_memory(shape: TrainingShape, zero_stage: int) -> GpuMemory:
    """Return the estimated peak memory of one GPU."""
    state = model_state(shape, zero_stage)
    gathered = _gathered_bytes(shape) if zero_stage >= 3 else 0
    is_offloaded = zero_stage >= 1 and shape.offload is not Offload.NONE
    parameters = 0 if zero_stage >= 3 and shape.offload is Offload.OPTIMIZER_AND_PARAMETERS else state.parameters
    step = 0 if is_offloaded else state.step + _flattened_bytes(shape, zero_stage)
    if zero_stage == 0 and shape.world > 1:
        step = max(step, 4 * min(shape.trained, ALL_REDUCE_ELEMENTS))
    return GpuMemory(
        parameters=parameters + gathered,
        gradients=0 if is_offloaded else state.gradients,
        optimizer=0 if is_offloaded else state.optimizer,
        buffers=_buffer_bytes(shape, zero_stage, is_offloaded=is_offloaded),
        working=max(activation_bytes(shape) + dequantized_bytes(shape), step),
        context=CONTEXT_BYTES + (NCCL_BYTES if shape.world > 1 else 0),
    )


def host_bytes(shape: TrainingShape, zero_stage: int) -> int:
    """Return the estimated peak of the host memory of one worker with GPUs.

    It is the larger one of two: below stage 3, every process loads the whole base model before it is moved to the GPU;
    later, each has its offloaded state and the buffer of its snapshot, and one of them exports the whole model.
    """
    processes = shape.processes_per_node
    fixed = processes * (PROCESS_BYTES + UPLOADER_BYTES + CUDA_HOST_BYTES)
    whole = base_bytes(shape.facts.parameters, shape.dtype, None, ())
    loading = 0 if zero_stage >= 3 else processes * whole
    return fixed + max(loading, processes * (offloaded_bytes(shape, zero_stage) + snapshot_bytes(shape)) + whole)


def offloaded_bytes(shape: TrainingShape, zero_stage: int) -> int:
    """Return the host memory of one process for what `offload` keeps there."""
    if zero_stage == 0 or shape.offload is Offload.NONE:
        return 0
    # The optimizer runs on the host, with the gradients of this process's share.
    moved = 16 * shape.trained // shape.world
    if shape.offload is Offload.OPTIMIZER_AND_PARAMETERS:
        moved += model_state(shape, 3).parameters
    return int(PINNED_FACTOR * moved)


def activation_bytes(shape: TrainingShape) -> int:
    """Return the peak of activations, logits and attention masks on a GPU."""
    facts, value, tokens = shape.facts, value_bytes(shape.dtype), shape.micro_batch * shape.length
    # All rows of a micro-batch have the same length only if there is one of them.
    has_masks = shape.is_packed or shape.micro_batch > 1
    layer = tokens * activations.saved_bytes(facts, value, has_mask=has_masks)
    backward = tokens * activations.backward_bytes(facts, value)
    logits = logits_bytes(shape)
    recomputed = layer if shape.gradient_checkpointing else 0
    inputs = checkpointed_layers(shape) * value * tokens * facts.hidden_size
    kept = (facts.layers - checkpointed_layers(shape)) * layer
    held = inputs + kept + max(recomputed + backward, logits)
    masks = mask_bytes(shape) if has_masks else 0
    return held + masks + value * method_values(shape, tokens) + shape.activations.flags


def _gathered_bytes(shape: TrainingShape) -> int:
    live = GATHERED_ELEMENTS if shape.gathered_elements is None else shape.gathered_elements
    parameters = shape.facts.parameters
    ahead = prefetch_elements(parameters, max((rows * columns for _, (rows, columns) in shape.facts.linear), default=0))
    gathered = max(min(parameters, live), 2 * shape.facts.largest_parameter) + ahead
    return value_bytes(shape.dtype) * min(parameters, gathered)


def _flattened_bytes(shape: TrainingShape, zero_stage: int) -> int:
    """At stages 1 and 2 in Float32, the gradients of a process are copied into one tensor for the optimizer."""
    is_copied = zero_stage in (1, 2) and shape.dtype is Dtype.FLOAT32
    return 4 * shape.trained // shape.world if is_copied else 0


def _buffer_bytes(shape: TrainingShape, zero_stage: int, *, is_offloaded: bool) -> int:
    if zero_stage == 0:
        return 0
    value = value_bytes(shape.dtype)
    bucket = bucket_elements(shape.facts.parameters) if shape.reduce_elements is None else shape.reduce_elements
    # Parameters of adapters are smaller than a bucket.
    largest = 0 if shape.trained <= shape.added else min(shape.trained, shape.facts.largest_parameter)
    copied = 4 if value < 4 else 0
    whole = (value + copied) * largest if largest > bucket else 0
    moved = value * largest if is_offloaded else 0
    if zero_stage >= 3:
        return 2 * 4 * bucket + whole + moved
    return 2 * value * bucket + copied * bucket + whole + moved
