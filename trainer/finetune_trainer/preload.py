"""What the fork server imports once, so that no rank has to; and what a forked rank has to set right again.

Forking a process that has used CUDA or run an OpenMP region gives a child that hangs or dies. So nothing is computed
here: imports only, with one thread, and `import_libraries` ends by checking that CUDA was left alone.
"""

import gc
import importlib
import os
import random
import sys
from collections.abc import Collection, Mapping
from typing import Any

from finetune_api.constants import Env, Stage
from finetune_api.stages import STAGES

SINGLE_THREADED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Read by the math libraries when they are loaded: with one thread there is no pool that a fork could break."""


def prepare_environment(accelerator: str) -> None:
    """Set what the libraries read from the environment while they are imported."""
    for name in SINGLE_THREADED:
        os.environ[name] = "1"
    os.environ[Env.DS_ACCELERATOR] = accelerator


def import_libraries(accelerator: str, stages: Collection[Stage]) -> None:
    """Import everything that these stages need. Raises ImportError for what is missing.

    To train takes about ten seconds of CPU, to evaluate 0.6 of that, to prepare about as much.
    """
    for name in dict.fromkeys(name for stage in stages for name in STAGES[stage].libraries):
        importlib.import_module(name)
    importlib.import_module("finetune_trainer.store.credentials").parse_descriptions()
    if Stage.TRAIN in stages:
        import_muon()
    if accelerator == "cpu" and Stage.TRAIN in stages:
        # DeepSpeed builds this kernel with a C++ compiler when a process group starts: half a minute where there is a
        # compiler, the end of the job where there is none. gloo does the same work.
        importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed collects garbage with every engine. What is imported here never becomes any: half a second saved each
    # time, in every rank, and its pages stay shared.
    gc.collect()
    gc.freeze()
    assert not sys.modules["torch"].cuda.is_initialized(), "an import has initialised CUDA: no rank could be forked"


def import_muon() -> None:
    """Import DeepSpeed's Muon optimizer, as every ZeRO engine does, but without torch's compiler.

    Its module decorates three functions with torch.compile when it is imported, and that loads Inductor: a fifth of the
    CPU time of all imports. No job uses Muon.
    """
    compiler: Any = importlib.import_module("deepspeed.runtime.compiler")
    compile_function = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_function


def renew_process(before: Mapping[str, str]) -> None:
    """Make a forked child look as if it had imported the libraries itself, with its own environment.

    `before` is the environment that the libraries were imported with. Modules that were never imported stay so.
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
