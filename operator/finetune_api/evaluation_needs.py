"""Resources of the evaluate stage, derived from the measurements of the prepare stage. Pure."""

from dataclasses import dataclass
from typing import Final

from .v1alpha1 import ArtifactFormat, Dtype, Spec

CPU_BUDGET_FLOP: Final = 3e13
"""About ten minutes on the CPU of one node at 50 GFLOP/s, the rate of 16 cores with AVX2 in 32 bit."""

_FORWARD_FLOP: Final = 2
"""Per parameter and token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""
_RELOAD_TOKENS: Final = 16_384
"""Most tokens on which each exported folder is compared with the trained model."""
_PROCESS_BYTES: Final = 2**30
"""Libraries (0.65 GiB), tokenizer and activations, or 0.3 GiB for fitting a simple baseline while no model is loaded.

The baselines are not part of `flop`: they are bounded, and a GPU does not speed them up."""
_SLACK: Final = 1.2
"""Memory for weight files in addition to the loaded weights: they are read one shard at a time."""


def model_copies(spec: Spec) -> int:
    """One model at a time, but transformers dequantizes a whole GGUF file before it fills the model with the result."""
    return 2 if ArtifactFormat.GGUF in spec.output.formats else 1


@dataclass(frozen=True)
class EvaluationNeeds:
    """Size of an evaluation."""

    parameters: int
    """Parameters of the model; 0: not yet known."""
    test_tokens: int | None
    """Tokens of the test split; None: not known."""
    dtype: Dtype
    copies: int = 1
    """Models in memory at the same time, see `model_copies`."""
    regression_tokens: int | None = 0
    """Tokens of all regression sets; None: not known."""

    @property
    def memory_bytes(self) -> int:
        """Memory for the models that are loaded at the same time."""
        width = 4 if self.dtype is Dtype.FLOAT32 else 2
        return int(_SLACK * width * self.parameters * self.copies) + _PROCESS_BYTES

    def flop(self, spec: Spec) -> float:
        """Floating-point operations of the forward passes: test split, regression sets and sample answers of each
        candidate, the test split of the promoted model, of the pruned base model and of the exports with quantized
        weights, and the comparison of each export with the trained model."""
        candidates = 2 if spec.evaluation.base_model else 1
        is_pruned = spec.method.pruning is not None
        measured = candidates + (spec.evaluation.promote is not None) + (is_pruned and spec.evaluation.base_model)
        formats = set(spec.output.formats)
        exports = len(formats) + (len(spec.output.gguf.types) - 1 if spec.output.gguf else 0)
        measured += exports - sum(not artifact.is_quantized for artifact in formats)
        generated = len(spec.evaluation.prompts) * spec.evaluation.max_new_tokens
        tokens = measured * (self.test_tokens or 0) + candidates * (generated + (self.regression_tokens or 0))
        tokens += _RELOAD_TOKENS * exports
        return float(_FORWARD_FLOP * self.parameters * tokens)

    def gpus(self, spec: Spec) -> int:
        """GPUs of the evaluate pod: the value in the spec, otherwise 1 if a CPU would take too long and GPUs exist."""
        if spec.stages.evaluate.gpus is not None:
            return spec.stages.evaluate.gpus
        is_unknown = self.parameters > 0 and None in (self.test_tokens, self.regression_tokens)
        is_long = self.flop(spec) > CPU_BUDGET_FLOP or is_unknown
        return int(spec.workers.gpus_per_node > 0 and is_long)
