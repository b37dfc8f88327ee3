"""`spec.training` and `spec.deepspeed`: length, learning rate, batch size and ZeRO."""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field

from .base import ApiModel
from .metrics import Metric
from .scope import Scope

DEFAULT_EPOCHS = 3
"""Passes over the training split if neither `epochs` nor `maxSteps` is given."""


class Schedule(StrEnum):
    """The learning rate after the warmup."""

    LINEAR = "Linear"
    COSINE = "Cosine"
    CONSTANT = "Constant"
    POLYNOMIAL = "Polynomial"
    INVERSE_SQRT = "InverseSqrt"
    COSINE_WITH_RESTARTS = "CosineWithRestarts"
    WARMUP_STABLE_DECAY = "WarmupStableDecay"
    REDUCE_ON_PLATEAU = "ReduceOnPlateau"


class Dpo(ApiModel, scope=Scope.RUN):
    """Settings of direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290)."""

    beta: Annotated[float, Field(ge=0.0001, le=100.0)] = 0.1
    """How strongly the model is kept near the base model: the factor of the log-probability ratios in equation 7. A
    smaller value lets it move further away."""


class ScheduleOptions(ApiModel, scope=Scope.RUN):
    """Settings of a schedule, like `lr_scheduler_kwargs` of transformers. Each one is allowed only with the schedules
    that use it."""

    min_learning_rate_ratio: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Lowest learning rate, as a share of the peak: that at the end of the decay. With Linear, Cosine, Polynomial,
    CosineWithRestarts, WarmupStableDecay and ReduceOnPlateau. Absent: 0."""

    power: Annotated[float, Field(ge=0.01, le=100.0)] | None = None
    """Power of the remaining share of the steps. With Polynomial. Absent: 2."""

    cycles: Annotated[int, Field(ge=2, le=10_000)] | None = None
    """Number of times that the learning rate decays from the peak. With CosineWithRestarts. Absent: 2."""

    decay_ratio: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Share of all optimizer steps in which the learning rate decays, at the end. With WarmupStableDecay. Absent:
    0.2."""

    factor: Annotated[float, Field(ge=0.01, le=0.99)] | None = None
    """What the learning rate is multiplied by. With ReduceOnPlateau. Absent: 0.1."""

    patience: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Consecutive validations without a lower loss that are tolerated; the next one lowers the learning rate. With
    ReduceOnPlateau. Absent: 10."""

    def without_fixed_defaults(self) -> Self:
        """Without the fields that are set to the value that they have if they are absent."""
        fixed = {name: None for name, value in SCHEDULE_DEFAULTS.items() if getattr(self, name) == value}
        return self.model_copy(update=fixed)


SCHEDULE_DEFAULTS: dict[str, float | int] = {
    "min_learning_rate_ratio": 0.0,
    "power": 2,
    "cycles": 2,
    "decay_ratio": 0.2,
    "factor": 0.1,
    "patience": 10,
}
"""Values of absent fields of ScheduleOptions."""

_DECAYING = (
    Schedule.LINEAR,
    Schedule.COSINE,
    Schedule.POLYNOMIAL,
    Schedule.COSINE_WITH_RESTARTS,
    Schedule.WARMUP_STABLE_DECAY,
)
SCHEDULES_WITH: dict[str, tuple[Schedule, ...]] = {
    "min_learning_rate_ratio": (*_DECAYING, Schedule.REDUCE_ON_PLATEAU),
    "power": (Schedule.POLYNOMIAL,),
    "cycles": (Schedule.COSINE_WITH_RESTARTS,),
    "decay_ratio": (Schedule.WARMUP_STABLE_DECAY,),
    "factor": (Schedule.REDUCE_ON_PLATEAU,),
    "patience": (Schedule.REDUCE_ON_PLATEAU,),
}
"""Field of ScheduleOptions -> the schedules that use it."""


class Warmup(ApiModel, scope=Scope.RUN):
    """Linear increase of the learning rate from zero. At most one of the fields."""

    ratio: Annotated[float, Field(ge=0.0, le=0.9)] | None = None
    """Share of all optimizer steps."""

    steps: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    """Optimizer steps. Must be fewer than the steps of the training."""


class OptimizerName(StrEnum):
    """The algorithm that updates the parameters. Both keep two moments of the gradient."""

    ADAMW = "AdamW"
    """Loshchilov & Hutter 2017, arXiv 1711.05101."""
    RADAM = "RAdam"
    """Liu et al. 2019, arXiv 1908.03265, with AdamW's weight decay."""


