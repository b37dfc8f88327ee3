"""Imports of the fork server, and the state that a forked rank must reset.

A child that is forked from a process that has used CUDA or OpenMP hangs or crashes. The fork server therefore only
imports modules, with one thread, and `import_libraries` checks that no import has initialized CUDA.
"""

import gc
import importlib
import os
import pkgutil
import random
import sys
from collections.abc import Collection, Mapping

from finetune_api.constants import Env, Stage
from finetune_api.stages import STAGES

from ..allocator import use_expandable_segments
from ..bitsandbytes_import import disable_bitsandbytes
from ..deepspeed_imports import disable_shared_memory_kernel, import_muon, without_mlflow
from ..transformers_imports import import_losses

SINGLE_THREADED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables that the math libraries read when they are loaded. With one thread they create no pool, which a fork would
break."""


_REGISTRIES = ("finetune_trainer.methods", "finetune_trainer.tasks")


def prepare_environment(accelerator: str) -> None:
    """Set the environment variables that the libraries read when they are imported."""
    for name in SINGLE_THREADED:
        os.environ[name] = "1"
    os.environ[Env.DS_ACCELERATOR] = accelerator
    if accelerator == "cuda":
        use_expandable_segments(os.environ)  # some versions of torch read it when they are imported


def import_libraries(accelerator: str, stages: Collection[Stage]) -> None:
    """Import all libraries of these stages. Raises ImportError if one is missing.

    The imports of each stage take four to six seconds of CPU time.
    """
    # Garbage left by imports is negligible (13 MB of 1 GB), and collecting it takes a quarter of the import time.
    # Frozen objects are never scanned again: DeepSpeed runs the collector for every engine, which would take half a
    # second each time in every rank and copy the memory pages that the ranks share with this process.
    gc.disable()
    _import(accelerator, stages)
    gc.freeze()
    gc.enable()
    torch = sys.modules.get("torch")
    assert torch is None or not torch.cuda.is_initialized(), "an import has initialized CUDA: ranks cannot be forked"


def _import(accelerator: str, stages: Collection[Stage]) -> None:
    disable_bitsandbytes()
    specs = [STAGES[stage] for stage in stages]
    entries = [spec.entry.partition(":")[0] for spec in specs]
    with without_mlflow():
        for name in dict.fromkeys([*(name for spec in specs for name in spec.libraries), *entries]):
            importlib.import_module(name)
            if name == "transformers":
                import_losses()
    importlib.import_module("finetune_trainer.store.credentials").parse_descriptions()
    if any(spec.loads_model for spec in specs):
        _build_conversions()
    if Stage.TRAIN in stages:
        import_muon()
        for package in _REGISTRIES:
            _import_all(package)
    if accelerator == "cpu" and Stage.TRAIN in stages:
        disable_shared_memory_kernel()


def _import_all(package: str) -> None:
    """Import all modules of a package, as its registry does at the first lookup: 0.02 s in every rank."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def _build_conversions() -> None:
    """Let transformers build its table of weight conversions, which is otherwise built with the first model in each
    process.

    It covers all model types, and compiling its thousand patterns takes 0.05 s in every rank.
    """
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("")


def renew_process(before: Mapping[str, str]) -> None:
    """Reset the state of the libraries in a forked child, as if it had imported them in its own environment.

    `before` is the environment that the libraries were imported in. Modules that are not loaded are not imported.
    """
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    torch, threads = sys.modules.get("torch"), os.environ.get(Env.OMP_NUM_THREADS, "")
    if torch is not None and threads:
        torch.set_num_threads(int(threads))
    hub = sys.modules.get("huggingface_hub.constants")
    if hub is not None and _hub_settings(before) != _hub_settings(os.environ):
        importlib.reload(hub)  # endpoint, cache and offline mode are read when the module is loaded


def _hub_settings(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith("HF_")}
