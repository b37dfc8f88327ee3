"""Terms of the memory of a training that hold on every device, before anything is loaded. Pure.

`model.cpu_estimate` and `model.gpu_estimate` have the terms of a CPU and of a GPU and its host, and
`model.memory_choice` chooses settings that fit.

Model state is counted as in the ZeRO paper (Rajbhandari et al. 2019, arXiv 1910.02054, section 3 and figure 1): with P
parameters, T of them trained, N processes and b bytes per value, parameters take bP, gradients 4T, and the optimizer
12T (fp32 copy, momentum, variance; DeepSpeed keeps the copy for Float32 too, except at stage 0, where it is 8T). Stage
1 divides the optimizer by N, stage 2 also the gradients, stage 3 also the parameters.

A language model has its logits, their gradient and the softmax in fp32, and the modules of some methods add values of
their own.

RAdam, which torch does not fuse, allocates temporary tensors of 20 bytes for each element of the tensor that it steps
(measured from its sixth step on).

A quantized matrix takes the bytes of its values and scales, and is dequantized for each product, one at a time. Merging
the adapter loads the whole base model in the type of the job, beside the quantized one.

At any stage, a save copies 12T/N bytes into a buffer, which is kept; the uploader process stores them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from finetune_api.support import ZERO_STAGES
from finetune_api.v1alpha1 import Dtype, Offload, OptimizerName, Quantization

from ..methods.counts import ActivationCounts
from .inspect import ModelFacts

PROCESS_BYTES = 12 * 2**30 // 10
"""Of a process with a GPU. Python with torch, transformers, DeepSpeed and the Trainer uses 0.85 GiB. Communication
buffers, the data loader and temporary tensors of a step use the rest."""

UPLOADER_BYTES = 64 * 2**20
"""Of the process that stores the snapshots of a process with a GPU: Python with boto3, numpy and pydantic, 54 MiB
measured."""

STEP_BYTES: dict[OptimizerName, int] = {OptimizerName.ADAMW: 0, OptimizerName.RADAM: 20}
"""Temporary bytes for each element of the tensor that the optimizer steps; AdamW is fused."""

STATE_BYTES = 12
"""In a checkpoint, for each trained parameter: its 32-bit value and two moments."""

NF4_BLOCK, _NESTED_BLOCK = 64, 256
"""Weights that share a scale in NF4, and scales that share one."""
_NF4_TABLES = 1024 + 64
"""The values that 8 and 4 bits stand for, which each NF4 matrix has in 32 bit."""


@dataclass(frozen=True)
class TrainingShape:
    """Quantities that determine the memory of a training process."""

    facts: ModelFacts
    has_token_logits: bool
    """Whether the model computes logits over the vocabulary for every token."""
    dtype: Dtype
    method: str
    """Name of the fine-tuning method."""
    trained: int
    """Number of trained parameters."""
    added: int
    """Number of values that the method adds to those of the base model."""
    nodes: int
    processes_per_node: int
    micro_batch: int
    """Rows per process and forward pass."""
    global_batch: int
    """Rows per optimizer step, over all processes."""
    length: int
    """Tokens per row: of the longest example, or of a pack."""
    gradient_checkpointing: bool
    checkpoint_every: int = 1
    """With gradient checkpointing, every so many layers one is recomputed, from the first on."""
    is_packed: bool = False
    """Whether a row is a pack. All rows then have `length` tokens, and their attention needs a mask."""
    zero_stages: tuple[int, ...] = ZERO_STAGES
    """ZeRO stages that the method supports."""
    lighter_methods: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Other methods for this task that train fewer parameters: `trained` and `added`, with their default settings."""
    optimizer: OptimizerName = OptimizerName.ADAMW
    activations: ActivationCounts = field(default_factory=ActivationCounts)
    """What the method adds to the activations of the base model."""
    logits_limit: int | None = None
    """Maximum number of bytes of logits that exist at a time. None: all of them do."""
    quantization: Quantization | None = None
    matrices: tuple[tuple[int, int], ...] = ()
    """Outputs and inputs of the linear layers that are quantized."""
    is_merged: bool = False
    """Whether the adapter is merged into the base model after the training."""
    is_fewest: bool = False
    """`nodes` is spec.workers.minNodes, the smallest number of nodes that the training may run on."""
    on_gpus: bool = False
    """Whether each process has a GPU."""
    offload: Offload = Offload.NONE
    """State that is kept in host memory; without GPUs, it needs more memory there."""
    reduce_elements: int | None = None
    """Elements of a bucket of gradients, if spec.deepspeed.config sets them."""
    gathered_elements: int | None = None
    """Elements that stage 3 keeps gathered, if spec.deepspeed.config sets them."""

    @property
    def world(self) -> int:
        """Number of training processes."""
        return self.nodes * self.processes_per_node


def snapshot_bytes(shape: TrainingShape) -> int:
    """Return the size of a process's save buffer in bytes: its share of fp32 parameters and moments."""
    return STATE_BYTES * shape.trained // shape.world


def value_bytes(dtype: Dtype) -> int:
    """Return the bytes of one value."""
    return 4 if dtype is Dtype.FLOAT32 else 2


