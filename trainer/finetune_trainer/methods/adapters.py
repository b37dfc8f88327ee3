"""Methods that train adapters through PEFT, and leave the base model as it is.

PEFT is imported within functions: a full fine-tune does not need it, and the import takes a second.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from finetune_api.v1alpha1 import MethodBlock

from ..errors import BadConfigError, ExportUnusableError, ModelUnusableError
from ..new_tokens import new_token_ids
from ..tasks import TrainingTask
from .base import EXPORT_ADVICE, FineTuningMethod, LoadedAdapter, Weights
from .merge_check import adapted_outputs, check_merged

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

Block = TypeVar("Block", bound=MethodBlock)

_PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the names of the model's own modules."""
_TRAINED_WHOLE = ".modules_to_save."
"""Part of the names of modules that PEFT trains themselves, without an adapter."""
_WEIGHTS_FILE = "adapter_model.safetensors"


class AdapterMethod(FineTuningMethod[Block]):
    """A method is defined by its PEFT configuration."""

    is_adapter = True

    @abstractmethod
    def peft_config(self, block: Block, task: TrainingTask, trained_whole: tuple[str, ...]) -> Any:
        """PEFT's configuration. `trained_whole` names the modules that get no adapter but are trained themselves."""

    def peft_config_for(self, model: PreTrainedModel, block: Block, task: TrainingTask) -> Any:
        """`peft_config`, for a method whose configuration depends on more of the model."""
        return self.peft_config(block, task, _trained_whole(model, task))

    def target_modules(self, block: Block) -> tuple[str, ...] | None:
        """Layers that the block names, if the method has such a setting and it is used."""
        return getattr(block, "target_modules", None)

    def apply(self, model: PreTrainedModel, block: Block, task: TrainingTask, *, seed: int) -> nn.Module:
        """The model with adapters, its own parameters frozen."""
        from transformers import set_seed

        set_seed(seed)
        adapted: nn.Module = self.adapted(model, block, task)
        return adapted

    def adapted(self, model: PreTrainedModel, block: Block, task: TrainingTask) -> PeftModel:
        """The model with adapters that are drawn from torch's current generator.

        A new head is trained whole: it is small. So is any other module that the base model's files lack: loading the
        adapter would initialize it with other values.

        Raises BadConfigError where a target is not a layer of the model, or is a matrix that two layers share.
        """
        from peft import get_peft_model

        try:
            with warnings.catch_warnings():
                # PEFT only warns where the adapter touches a shared matrix; below that is an error.
                warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
                # GPT-2's layers store their matrices transposed; PEFT finds out for each layer and mentions it.
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
                # About the sizes of normalization layers, which no method uses.
                warnings.filterwarnings("ignore", message="Unsupported layer type")
                adapted: PeftModel = get_peft_model(model, self.peft_config_for(model, block, task))
        except ValueError as error:
            raise BadConfigError(
                f"spec.method.{self.name} cannot be applied to {type(model).__name__}: {error}",
                advice=self.advice(model, block),
            ) from error
        self._check_shared(adapted, block)
        return adapted

    def advice(self, model: PreTrainedModel, block: Block) -> str:
        """What to write where PEFT refuses the model."""
        if "target_modules" not in type(block).model_fields:
            return "use another base model or another method"
        layers = ", ".join(linear_layers(model))
        return f"linear layers of this model are {layers}; leave targetModules out for the usual ones"

    def check(self, folder: Path, block: Block, task: TrainingTask) -> None:
        """Build the model on the meta device and apply the method.

        A checkpoint that holds two different matrices although its config.json ties them passes here; transformers
        does not tie those, and `apply` sees the loaded model.
        """
        import torch
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            skeleton = task.model_class.from_config(config)
            for target in list(skeleton.all_tied_weights_keys):
                if _is_stored(folder, target):
                    skeleton.all_tied_weights_keys.pop(target)
            skeleton.new_tokens = new_token_ids(folder)
            self.adapted(skeleton, block, task)

    def has_buffer(self, name: str) -> bool:
        """Only those of modules that are trained whole; the others are the base model's."""
        return _TRAINED_WHOLE in name

    def merged(
        self,
        model: Any,
        weights: Weights,
        block: Block,
        task: TrainingTask,
        load_base: Callable[[], PreTrainedModel],
    ) -> tuple[PreTrainedModel, Weights]:
        """A fresh base model with the adapter added to its matrices."""
        from peft import set_peft_model_state_dict

        adapted = self.adapted(load_base(), block, task)
        trained = _adapter_weights(model, weights)
        expected = _adapter_weights(adapted)
        if trained.keys() != expected.keys():
            differing = sorted(trained.keys() ^ expected.keys())
            raise ModelUnusableError(
                f"spec.model.uri gives an adapter with other weights at the export than in training: "
                f"{len(differing)} names differ, first {', '.join(differing[:3])}",
                advice="keep the base model's files as they are while a run uses them",
            )
        set_peft_model_state_dict(adapted, trained)
        _check_loaded(_adapter_weights(adapted), trained)
        return self.merge(adapted)

    def merge(self, adapted: Any) -> tuple[PreTrainedModel, Weights]:
        """Add the adapter to the matrices of its base model, in place.

        Raises ExportUnusableError if the merged layers are not the base model's with the adapter.
        """
        _unwrap_trained_whole(adapted)
        expected = adapted_outputs(adapted)
        merged: PreTrainedModel = adapted.merge_and_unload()
        check_merged(merged, expected)
        return merged, _own_weights(merged)

    def save_adapter(self, model: Any, weights: Weights, folder: Path, *, base: str, revision: str | None) -> Weights:
        """A folder that `PeftModel.from_pretrained` loads."""
        configuration = model.active_peft_config
        configuration.base_model_name_or_path, configuration.revision = base, revision
        # PEFT would ask the hub whether the embeddings of the base model have another size.
        model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
        return _adapter_weights(model, weights)

    def unwrapped(self, model: Any) -> Any:
        """Without PEFT's wrapper."""
        return model.get_base_model()

    def load_adapter(self, base: Any, folder: Path, uri: str) -> LoadedAdapter:
        """Load it as any user of PEFT would, which draws random values for what the file lacks."""
        from peft import PeftModel
        from safetensors import safe_open

        with safe_open(folder / _WEIGHTS_FILE, framework="np") as file:
            stored = set(file.keys())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about missing weights, which the caller refuses
                model = PeftModel.from_pretrained(base, str(folder))
        except KeyError as error:  # how PEFT reports that a module which is trained whole is missing
            raise ExportUnusableError(
                f"{uri} lacks weights of its adapter, among them {error}", advice=EXPORT_ADVICE
            ) from error
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            raise ExportUnusableError(f"{uri} does not fit its base model: {error}", advice=EXPORT_ADVICE) from error
        wanted = set(_adapter_weights(model))
        return LoadedAdapter(model, missing=wanted - stored, unused=stored - wanted)

    def _check_shared(self, adapted: PeftModel, block: Block) -> None:
        """Refuse adapters on a matrix that two layers share.

        Merging adds the update to the one matrix, so the other layer would change too; base and adapter leave it as it
        is.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper

        model = adapted.get_base_model()
        tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
        shared = {first: second for pair in tied.items() for first, second in (pair, pair[::-1])}
        for name, module in adapted.named_modules():
            own = name.removeprefix(_PEFT_PREFIX)
            partner = shared.get(f"{own}.weight")
            if partner is None or not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
                continue
            if isinstance(module, TrainableTokensWrapper):
                continue  # PEFT trains the rows of both layers as one
            layer, other = (_last(own), _last(partner.rpartition(".")[0]))
            raise BadConfigError(
                f"spec.method.{self.name}.targetModules must not name {layer}: in {type(model).__name__} with tied "
                f"embeddings {layer} shares its matrix with {other}, so a merged model would not be base model plus "
                "adapter",
                advice=self._without(block, layer, other),
            )

    def _without(self, block: Block, *layers: str) -> str:
        field = f"spec.method.{self.name}.targetModules"
        left = [target for target in self.target_modules(block) or () if _last(target) not in layers]
        if left:
            return f"write {field}: [{', '.join(left)}], or use a base model whose embeddings are not tied"
        return f"remove {field} to adapt the usual layers, or use spec.method.full"


def linear_layers(model: nn.Module) -> list[str]:
    """Last parts of the names of all linear layers, sorted."""
    return sorted({_last(name) for name, module in model.named_modules() if _is_linear(module)})


def _trained_whole(model: PreTrainedModel, task: TrainingTask) -> tuple[str, ...]:
    """Full names of the modules without an adapter: the head, and what was drawn because the base model lacks it."""
    from torch import nn

    if not task.may_draw_head:
        return ()
    body = model.base_model_prefix
    if not isinstance(getattr(model, body, None), nn.Module):
        return ()  # PEFT knows the usual names of heads
    heads = [name for name, child in model.named_children() if name != body and any(True for _ in child.parameters())]
    drawn = {name.rpartition(".")[0] for name in getattr(model, "new_parameters", ())}
    return tuple(sorted([*heads, *(name for name in drawn if name.startswith(f"{body}."))]))


def _unwrap_trained_whole(adapted: PeftModel) -> None:
    """Put the modules that are trained whole in the place of PEFT's wrappers.

    Only LoRA's own code does that for modules of several layers, such as RoBERTa's head; the code that the other tuners
    share expects every module to have a weight.
    """
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(adapted.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, child = name.rpartition(".")
            setattr(adapted.get_submodule(parent), child, module.modules_to_save[adapted.active_adapter])


def _adapter_weights(model: PeftModel, weights: Weights | None = None) -> dict[str, Any]:
    """The adapter's part of `weights`, else of the model's own, under the names of PEFT's files."""
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False))


def _check_loaded(loaded: Weights, trained: Weights) -> None:
    """Raise ExportUnusableError if PEFT has not loaded the trained values."""
    for name, value in trained.items():
        if not loaded[name].equal(value.to(loaded[name])):
            raise ExportUnusableError(f"PEFT did not load {name} of the adapter before merging", advice=EXPORT_ADVICE)


def _own_weights(model: PreTrainedModel) -> Weights:
    """Parameters and persistent buffers of an unpartitioned model, tied names once."""
    persistent = model.state_dict(keep_vars=True)
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: value.detach().cpu().contiguous() for name, value in named.items() if name in persistent}


def _is_stored(folder: Path, name: str) -> bool:
    """Whether a weight file has a tensor of this name."""
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            if name in file.keys():  # noqa: SIM118
                return True
    return False


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _is_linear(module: nn.Module) -> bool:
    return type(module).__name__ in {"Linear", "Conv1D"}
