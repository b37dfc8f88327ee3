"""Use DeepSpeed without the compilers and packages that it runs or loads by default. Imports it only when called."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_mlflow() -> Iterator[None]:
    """Let an import of MLflow fail in this context.

    DeepSpeed's autotuner, which no job uses, imports it if it is installed: more than a quarter of the CPU time of all
    imports. A job that reports to MLflow imports it when the training starts.
    """
    modules: dict[str, Any] = sys.modules
    if "mlflow" in modules:
        yield
        return
    modules["mlflow"] = None
    try:
        yield
    finally:
        del modules["mlflow"]


def disable_shared_memory_kernel() -> None:
    """Let DeepSpeed reduce over gloo.

    It would compile its own kernel when a process group starts, which takes half a minute, and fails without a C++
    compiler. The table is assigned and not changed, because DeepSpeed makes it by running the compiler for every kernel
    that it has; only the process group reads it.
    """
    vars(importlib.import_module("deepspeed.ops"))["__compatible_ops__"] = {"deepspeed_shm_comm": False}


def import_muon() -> None:
    """Import DeepSpeed's Muon optimizer, which every ZeRO engine imports, without torch's compiler.

    The module decorates three functions with torch.compile, which loads Inductor: a fifth of the CPU time of all
    imports. No job uses Muon.
    """
    compiler: Any = importlib.import_module("deepspeed.runtime.compiler")
    compile_function = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_function