def base_bytes(
    parameters: int, dtype: Dtype, quantization: Quantization | None, matrices: Collection[tuple[int, int]]
) -> int:
    """Return the bytes of a base model's weights. `matrices` are the outputs and inputs of its quantized layers."""
    value = value_bytes(dtype)
    if quantization is None:
        return value * parameters
    return value * (parameters - _weights(matrices)) + sum(_matrix_bytes(quantization, *shape) for shape in matrices)


def _weights(matrices: Collection[tuple[int, int]]) -> int:
    return sum(outputs * inputs for outputs, inputs in matrices)


def _matrix_bytes(quantization: Quantization, outputs: int, inputs: int) -> int:
    weights = outputs * inputs
    if quantization is Quantization.INT8:
        return weights + 4 * outputs
    blocks = -(-weights // NF4_BLOCK)
    return -(-weights // 2) + blocks + 4 * -(-blocks // _NESTED_BLOCK) + _NF4_TABLES


def quantization_note(
    quantization: Quantization | None, *, dtype: Dtype, parameters: int, quantized: int, quantized_bytes: int
) -> str:
    """Describe the quantization of a base model of `quantized_bytes`; empty if there is none."""
    if quantization is None:
        return ""
    before = base_bytes(parameters, dtype, None, ())
    return (
        f"{quantized:,} of {parameters:,} parameters of the base model are quantized to {quantization}: its weights "
        f"take {_mib(quantized_bytes)} instead of {_mib(before)}"
    )


class ModelState(NamedTuple):
    """Bytes of the model state of one process, without offloading."""

    parameters: int
    gradients: int
    optimizer: int
    """32-bit copy of the parameters, and their moments."""
    step: int
    """Temporary tensors of an optimizer step."""
    gathered: int
    """Parameters that stage 3 gathers."""


def model_state(shape: TrainingShape, zero_stage: int) -> ModelState:
    """Return the model state of one process at a ZeRO stage."""
    value = value_bytes(shape.dtype)
    base = base_bytes(shape.facts.parameters, shape.dtype, shape.quantization, shape.matrices)
    # Gradients are accumulated in 32 bit, regardless of the type of the backward pass.
    parameters, gradients = base + value * shape.added, 4 * shape.trained
    optimizer = (12 if zero_stage else 8) * shape.trained
    # A process steps its share as one tensor, at stage 0 one parameter after the other.
    stepped = min(shape.trained, shape.facts.largest_parameter)
    gathered = 0
    if zero_stage >= 1:
        optimizer //= shape.world
        stepped = shape.trained // shape.world
    if zero_stage >= 2:
        gradients //= shape.world
    if zero_stage >= 3:
        parameters //= shape.world
        gathered = 2 * value * shape.facts.largest_parameter
    return ModelState(parameters, gradients, optimizer, STEP_BYTES[shape.optimizer] * stepped, gathered)


def checkpointed_layers(shape: TrainingShape) -> int:
    """Return the number of layers that keep only their input, and compute their activations again."""
    return -(-shape.facts.layers // shape.checkpoint_every) if shape.gradient_checkpointing else 0


def kept_layers(shape: TrainingShape) -> int:
    """Return the largest number of layers whose activations exist at a time: those that keep them until the backward
    pass, and the one that is recomputed."""
    return shape.facts.layers - checkpointed_layers(shape) + (1 if shape.gradient_checkpointing else 0)


def logits_bytes(shape: TrainingShape) -> int:
    """Return the bytes of three 32-bit tensors of logits, which exist at a time in the backward pass of the loss."""
    if not shape.has_token_logits:
        return 0
    logits = 12 * shape.micro_batch * shape.length * shape.facts.vocabulary
    return logits if shape.logits_limit is None else min(logits, 3 * shape.logits_limit)


def dequantized_bytes(shape: TrainingShape) -> int:
    """Return the bytes of the largest matrix in the type of the job.

    bitsandbytes computes that of Int8 in 32 bit first.
    """
    if shape.quantization is None:
        return 0
    value = value_bytes(shape.dtype) + (4 if shape.quantization is Quantization.INT8 else 0)
    return value * max((outputs * inputs for outputs, inputs in shape.matrices), default=0)


def merging_bytes(shape: TrainingShape) -> int:
    """Return the bytes of the whole base model in the type of the job."""
    is_copied = shape.quantization is not None and shape.is_merged
    return value_bytes(shape.dtype) * shape.facts.parameters if is_copied else 0


def method_values(shape: TrainingShape, tokens: int) -> int:
    """Return the number of values that the method adds to the activations of so many tokens."""
    if not shape.gradient_checkpointing:
        return tokens * shape.activations.kept + shape.activations.temporary
    of_layer = shape.activations.kept // max(1, shape.facts.layers)
    return tokens * of_layer * kept_layers(shape) + shape.activations.temporary


def mask_bytes(shape: TrainingShape) -> int:
    """Return the bytes of attention masks, for packs or rows of several lengths.

    A mask has a byte for each pair of tokens. sdpa converts it to numbers, and each layer keeps them for the backward
    pass.
    """
    copies = kept_layers(shape)
    return shape.micro_batch * shape.length**2 * (1 + copies * value_bytes(shape.dtype))


def _mib(amount: int) -> str:
    return f"{amount / 2**20:,.1f} MiB"
