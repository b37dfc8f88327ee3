"""Checks in the prepare stage whether a model without some of its layers is the model that config.json describes.

Layers of some classes compute with their number (the initial value of a parameter, an index into a list of the
configuration), which changes when layers before them are dropped. The exported folder would then be another model than
the trained one. A small model of the class is built with random weights, its layers are dropped, and its logits are
compared with those of a new model that has its configuration and its weights.
"""

import copy
from typing import Any

import torch

from finetune_api.v1alpha1 import Pruning

from ..errors import BadConfigError
from ..methods.pruning import PRUNERS
from .small_models import SPECIAL_TOKENS, VOCABULARY, small_models

TOLERANCE = 1e-4
"""Maximum difference of a logit, as a share of the largest one."""
_TOKENS = 12


def check_dropped_layers(model_class: Any, config: Any, uri: str, block: Pruning) -> None:
    """Raise BadConfigError if the exported model would differ from the trained one."""
    name = f"{model_class.__name__}, the class of {uri}"
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        tokens = torch.randint(len(SPECIAL_TOKENS), VOCABULARY, (1, _TOKENS))
        for model in small_models(model_class, config, capacity=_TOKENS):
            try:
                PRUNERS[block.algorithm].reshape(model, block)
                exported = model_class(copy.deepcopy(model.config)).float().eval()
                exported.load_state_dict(model.state_dict())
                logits, expected = (one(input_ids=tokens).logits for one in (model, exported))
            except BadConfigError:
                raise
            except Exception as error:  # modeling files raise any exception
                raise _refusal(f"{name}: {type(error).__name__}: {str(error)[:200]}") from error
            difference = float((logits - expected).abs().max() / expected.abs().max())
            if not difference <= TOLERANCE:
                raise _refusal(f"{name} computes with the number of a layer")
            return


def _refusal(reason: str) -> BadConfigError:
    return BadConfigError(
        f"spec.method.full.pruning.algorithm must not be DropLayers for this base model: {reason}",
        advice="write Magnitude or Wanda, or remove spec.method.full.pruning",
    )
