"""What the trainer has to know about a fine-tuning method. Importable without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from finetune_api.v1alpha1 import MethodBlock

from ..registry import Registry
from ..tasks import TrainingTask
from ..tasks.base import Collate, Split
from .counts import ActivationCounts

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

Weights = dict[str, "torch.Tensor"]
"""By name; on the CPU."""

EXPORT_ADVICE = (
    "change spec.runNonce to train and export again, and report the error with the base model's name if it repeats"
)
"""What to do with an exported folder that is not what was trained."""

Block = TypeVar("Block", bound=MethodBlock)


class ModelSizes(Protocol):
    """Sizes of a base model, known before it is loaded."""

    @property
    def parameters(self) -> int:
        """All parameters."""
        ...

    @property
    def linear(self) -> tuple[tuple[str, tuple[int, int]], ...]:
        """Name, and rows and columns, of every matrix but embeddings and heads."""
        ...

    @property
    def hidden_size(self) -> int:
        """Values in the embedding of one token; 0 where the configuration does not state it."""
        ...

    @property
    def frozen(self) -> int:
        """Result of `frozen_parameters`."""
        ...

    @property
    def layers(self) -> int:
        """Layers of the body; 0 where the configuration does not state it."""
        ...

    @property
    def key_value_size(self) -> int:
        """Values in the keys of one token and layer, which has as many values; 0 where it is not known."""
        ...

    @property
    def norms(self) -> int:
        """Parameters of the normalization layers."""
        ...

    @property
    def vocabulary(self) -> int:
        """Rows of the embeddings; 0 where the configuration does not state it."""
        ...

    @property
    def new_rows(self) -> int:
        """Rows of tokens of `spec.model.vocabulary`, in the embeddings and, if it has its own, in the output matrix."""
        ...


class ParameterCounts(NamedTuple):
    """Numbers of parameters, for the estimate of memory."""

    trained: int
    added: int
    """Values that the base model does not have: trained ones, and others that the method keeps."""


class LoadedAdapter(NamedTuple):
    """A base model with an exported adapter, and the weights of one that the other lacks."""

    model: Any
    missing: Set[str]
    """Names that the method needs and the folder does not have."""
    unused: Set[str]
    """Names in the folder that the method has no place for."""


class FineTuningMethod(ABC, Generic[Block]):
    """Which parameters are trained, and what is exported."""

    name: ClassVar[str]
    """Name of its block in `spec.method`."""
    block: type[Block]
    title: ClassVar[str]
    """What reports call it."""
    adapter: ClassVar[str] = ""
    """What the model card calls an exported adapter, with its article."""
    tags: ClassVar[tuple[str, ...]] = ()
    """Of the model card."""
    is_adapter: ClassVar[bool]
    """Whether only the trained parameters are gathered for the export, and the base model stays as it is."""
    saves_memory: ClassVar[bool] = True
    """Whether it is proposed instead of a method whose training does not fit, if it trains fewer parameters."""
    max_examples: ClassVar[int | None] = None
    """Maximum number of training examples. None: no maximum."""
    default_learning_rate: ClassVar[float] = 2e-5
    """Learning rate if `spec.training.learningRate` is absent and a range test finds none. The test covers the rates
    around it, see `learning_rate.rates_to_test`."""
    no_range_test: ClassVar[str] = ""
    """Why the default learning rate is used without a range test. Empty: the rate is tested."""

    @abstractmethod
    def parameters(self, sizes: ModelSizes, block: Block) -> ParameterCounts:
        """Estimated before anything is loaded."""

    def activations(self, sizes: ModelSizes, block: Block) -> ActivationCounts:
        """Estimated before anything is loaded."""
        del sizes, block
        return ActivationCounts()

    def virtual_tokens(self, block: Block) -> int:
        """Positions of every row that the method takes for itself: the model's limit on the tokens of a row falls."""
        del block
        return 0

    def check(self, folder: Path, block: Block, task: TrainingTask) -> None:
        """Raise BadConfigError in the prepare stage where `apply` would, without loading weights."""

    def note(self, folder: Path, block: Block, task: TrainingTask) -> str:
        """One line for the status about what the block does to the base model; empty: nothing to say.

        Raises BadConfigError in the prepare stage where the training would, without loading weights.
        """
        del folder, block, task
        return ""

    def frozen_parameters(self, folder: Path, block: Block, task: TrainingTask, new: Collection[str] = ()) -> int:
        """Number of the base model's parameters that the block excludes from a training of all parameters.

        `new` names the parameters that the folder lacks. Raises BadConfigError in the prepare stage where `apply`
        would, without loading weights.
        """
        del folder, block, task, new
        return 0

    def training_task(self, task: TrainingTask) -> TrainingTask:
        """The rows and the loss of the training. Models are always measured by `task`, which the job has."""
        return task

    @abstractmethod
    def apply(self, model: PreTrainedModel, block: Block, task: TrainingTask, *, seed: int) -> nn.Module:
        """The model to train, with `requires_grad` set on the parameters that are trained. New ones are drawn from
        `seed`. Raises BadConfigError where the block does not fit the model."""

    def has_initial_weights(self, block: Block) -> bool:
        """Whether training begins with values that are computed from the base model, once per run."""
        del block
        return False

    def initial_weights(self, model: Any, block: Block, *, seed: int) -> Weights:
        """These values by the name of the trained parameter, in 32 bit.

        `model` is the result of `apply`, not partitioned.
        """
        raise NotImplementedError(f"{self.name} has no such values")

    def base_differences(self, model: Any, block: Block, initial: Weights) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters of the base model with what must be subtracted from each, so that the model with `initial` is the
        base model."""
        del model, block, initial
        return iter(())

    def rate_factors(self, model: nn.Module, block: Block) -> dict[str, float]:
        """Trained parameter -> its learning rate divided by `spec.training.learningRate`. Absent: 1.

        `model` is the result of `apply`.
        """
        del model, block
        return {}

    def first_phases(self, model: nn.Module, block: Block) -> dict[str, int]:
        """Trained parameter -> the phase of the training, from 0, since which it is trained. Empty: one phase.

        `model` is the result of `apply`.
        """
        del model, block
        return {}

    def phase_steps(self, block: Block, steps_per_epoch: int) -> int:
        """Optimizer steps of every phase but the last one, if `first_phases` is not empty."""
        raise NotImplementedError(f"{self.name} has one phase")

    def phase_note(
        self, folder: Path, block: Block, task: TrainingTask, *, steps_per_epoch: int, total_steps: int
    ) -> str:
        """Describe the phases of the training of a model in the prepare stage, without loading weights. Empty: one."""
        del folder, block, task, steps_per_epoch, total_steps
        return ""

    def fit_head(self, model: nn.Module, rows: Split, collate: Collate) -> None:
        """Compute parameters that no gradient trains, from the others and the training split. Collective.

        Called before each validation and before the export. Draws no random numbers, and leaves the model in the mode
        in which it is. `model` is the result of `apply` in the engine; `collate` is that of the job's task.
        """

    def has_buffer(self, name: str) -> bool:
        """Whether a persistent buffer of the trained model is exported."""
        del name
        return True

    @abstractmethod
    def merged(
        self,
        model: nn.Module,
        weights: Weights,
        block: Block,
        task: TrainingTask,
        load_base: Callable[[], PreTrainedModel],
    ) -> tuple[PreTrainedModel, Weights]:
        """A model that needs neither base model nor PEFT, and its weights; `weights` are left as they are.

        `weights` are the gathered ones of the trained model; `load_base` loads the base model once more. Raises
        ModelUnusableError where that is another one than in training.
        """

    def merge(self, adapted: Any) -> tuple[PreTrainedModel, Weights]:
        """Merge a base model that `load_adapter` has put an adapter on, in place; the model and its weights."""
        raise NotImplementedError(f"the support table has no Adapter for {self.name}")

    def save_adapter(
        self, model: nn.Module, weights: Weights, folder: Path, *, base: str, revision: str | None
    ) -> Weights:
        """Write what was trained, without the base model that `base` and `revision` name. Returns what the files must
        contain, under their names for it."""
        raise NotImplementedError(f"the support table has no Adapter for {self.name}")

    def unwrapped(self, model: nn.Module) -> Any:
        """The model of transformers within the trained one."""
        return model

    def load_adapter(self, base: Any, folder: Path, uri: str) -> LoadedAdapter:
        """Load what `save_adapter` wrote. Raises ExportUnusableError; `uri` is the folder's address, for messages."""
        raise NotImplementedError(f"the support table has no Adapter for {self.name}")


METHODS: Registry[FineTuningMethod[Any]] = Registry("finetune_trainer.methods", "spec.method")
"""Method by name."""
