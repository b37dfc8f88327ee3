"""Parameters that `spec.method.full.freeze` excludes from the training."""

from __future__ import annotations

import re
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from finetune_api.v1alpha1 import Freeze

from ..errors import BadConfigError
from .layers import transformer_layers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

PATH = "spec.method.full.freeze"

_SHOWN_NAMES = 3


def frozen_names(model: PreTrainedModel, freeze: Freeze) -> frozenset[str]:
    """Return the names of the frozen parameters as `model.named_parameters()` has them. A tied one has one name.

    Globs instead of regular expressions: `fnmatch` compiles them without nested repetition, so no pattern takes
    exponential time. Raises BadConfigError for a block that does not fit the model.
    """
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    # Every name of a tied parameter can be used in a pattern.
    names = {name: own[id(value)] for name, value in model.named_parameters(remove_duplicate=False)}
    frozen: set[str] = set()
    if freeze.embeddings:
        frozen |= {names[name] for name in _embeddings(model)}
    if freeze.first_layers is not None:
        frozen |= {names[name] for name in _first_layers(model, freeze.first_layers)}
    for index, pattern in enumerate(freeze.patterns):
        matched = {names[name] for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise _unmatched(f"{PATH}.patterns[{index}]", pattern, model, names)
        frozen |= matched
    if frozen == set(names.values()):
        raise BadConfigError(
            f"{PATH} must leave parameters to train, but it freezes all {len(frozen)} tensors of "
            f"{type(model).__name__}",
            advice="lower firstLayers, or remove a pattern",
        )
    return frozenset(frozen)


def elements(parameter: nn.Parameter) -> int:
    """Return the number of elements of a parameter, also if ZeRO-3 has partitioned it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _embeddings(model: nn.Module) -> list[str]:
    from torch import nn

    tables = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    if not tables:
        raise BadConfigError(
            f"{PATH}.embeddings must be false, because {type(model).__name__} has no embedding matrix",
            advice="remove it, or name the parameters in patterns",
        )
    return [f"{name}.weight" for name in tables]


def _first_layers(model: PreTrainedModel, count: int) -> list[str]:
    found = transformer_layers(model)
    if found is None:
        raise BadConfigError(
            f"{PATH}.firstLayers must be absent, because {type(model).__name__} has no list of transformer layers",
            advice="remove it, and name the parameters in patterns",
        )
    prefix, layers = found
    if count > len(layers):
        raise BadConfigError(
            f"{PATH}.firstLayers must be at most {len(layers)}, the number of layers of {type(model).__name__}, not "
            f"{count}",
            advice=f"write at most {len(layers)}",
        )
    return [f"{prefix}.{index}.{name}" for index in range(count) for name, _ in layers[index].named_parameters()]


def _unmatched(path: str, pattern: str, model: nn.Module, names: dict[str, str]) -> BadConfigError:
    """The nearest names are shown with `*` for the number of the layer."""
    globs = list(dict.fromkeys(re.sub(r"\d+", "*", name) for name in names))
    nearest = get_close_matches(pattern, globs, n=_SHOWN_NAMES, cutoff=0.0)
    return BadConfigError(
        f"{path} must match a parameter of {type(model).__name__}, but {pattern!r} matches none",
        advice=f"the nearest names are {', '.join(nearest)}; correct or remove the pattern",
    )
