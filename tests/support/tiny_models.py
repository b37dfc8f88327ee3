"""Tokenizers and models that are small enough to be created within a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS_TOOLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
    "{% for call in m.tool_calls or [] %}"
    "{{ '<tool_call>' + call.function.name + ' ' + (call.function.arguments | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML with the tool calls of an assistant turn after its text."""
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}[INST] {{ ns.system }}{{ message['content'] }} [/INST]{% set ns.system = '' %}"
    "{% else %} {{ message['content'] }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "<start_of_turn>{{ role }}\n{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}<|im_end|>\n"
    "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS_REASONING = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Renders earlier answers differently from the last one, so no prefix of a conversation is a prefix of the whole."""
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Adds its own system message if the conversation has none."""
LLAMA31 = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n"
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}{{ system }}<|eot_id|>"
    "{% for m in messages %}{% if m.tool_calls %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% set call = m.tool_calls[0].function %}"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>'
    "{% elif m['role'] == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n{{ m['content'] | tojson }}<|eot_id|>"
    "{% elif m['role'] in ['user', 'assistant'] %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""Writes the date, the tools, and the results of tools as JSON."""
QWEN3 = (
    "{% if tools or messages[0].role == 'system' %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
    "{% if tools %}<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>{% endif %}"
    "<|im_end|>\n{% endif %}"
    "{% set ns = namespace(query=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set content = m.content %}"
    "{% if m.role == 'user' %}<|im_start|>user\n{{ content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}{% set reasoning = m.reasoning_content or '' %}"
    "{% if not reasoning and '</think>' in content %}"
    "{% set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n"
    "{% if loop.index0 > ns.query and (loop.last or reasoning) %}"
    "<think>\n{{ reasoning.strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ content }}"
    "{% for call in m.tool_calls or [] %}{% if content or not loop.first %}\n{% endif %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{% if call.function.arguments is string %}{{ call.function.arguments }}"
    "{% else %}{{ call.function.arguments | tojson }}{% endif %}}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ content }}\n</tool_response><|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Writes the reasoning only of the answers after the last question."""
REASONS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes the reasoning of every answer."""
USER_AND_ASSISTANT = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Omits the messages of all other roles."""
SHOUTS = "{% for message in messages %}{{ loop.length }}{{ message['content'] | upper }}\n{% endfor %}"
"""Renders contents so that they cannot be located."""

SPECIAL_TOKENS = [
    "<pad>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
]
_CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "what is the capital of France? The capital of France is Paris.",
    "a good film and a bad film, a very good book and a very bad book",
]


def tiny_tokenizer(chat_template: str | None = None, *, eos: str = "</s>", adds_bos: bool = False) -> Any:
    """A byte-level BPE tokenizer of about 400 tokens: any text survives encoding and decoding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=eos, pad_token="<pad>", model_max_length=512
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def _save_same_weights(make: Callable[[], Any], folder: Path, seed: int = 0) -> None:
    """Random weights from a seed, so that results do not vary."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make().save_pretrained(folder)


def save_tiny_llama(folder: Path, chat_template: str | None = None) -> Path:
    """A random decoder of about 60 k parameters, in Hugging Face layout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(chat_template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    _save_same_weights(lambda: LlamaForCausalLM(config), folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_bert(folder: Path, *, seed: int = 0) -> Path:
    """A random encoder of about 40 k parameters, in Hugging Face layout; other seeds give other models."""
    from transformers import BertConfig, BertModel

    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    _save_same_weights(lambda: BertModel(config), folder, seed)
    tokenizer.save_pretrained(folder)
    return folder


def masked_tokenizer() -> Any:
    """`tiny_tokenizer` with a mask token and, as encoders have them, with special tokens around a text."""
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ends
    )
    return tokenizer


MASKED_FAMILIES = ("bert", "roberta", "distilbert", "albert", "electra", "modernbert")


def save_tiny_masked(family: str, folder: Path, *, seed: int = 0) -> Path:
    """A random encoder with a head for masked language modeling, in Hugging Face layout. No dropout."""
    import transformers

    tokenizer = masked_tokenizer()
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 64} | special
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    short = {"vocab_size": len(tokenizer), "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4} | special
    made: dict[str, tuple[str, dict[str, Any]]] = {
        "bert": ("Bert", sizes | still),
        "roberta": ("Roberta", sizes | still),
        "distilbert": ("DistilBert", short | {"dropout": 0.0, "attention_dropout": 0.0}),
        "albert": ("Albert", sizes | still | {"embedding_size": 16}),
        "electra": ("Electra", sizes | still | {"embedding_size": 16}),
        "modernbert": ("ModernBert", sizes | {"cls_token_id": 1, "sep_token_id": 2, "reference_compile": False}),
    }
    name, fields = made[family]
    config = getattr(transformers, f"{name}Config")(**fields)
    _save_same_weights(lambda: getattr(transformers, f"{name}ForMaskedLM")(config), folder, seed)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny(family: str, folder: Path, *, width: int = 32) -> Path:
    """A random model of one architecture family, in Hugging Face layout: encoders without a head, decoders with one.

    `llama` has its own output matrix; `llama-tied`, `gpt2` and `gemma` share it with the embeddings.
    `width` is the hidden size.
    """
    import transformers

    tokenizer = tiny_tokenizer()
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 128} | special
    grouped = sizes | {"num_key_value_heads": 2}
    narrow = {"vocab_size": len(tokenizer), "n_positions": 128, "n_embd": width, "n_layer": 2, "n_head": 4} | special
    short = {"vocab_size": len(tokenizer), "dim": width, "hidden_dim": 2 * width, "n_layers": 2, "n_heads": 4} | special
    made: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
        "bert": ("BertModel", "BertConfig", sizes, {}),
        "bert-without-pooler": ("BertModel", "BertConfig", sizes, {"add_pooling_layer": False}),
        "distilbert": ("DistilBertModel", "DistilBertConfig", short, {}),
        "albert": ("AlbertModel", "AlbertConfig", sizes | {"embedding_size": 16}, {}),
        "roberta": ("RobertaModel", "RobertaConfig", sizes, {}),
        "xlm-roberta": ("XLMRobertaModel", "XLMRobertaConfig", sizes, {}),
        "llama": ("LlamaForCausalLM", "LlamaConfig", grouped | {"tie_word_embeddings": False}, {}),
        "llama-tied": ("LlamaForCausalLM", "LlamaConfig", grouped | {"tie_word_embeddings": True}, {}),
        "gpt2": ("GPT2LMHeadModel", "GPT2Config", narrow, {}),
        "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", sizes, {}),
        "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", grouped, {}),
        "qwen2-tied": ("Qwen2ForCausalLM", "Qwen2Config", grouped | {"tie_word_embeddings": True}, {}),
        # Readers of GGUF files assume this size of a head.
        "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", grouped | {"head_dim": 128}, {}),
        "qwen3-tied": ("Qwen3ForCausalLM", "Qwen3Config", grouped | {"head_dim": 128, "tie_word_embeddings": True}, {}),
        "gemma": ("GemmaForCausalLM", "GemmaConfig", grouped | {"head_dim": 8}, {}),
        # transformers joins the experts of a layer into one parameter, and divides it when it saves the model.
        "mixtral": ("MixtralForCausalLM", "MixtralConfig", grouped | {"num_local_experts": 2}, {}),
    }
    model, config, fields, options = made[family]
    built = getattr(transformers, config)(**fields)
    _save_same_weights(lambda: getattr(transformers, model)(built, **options), folder)
    tokenizer.save_pretrained(folder)
    return folder
