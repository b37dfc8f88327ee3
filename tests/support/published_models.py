"""Sizes of published models, from their config.json, as the facts that the prepare stage collects."""

from finetune_trainer.model.inspect import ModelFacts


def decoder(
    kind: str,
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    vocabulary: int,
    head_size: int | None = None,
) -> ModelFacts:
    """Facts of a decoder with a gated MLP, RMSNorm and an output matrix of its own."""
    queries = heads * (head_size or hidden // heads)
    keys = key_value_heads * (head_size or hidden // heads)
    shapes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    linear = [
        (f"model.layers.{layer}.{name}.weight", shape) for layer in range(layers) for name, shape in shapes.items()
    ]
    norms = (2 * layers + 1) * hidden
    return ModelFacts(
        model_type=kind,
        is_decoder=True,
        is_encoder_decoder=False,
        parameters=sum(rows * columns for _, (rows, columns) in linear) + 2 * vocabulary * hidden + norms,
        largest_parameter=vocabulary * hidden,
        linear=tuple(linear),
        hidden_size=hidden,
        layers=layers,
        vocabulary=vocabulary,
        positions=None,
        key_value_size=keys,
        attention_size=queries,
        intermediate_size=intermediate,
        norms=norms,
    )


LLAMA3_8B = decoder(
    "llama", hidden=4096, intermediate=14_336, layers=32, heads=32, key_value_heads=8, vocabulary=128_256
)
LLAMA3_70B = decoder(
    "llama", hidden=8192, intermediate=28_672, layers=80, heads=64, key_value_heads=8, vocabulary=128_256
)
QWEN3_8B = decoder(
    "qwen3",
    hidden=4096,
    intermediate=12_288,
    layers=36,
    heads=32,
    key_value_heads=8,
    vocabulary=151_936,
    head_size=128,
)
MISTRAL_7B = decoder(
    "mistral", hidden=4096, intermediate=14_336, layers=32, heads=32, key_value_heads=8, vocabulary=32_000
)
# The first Qwen has the modules of Llama under other names. Its config.json states twice the width of its MLP.
QWEN_1_8B = decoder(
    "llama", hidden=2048, intermediate=5504, layers=24, heads=16, key_value_heads=16, vocabulary=151_936
)
QWEN_7B = decoder(
    "llama", hidden=4096, intermediate=11_008, layers=32, heads=32, key_value_heads=32, vocabulary=151_936
)
QWEN_72B = decoder(
    "llama", hidden=8192, intermediate=24_576, layers=80, heads=64, key_value_heads=64, vocabulary=152_064
)
BERT_LARGE = ModelFacts(
    model_type="bert",
    is_decoder=False,
    is_encoder_decoder=False,
    parameters=335_141_888,
    largest_parameter=30_522 * 1024,
    linear=tuple(
        (f"encoder.layer.{layer}.{name}.weight", shape)
        for layer in range(24)
        for name, shape in {
            "attention.self.query": (1024, 1024),
            "attention.self.key": (1024, 1024),
            "attention.self.value": (1024, 1024),
            "attention.output.dense": (1024, 1024),
            "intermediate.dense": (4096, 1024),
            "output.dense": (1024, 4096),
        }.items()
    ),
    hidden_size=1024,
    layers=24,
    vocabulary=30_522,
    positions=512,
    key_value_size=1024,
    attention_size=1024,
    intermediate_size=4096,
)
