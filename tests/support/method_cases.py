"""Every fine-tuning method and variant of one, for tests that train with each."""

from typing import Any

from finetune_api.support import DEFAULT_FORMATS, SUPPORT

METHOD_CASES: dict[str, dict[str, Any]] = {
    "full": {"full": {}},
    "freeze": {"full": {"freeze": {"embeddings": True, "firstLayers": 1}}},
    "pruned": {"full": {"pruning": {"algorithm": "Wanda", "sparsity": 0.5}}},
    "dropped-layers": {"full": {"pruning": {"algorithm": "DropLayers", "layers": 1}}},
    "unfreeze": {"full": {"gradualUnfreezing": {"stepsPerPhase": 2}}},
    "lora": {"lora": {"dropout": 0.1}},
    "lora-RsLoRA": {"lora": {"variant": "RsLoRA"}},
    "lora-DoRA": {"lora": {"variant": "DoRA"}},
    "lora-PiSSA": {"lora": {"init": "PiSSA", "rank": 4}},
    "lora-plus": {"lora": {"learningRateRatio": 4}},
    "ia3": {"ia3": {}},
    "promptTuning": {"promptTuning": {}},
    "promptTuning-text": {"promptTuning": {"initialText": "the quick brown fox"}},
    "prefixTuning": {"prefixTuning": {}},
    "prefixTuning-projection": {"prefixTuning": {"projection": True}},
    "pTuning": {"pTuning": {}},
    "pTuning-LSTM": {"pTuning": {"encoderReparameterization": "LSTM"}},
    "layerNormTuning": {"layerNormTuning": {}},
    "osft": {"osft": {}},
    "setFit": {"setFit": {}},
}
"""Case -> `spec.method`."""


def needed_with(method: str) -> dict[str, Any]:
    """The other blocks of a spec that the method does not allow to be absent."""
    row = SUPPORT.methods[method]
    needed: dict[str, Any] = {}
    if not {*DEFAULT_FORMATS} <= {*row.formats}:
        needed["output"] = {"formats": [*row.formats]}
    if True not in row.gradient_checkpointing:
        needed["training"] = {"gradientCheckpointing": False}
    return needed


def case_blocks(case: str) -> dict[str, Any]:
    """`spec.method` of a case, and what is needed with it."""
    (method,) = METHOD_CASES[case]
    return {"method": METHOD_CASES[case], **needed_with(method)}
