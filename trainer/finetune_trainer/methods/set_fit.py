"""SetFit (Tunstall et al. 2022, arXiv 2209.11055): an encoder is trained on pairs of texts, and a logistic regression
is fitted to its embeddings.

The embedding of a sentence encoder is the mean of its tokens, and the classifiers of transformers read the first token.
So a layer is added after the last one, with constants in which attention has the same weight for every token:

    query = key = 0, value = 1, output = _MEAN_WEIGHT   ->   LayerNorm(_MEAN_WEIGHT * mean of the tokens + token)
    feed-forward layers = 0                       ->   LayerNorm of that, which changes nothing
    pooler = _SCALE                               ->   tanh(_SCALE * first token)

The model that is trained, measured and exported is therefore an ordinary classifier of its family, whose embedding is
the normalized mean of the tokens: `_MEAN_WEIGHT` makes the first token, which the layer adds, a hundredth of it.
`_SCALE` keeps tanh almost linear, and the embedding near the length at which the penalty of scikit-learn's default is
used.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from finetune_api.v1alpha1.methods.set_fit import SetFit

from ..errors import BadConfigError, DivergedError
from ..tasks import TrainingTask
from ..tasks.base import Collate, Split
from .base import METHODS, FineTuningMethod, ModelSizes, ParameterCounts

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

log = logging.getLogger("finetune")

_HEADS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
}
"""`model_type` -> names of the layer before tanh and of the last layer. In other families, the layers after attention
are normalized in another place, scores depend on positions, or another function takes the place of tanh."""
_MEAN_WEIGHT = 100.0
_SCALE = 0.25
_MAX_ITERATIONS = 1000
_ABSENT = float(np.log(np.finfo(np.float64).eps))
"""Logit of a label that has no training text: its probability is about 2e-16, as in `sklearn.metrics.log_loss`."""


@METHODS.register
class SetFitMethod(FineTuningMethod[SetFit]):
    """The encoder is trained; the added layer is constant, and the classifier is computed."""

    name = "setFit"
    block = SetFit
    title = "SetFit"
    is_adapter = False
    saves_memory = False  # it trains something else than the methods that it could replace
    no_range_test = (
        "a range test would use the loss of pairs of texts, which does not say which rate gives the best classifier"
    )
    max_examples = 2_000  # each validation computes them all, without looking at a stop request

    def parameters(self, sizes: ModelSizes, block: SetFit) -> ParameterCounts:
        """All of the base model, and about one more layer."""
        del block
        matrices = sum(rows * columns for _, (rows, columns) in sizes.linear)
        return ParameterCounts(trained=sizes.parameters, added=matrices // max(1, sizes.layers))

    def check(self, folder: Path, block: SetFit, task: TrainingTask) -> None:
        """By the model type in the configuration."""
        from transformers import AutoConfig

        del block, task
        _head_names(AutoConfig.from_pretrained(folder))

    def note(self, folder: Path, block: SetFit, task: TrainingTask) -> str:
        """What the losses are."""
        del folder, block, task
        return (
            "the training loss is that of pairs of texts; validation and test measure the classifier, which is fitted "
            "to the training texts before each validation"
        )

    def training_task(self, task: TrainingTask) -> TrainingTask:
        """Pairs."""
        from ..tasks.text_pairs import TextPairs

        del task
        return TextPairs()

    def apply(self, model: PreTrainedModel, block: SetFit, task: TrainingTask, *, seed: int) -> nn.Module:
        """Add the layer that averages the tokens. In training mode, the model returns embeddings instead of logits."""
        del block, task, seed
        pooler, classifier = (model.get_submodule(name) for name in _head_names(model.config))
        layers = _layers(model)
        layer = copy.deepcopy(layers[-1])
        _average_tokens(layer)
        layers.append(layer)
        model.config.num_hidden_layers = len(layers)
        _set_scaled_identity(pooler, _SCALE)
        for module in (layer, pooler, classifier):
            module.requires_grad_(False)
        for module in (*layer.modules(), *_outside_of_body(model)):
            if type(module).__name__ == "Dropout":
                cast("nn.Dropout", module).p = 0.0  # it would change embeddings, and the encoder has its own
        classifier.register_forward_hook(_inputs_in_training)
        result: nn.Module = model
        return result

    def fit_head(self, model: nn.Module, rows: Split, collate: Collate) -> None:
        """Fit the classifier."""
        import torch
        import torch.distributed as dist

        from ..collectives import rank_zero

        trained = cast("PreTrainedModel", model)
        classifier = cast("nn.Linear", trained.get_submodule(_head_names(trained.config)[1]))
        found = torch.zeros(classifier.out_features, classifier.in_features + 1)

        def fit() -> None:
            embeddings, labels = _embeddings(trained, classifier, rows, collate)
            check_finite(embeddings)
            found.copy_(torch.from_numpy(fitted(embeddings, labels, classifier.out_features)))

        rank_zero(fit, None)
        dist.broadcast(found, src=0)
        with torch.no_grad():
            classifier.weight.copy_(found[:, :-1])
            classifier.bias.copy_(found[:, -1])

    def merged(self, model: nn.Module, weights: Any, *_: Any) -> Any:
        """What was trained."""
        return model, dict(weights)


def check_finite(embeddings: npt.NDArray[np.float64]) -> None:
    """Raise DivergedError if an embedding, shape (texts, width), has a value that is not a number or infinite."""
    count = int((~np.isfinite(embeddings).all(axis=1)).sum())
    if count:
        raise DivergedError(
            f"the embeddings of {count:,} of {len(embeddings):,} training texts are not finite",
            advice="lower spec.training.learningRate, or use spec.model.dtype: Float32",
        )


def fitted(embeddings: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float64]:
    """Return the weights of a logistic regression with a softmax over all classes, shape (classes, width + 1), with the
    intercepts in the last column.

    `embeddings` (texts, width), `labels` (texts,), of which there must be two. A class without a text has the logit
    `_ABSENT`, whatever the text.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = LogisticRegression(max_iter=_MAX_ITERATIONS).fit(embeddings, labels)
    if any(issubclass(entry.category, ConvergenceWarning) for entry in caught):
        log.warning("the logistic regression was stopped after %d iterations", _MAX_ITERATIONS)
    rows = np.column_stack([model.coef_, model.intercept_])
    if len(model.classes_) == 2:  # scikit-learn has the difference of the two logits
        rows = np.concatenate([-rows, rows]) / 2
    weights = np.zeros((classes, rows.shape[1]))
    weights[:, -1] = _ABSENT
    weights[model.classes_] = rows
    return weights


