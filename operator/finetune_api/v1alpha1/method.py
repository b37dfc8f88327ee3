"""`spec.method`: which parameters are trained."""

from typing import get_args

from .base import ApiModel
from .methods.base import MethodBlock
from .methods.full import FullFineTune
from .methods.ia3 import Ia3
from .methods.layer_norm_tuning import LayerNormTuning
from .methods.lora import Lora
from .methods.osft import Osft
from .methods.p_tuning import PTuning
from .methods.prefix_tuning import PrefixTuning
from .methods.prompt_tuning import PromptTuning
from .methods.pruning import Pruning
from .methods.set_fit import SetFit
from .scope import Scope


class Method(ApiModel, scope=Scope.RUN):
    """Exactly one of the blocks."""

    full: FullFineTune | None = None
    """Train every parameter."""

    lora: Lora | None = None
    """Train low-rank adapters."""

    ia3: Ia3 | None = None
    """Train factors for the activations of some layers."""

    prompt_tuning: PromptTuning | None = None
    """Train embeddings before every text."""

    prefix_tuning: PrefixTuning | None = None
    """Train keys and values before those of every text."""

    p_tuning: PTuning | None = None
    """Train a network that computes embeddings before every text."""

    layer_norm_tuning: LayerNormTuning | None = None
    """Train the normalization layers."""

    osft: Osft | None = None
    """Train the small singular values of the matrices."""

    set_fit: SetFit | None = None
    """SetFit, for few labeled examples: fine-tune a sentence encoder on pairs of texts, then fit a logistic regression
    to its embeddings. BERT, RoBERTa and XLM-RoBERTa only, and at most 2,000 training examples."""

    @classmethod
    def blocks(cls) -> dict[str, type[MethodBlock]]:
        """Name in a manifest -> class of every method's block, in the order of the fields."""
        return {
            field.alias or name: next(kind for kind in get_args(field.annotation) if issubclass(kind, MethodBlock))
            for name, field in cls.model_fields.items()
        }

    @property
    def given(self) -> dict[str, MethodBlock]:
        """Name in a manifest -> block, of those that are set; exactly one in a valid spec."""
        values = {field.alias or name: getattr(self, name) for name, field in type(self).model_fields.items()}
        return {name: block for name, block in values.items() if block is not None}

    @property
    def pruning(self) -> Pruning | None:
        """`full.pruning`; None: nothing is pruned."""
        return None if self.full is None else self.full.pruning

    @property
    def name(self) -> str:
        """Name of the method of a valid spec."""
        (name,) = self.given
        return name

    @property
    def block(self) -> MethodBlock:
        """Settings of the method of a valid spec."""
        return self.given[self.name]
