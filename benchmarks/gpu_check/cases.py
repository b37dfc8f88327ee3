"""The trainings of the checks: model sizes and settings. Importable without torch."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

VOCABULARY = 400
"""Of the tokenizer in the bundle."""
LLAMA3_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
"""config.json of Meta-Llama-3-8B."""


def llama(hidden: int, layers: int, *, heads: int, ffn: int = 0, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """Return the sizes of a decoder with half as many key-value heads as heads."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": ffn or 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
    }


@dataclass(frozen=True)
class Case:
    """One training. Everything that it does not set has the default of the product."""

    name: str
    sizes: dict[str, Any]
    data: str
    """`classification` or `chat`: prepared rows of the bundle; `random`: rows of `length` random tokens."""
    method: dict[str, Any] = field(default_factory=lambda: {"full": {}})
    zero: int = 2
    offload: str = "None"
    dtype: str = "BFloat16"
    steps: int = 30
    micro: int = 8
    accumulation: int = 1
    length: int = 64
    rate: float = 2e-3
    checkpointing: bool = True
    chunked: bool = False
    save_every: int = 1_000_000
    has_weights: bool = True
    """False: the rank draws the weights on its device, and the file with the weights has only a header."""
    formats: tuple[str, ...] = ("Merged",)

    @property
    def is_encoder(self) -> bool:
        """Whether the model is a BERT."""
        return self.data == "classification"

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Case":
        """Return the case of `as_json`."""
        return cls(**fields | {"formats": tuple(fields["formats"])})


LORA = {"lora": {"rank": 16}}


def short_trainings(*, gpu: bool) -> list[Case]:
    """Classification and LoRA on conversations, at every ZeRO stage. BFloat16 at stage 1 must be raised to 2."""
    hidden, layers, heads = (512, 4, 8) if gpu else (64, 2, 4)
    sizes = llama(hidden, layers, heads=heads)
    rate = 3e-4 if gpu else 2e-3
    found = []
    for data, method, peak in (("classification", {"full": {}}, rate), ("chat", LORA, 1e-2)):
        case = Case("", sizes, data, method=method, rate=peak)
        found += [
            replace(case, name=f"{data}-zero0-fp32", zero=0, dtype="Float32"),
            replace(case, name=f"{data}-zero1to2", zero=1),
            replace(case, name=f"{data}-zero2"),
            replace(case, name=f"{data}-zero3", zero=3),
            replace(case, name=f"{data}-offload", offload="Optimizer"),
        ]
    return found


def resumed(*, gpu: bool) -> Case:
    """A training with dropout that is killed and resumed."""
    hidden, layers, heads = (512, 4, 8) if gpu else (64, 2, 4)
    return Case("resume", llama(hidden, layers, heads=heads), "classification", steps=12, rate=3e-4)


def saved(*, gpu: bool) -> Case:
    """A training whose state takes 1.1 GB with a GPU, and about 8 MB without."""
    sizes = llama(1024, 6, heads=16, ffn=4096) if gpu else llama(128, 3, heads=4)
    return Case("snapshot", sizes, "random", steps=9, save_every=2, has_weights=False)


def measured_memory(*, gpu: bool) -> list[Case]:
    """Ten configurations whose peak memory is compared with its estimate: of 0.9 billion parameters with a GPU."""
    sizes = llama(2048, 16, heads=32, ffn=5632, vocabulary=32_000) if gpu else llama(256, 4, heads=4, vocabulary=8000)
    length = 1024 if gpu else 128
    case = Case("", sizes, "random", steps=3, micro=2, length=length, rate=1e-5, has_weights=False)
    return [
        replace(case, name="lora-zero2", method=LORA),
        replace(case, name="full-zero2"),
        replace(case, name="full-zero3", zero=3),
        replace(case, name="full-zero0-fp32", zero=0, dtype="Float32", micro=1),
        replace(case, name="lora-zero2-kept", method=LORA, checkpointing=False),
        replace(case, name="full-zero2-kept", checkpointing=False),
        replace(case, name="full-zero2-chunked", chunked=True, micro=8),
        replace(case, name="lora-zero3", method=LORA, zero=3, micro=4),
        replace(case, name="full-offload", offload="Optimizer"),
        replace(case, name="lora-nearly-full", method=LORA, micro=64 if gpu else 8, checkpointing=False),
    ]


def measured_speed(*, gpu: bool) -> dict[str, Case]:
    """LoRA and a full fine-tune: of the Llama-3 8B shape with a GPU, and of a few million parameters without."""
    sizes = LLAMA3_8B if gpu else llama(256, 4, heads=4, vocabulary=8000)
    length, micro = (4096, 4) if gpu else (256, 2)
    case = Case(
        "", sizes, "random", steps=8, micro=micro, length=length, rate=1e-5, has_weights=False, checkpointing=False
    )
    return {
        "lora": replace(case, name="speed-lora", method=LORA),
        "full": replace(case, name="speed-full", micro=max(1, micro // 2)),
    }