def _embeddings(
    model: PreTrainedModel, classifier: nn.Module, rows: Split, collate: Collate
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Inputs of the last layer, shape (rows, width), and labels (rows,), of every row."""
    import torch

    from ..tasks.forward import batches

    was_training, seen = model.training, []
    handle = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double().cpu().numpy()))
    places, labels = [], []
    model.eval()
    try:
        with torch.no_grad():
            for numbers, batch in batches(model, rows, collate, lambda _: None):
                places.append(numbers)
                labels.append(batch.pop("labels").cpu().numpy())
                model(**batch)
    finally:
        handle.remove()
        model.train(was_training)
    order = np.argsort(np.concatenate(places))
    return np.concatenate(seen)[order], np.concatenate(labels)[order]


def _inputs_in_training(classifier: nn.Module, inputs: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
    """A hook of the last layer: the embeddings are what is trained."""
    return inputs[0] if classifier.training else logits


def _head_names(config: Any) -> tuple[str, str]:
    """Raises BadConfigError for a family that is not supported."""
    names = _HEADS.get(config.model_type)
    if names is None or getattr(config, "is_decoder", False):
        raise BadConfigError(
            f"spec.method.setFit must have an encoder of the family {', '.join(_HEADS)}, not {config.model_type}: "
            "classifiers of other families cannot average the tokens of a text",
            advice="use a sentence encoder such as all-MiniLM-L6-v2, or write method: {full: {}}",
        )
    return names


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    return cast("nn.ModuleList", cast("Any", model.base_model).encoder.layer)


def _average_tokens(layer: Any) -> None:
    attention = layer.attention
    for matrix, diagonal in (
        (attention.self.query, 0.0),
        (attention.self.key, 0.0),
        (attention.self.value, 1.0),
        (attention.output.dense, _MEAN_WEIGHT),
        (layer.intermediate.dense, 0.0),
        (layer.output.dense, 0.0),
    ):
        _set_scaled_identity(matrix, diagonal)
    import torch

    with torch.no_grad():
        for norm in (attention.output.LayerNorm, layer.output.LayerNorm):
            norm.weight.fill_(1.0)
            norm.bias.zero_()


def _set_scaled_identity(linear: Any, diagonal: float) -> None:
    """Make a linear layer multiply by a number."""
    import torch

    with torch.no_grad():
        linear.bias.zero_()
        linear.weight.zero_()
        if diagonal:
            linear.weight.fill_diagonal_(diagonal)


def _outside_of_body(model: PreTrainedModel) -> Iterator[nn.Module]:
    body = set(model.base_model.modules())
    return (module for module in model.modules() if module not in body)