class Optimizer(ApiModel, scope=Scope.RUN):
    """The optimizer and its settings."""

    name: OptimizerName = OptimizerName.ADAMW
    """AdamW, or RAdam, which takes smaller steps at the beginning and therefore needs no warmup."""

    beta1: Annotated[float, Field(ge=0.0, le=0.99999)] = 0.9
    """Decay of the mean of the gradients."""

    beta2: Annotated[float, Field(ge=0.0, le=0.999999)] = 0.999
    """Decay of the mean of the squared gradients. 0.95 is common for language models."""

    epsilon: Annotated[float, Field(ge=1e-15, le=0.1)] = 1e-8
    """Added to the denominator of an update."""


class EarlyStopping(ApiModel, scope=Scope.RUN):
    """Stop when the validation metric no longer improves. The best checkpoint is exported."""

    metric: Metric = Metric.LOSS
    """Validation metric that must improve."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Evaluations without improvement after which the training stops. Counted across restarts."""

    min_delta: Annotated[float, Field(ge=0.0)] = 0.0
    """A smaller change does not count as an improvement."""


class OverfittingAction(StrEnum):
    """What happens when a training overfits."""

    WARN = "Warn"
    STOP = "Stop"


class Overfitting(ApiModel, scope=Scope.RUN):
    """Detects overfitting at the evaluations of the validation split.

    A training overfits if, since the lowest validation loss, the training loss has fallen and the validation loss has
    risen by `minRise`, and the training loss is lower than the validation loss by `maxGap`. The training loss is the
    mean since the previous evaluation. The rise is the generalization loss of Prechelt 1998, "Early Stopping - But
    When?".
    """

    action: OverfittingAction = OverfittingAction.WARN
    """Warn adds a warning with the losses to status and report. Stop also ends the training. With Stop, the state with
    the lowest validation loss is exported, or the best one by the metric of `earlyStopping`."""

    max_gap: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """Allowed share of the validation loss by which the training loss is lower."""

    min_rise: Annotated[float, Field(ge=0.0, le=100.0)] = 0.05
    """Rise of the validation loss above its lowest value, as a share of it."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 2
    """Consecutive evaluations that must agree. Counted across restarts."""


class Batching(StrEnum):
    """How examples of different length share a batch."""

    PADDED = "Padded"
    LENGTH_GROUPED = "LengthGrouped"
    PACKED = "Packed"


class Training(ApiModel, scope=Scope.RUN):
    """Length, learning rate and batch."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Passes over the training split. At most one of `epochs` and `maxSteps`. Absent, and no `maxSteps`: 3."""

    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Optimizer steps, instead of epochs."""

    learning_rate: Annotated[float, Field(ge=1e-12, le=10.0)] | None = None
    """Peak learning rate. Common values are 2e-5 for a full fine-tune and 2e-4 for LoRA. Absent: a test with a rising
    rate chooses it before the first step, and `status.run.resolved.learningRate` shows it; with `setFit`, 2e-5."""

    learning_rate_schedule: Schedule = Schedule.LINEAR
    """The learning rate after the warmup. Constant stays at the peak. Linear, Cosine and Polynomial decay to
    `scheduleOptions.minLearningRateRatio` at the end, Polynomial with the power `scheduleOptions.power`. InverseSqrt
    decays as sqrt(warmup / step). CosineWithRestarts decays several times, each time from the peak. WarmupStableDecay
    stays at the peak and decays along a cosine in the last steps. ReduceOnPlateau multiplies it by
    `scheduleOptions.factor` when the validation loss has not fallen for more than `scheduleOptions.patience`
    validations."""

    schedule_options: ScheduleOptions = ScheduleOptions()
    """Settings of the learning rate schedule."""

    warmup: Warmup = Warmup()
    """Linear increase of the learning rate from zero. Absent: none."""

    global_batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 16
    """Examples per optimizer step, over all workers. It does not depend on the number of workers. With `batching:
    Packed`, rows that hold several examples, each at most `data.maxLength` tokens long. With `method.setFit`, pairs of
    texts."""

    batching: Batching | None = None
    """How examples of different length share a batch. Padded: in random order, each padded to the longest one of its
    micro-batch. LengthGrouped: a batch has groups of similar length, which are padded separately. Packed: several
    examples share a row of at most `data.maxLength` tokens and do not attend to each other; `globalBatchSize` and
    `microBatchSize` count these rows. Only for CausalLM. Absent: LengthGrouped if it saves padding for the lengths of
    the data, else Padded."""

    micro_batch_size: Annotated[Annotated[int, Field(ge=1, le=65_536)] | None, Scope.ATTEMPT] = None
    """Examples, or rows with several examples, per worker process and forward pass. Absent: the largest up to 16 that
    divides the worker's share and is estimated to fit `workers.resources.limits.memory` or, with GPUs,
    `workers.gpuMemory`."""

    optimizer: Optimizer = Optimizer()
    """The optimizer and its settings."""

    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Decoupled weight decay, as in AdamW; not applied to biases and norms."""

    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Maximum gradient norm; larger gradients are clipped. 0 disables clipping."""

    label_smoothing: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0
    """Share of the target's probability that is distributed over all classes."""

    dpo: Dpo | None = None
    """Settings of the loss of Preference data. Only for Preference. Absent: those of `{}`."""

    seed: Annotated[int, Field(ge=0, le=4_294_967_295), Scope.DATA] = 42
    """Seed of splits, data order, new weights and dropout."""

    gradient_checkpointing: Annotated[bool, Scope.ATTEMPT] = True
    """Recompute activations in the backward pass. Needs less memory and is about 20 % slower."""

    gradient_checkpointing_every_n_layers: Annotated[int, Field(ge=1, le=1024), Scope.ATTEMPT] = 1
    """Recompute only the activations of layers 1, 1 + N, 1 + 2 N and so on, and keep those of the others: a larger N
    needs more memory and is faster. At most the number of layers of the model. 1: those of all layers. Only with
    `gradientCheckpointing`."""

    chunked_loss: bool = False
    """Compute the loss of a language model in parts, so that the logits of all tokens never exist at the same time.
    Needs less memory with a large vocabulary. The loss differs by rounding. Not with ZeRO stage 3."""

    early_stopping: EarlyStopping | None = None
    """Stop when the validation metric no longer improves."""

    overfitting: Overfitting | None = None
    """Warn or stop when the training overfits. Absent: it is not checked."""

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, in the train stage after it is chosen. Raises ValueError if it is absent."""
        if self.learning_rate is None:
            raise ValueError("spec.training.learningRate must be set or chosen before it is used")
        return self.learning_rate

    def without_fixed_defaults(self) -> Self:
        """Without `epochs` if it is set to its default and applies."""
        is_default = self.epochs == DEFAULT_EPOCHS and self.max_steps is None
        return self.model_copy(update={"epochs": None}) if is_default else self


class Offload(StrEnum):
    """Training state that is kept in host memory instead of GPU memory."""

    NONE = "None"
    OPTIMIZER = "Optimizer"
    OPTIMIZER_AND_PARAMETERS = "OptimizerAndParameters"


class DeepSpeed(ApiModel, scope=Scope.ATTEMPT):
    """ZeRO, and additions to the DeepSpeed configuration."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """0 replicates, 1 partitions optimizer state, 2 also gradients, 3 also parameters. Absent: the lowest that fits
    `workers.resources.limits.memory` or, with GPUs, `workers.gpuMemory`; 2 without a limit. BFloat16 and Float16 need 2
    or 3; 0 and 1 become 2."""

    offload: Offload | None = None
    """Optimizer: moments and 32-bit weights are kept in host memory and updated on the CPU. Needs zeroStage 1 or more;
    OptimizerAndParameters needs 3. No effect without GPUs. Absent: None. With `workers.gpuMemory`: the first value
    with which training fits, tried after ZeRO stage and micro-batch."""

    config: Annotated[Annotated[dict[str, Any], Field(max_length=64)] | None, Scope.RUN] = None
    """Merged unchanged into the DeepSpeed configuration. Keys that other fields of the job set are rejected."""

    @property
    def offload_or_none(self) -> Offload:
        """`offload`, or NONE if it is absent; the prepare stage may have chosen another one then."""
        return self.offload or Offload.NONE
