"""Algorithms of `spec.method.full.pruning`. One file per algorithm; `PRUNERS[name]` finds it.

An algorithm is a class that derives from `Pruner` and is registered with `@PRUNERS.register`. Importable without torch.
"""

from .base import PRUNERS, Masks, Pruner

__all__ = ["PRUNERS", "Masks", "Pruner"]
