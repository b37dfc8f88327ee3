"""Import transformers without what no job uses. Imports it only when called."""

import importlib
import sys
from typing import Any


def import_losses() -> None:
    """Import transformers' table of losses, which every model imports, without `scipy.optimize`.

    Only the losses of object detection use it, and importing it takes a tenth of the CPU time of all imports.
    """
    modules: dict[str, Any] = sys.modules
    if "scipy" in modules:
        importlib.import_module("transformers.loss.loss_utils")
        return
    is_available = importlib.import_module("transformers.utils.import_utils").is_scipy_available
    modules["scipy"] = None
    is_available.cache_clear()
    try:
        importlib.import_module("transformers.loss.loss_utils")
    finally:
        del modules["scipy"]
        is_available.cache_clear()
